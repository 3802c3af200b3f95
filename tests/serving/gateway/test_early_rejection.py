import asyncio
import contextlib

import grpc
import pytest

from listing_vision_client import CallFailed
from serving.api.status import Refusal
from serving.gateway.early_rejection import CLASSIFY_METHOD, STREAM_METHOD
from tests.support.gateway import PHOTO, run_gateway


async def call_without_a_message(address: str) -> tuple[grpc.StatusCode, str]:
    """The status of a call whose message is only begun to be sent when the server has ended it, or not at all."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_unary(CLASSIFY_METHOD)(timeout=10)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await call.code()
        if not call.done():
            await call.done_writing()
        return await call.code(), await call.details()


def test_a_full_gateway_refuses_by_the_headers_without_reading_photos(bundle):
    async def call():
        async with run_gateway(bundle) as (gateway_server, client):
            admission = gateway_server.admission
            admission.num_photos = admission.max_photos
            refused = await call_without_a_message(f"127.0.0.1:{gateway_server.port}")
            with pytest.raises(CallFailed) as caught:
                await client.classify([PHOTO])
            admission.num_photos = 0
            return refused, caught.value, await call_without_a_message(f"127.0.0.1:{gateway_server.port}")

    refused, with_photo, let_in = asyncio.run(call())
    assert refused[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "photos are in flight" in refused[1]
    assert with_photo.reason == "TOO_BUSY"
    assert let_in == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")


def test_what_has_come_while_a_message_waited_counts_before_it_is_read(bundle, monkeypatch):
    def refuse_the_second_time(*args, **options):
        refusals.append(Refusal(reason="TOO_BUSY", message="its share is used"))
        if len(refusals) > 1:
            raise refusals[-1]

    refusals: list[Refusal] = []

    async def call():
        async with run_gateway(bundle) as (gateway_server, client):
            monkeypatch.setattr(gateway_server.admission, "reject_early", refuse_the_second_time)
            with pytest.raises(CallFailed, match="its share") as caught:
                await client.classify([PHOTO])
            return caught.value.reason

    assert asyncio.run(call()) == "TOO_BUSY"


@pytest.mark.parametrize("method", [CLASSIFY_METHOD, STREAM_METHOD])
def test_a_message_that_is_no_request_is_an_invalid_argument(bundle, method):
    async def call():
        async with (
            run_gateway(bundle) as (gateway_server, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{gateway_server.port}") as channel,
        ):
            call = channel.stream_stream(method)(timeout=10)
            await call.write(b"\xff\xff no protobuf")
            await call.done_writing()
            return await call.code(), await call.details()

    code, details = asyncio.run(call())
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("the message is not a valid request: ")
