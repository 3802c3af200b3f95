import asyncio

import grpc
import pytest

from serving.api.error_details import ErrorDetails, read_error_details
from serving.api.status import DOMAIN, Refusal, abort
from tests.support.gateway import PHOTO, BusyAdmission, open_stub, run_gateway


def fail_call(handler):
    """The error of a call whose handler ends it."""

    async def run():
        server = grpc.aio.server()

        async def handle(request, context):
            await handler(context)

        method = grpc.unary_unary_rpc_method_handler(handle)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Call": method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/test.Service/Call")(b"")
                return caught.value
        finally:
            await server.stop(None)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("refusal", "code", "expected"),
    [
        (
            Refusal(reason="NO_PHOTOS", message="none", violations={"photos": "give 1", "listing_id": "ü"}),
            grpc.StatusCode.INVALID_ARGUMENT,
            {"violations": {"photos": "give 1", "listing_id": "ü"}},
        ),
        (
            Refusal(reason="TOO_BUSY", message="busy", retry_after_s=1.25),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            {"retry_delay_ms": 1250},
        ),
        (Refusal(reason="INTERNAL", message="ours"), grpc.StatusCode.INTERNAL, {}),
    ],
)
def test_details_survive_the_wire(refusal, code, expected):
    error = fail_call(lambda context: abort(context, refusal))
    assert (error.code(), error.details()) == (code, refusal.message)
    assert read_error_details(error) == ErrorDetails(reason=refusal.reason, is_from_service=True, **expected)


def test_an_error_of_grpc_itself_has_no_details():
    error = fail_call(lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert read_error_details(error) == ErrorDetails()


def test_the_domain_is_that_of_the_service():
    assert DOMAIN == "listing.vision"


def test_a_busy_gateway_names_a_delay(bundle):
    async def run():
        async with run_gateway(bundle, admission=BusyAdmission(max_photos=0)) as (server, _), open_stub(server) as stub:
            from serving.protocol import listing_vision_pb2 as pb

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ClassifyListing(pb.ClassifyListingRequest(photos=[pb.Photo(content=PHOTO)]))
            return read_error_details(caught.value)

    details = asyncio.run(run())
    assert details.reason == "TOO_BUSY"
    assert details.retry_delay_ms > 0
