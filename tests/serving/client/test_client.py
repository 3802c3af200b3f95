import asyncio

import grpc
import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.api.limits import MESSAGE_LIMIT_BYTES, REQUEST_LIMIT_BYTES
from serving.client import CallFailed
from tests.support.gateway import PHOTO, FailingEngine, call_gateway, run_gateway
from vision.errors import EngineUnavailable


def test_a_message_over_the_limit_is_refused_with_the_limit(bundle):
    with pytest.raises(CallFailed) as caught:
        call_gateway(bundle, [b"x" * (REQUEST_LIMIT_BYTES + 1)])
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    assert caught.value.details.metadata["limit"] == str(REQUEST_LIMIT_BYTES)


def test_grpc_itself_refuses_a_message_of_twice_the_limit(bundle):
    async def unlimited_sender():
        async with run_gateway(bundle) as (gateway_server, _):
            address = f"127.0.0.1:{gateway_server.port}"
            async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
                stub = pb_grpc.ListingVisionServiceStub(channel)
                photos = [pb.Photo(content=b"x" * MESSAGE_LIMIT_BYTES)]
                await stub.ClassifyListing(pb.ClassifyListingRequest(photos=photos))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        asyncio.run(unlimited_sender())
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_of_several_megabytes_is_retried(bundle):
    class UnavailableOnce(FailingEngine):
        async def infer(self, photos_nhwc, **options):
            self.calls += 1
            if self.calls == 1:
                raise EngineUnavailable("a moment")
            return await self.error.infer(photos_nhwc)

    async def call():
        async with run_gateway(bundle, health_interval_s=60) as (gateway_server, client):
            release = gateway_server.router.stable
            real = release.engine
            release.engine = engine = UnavailableOnce(real)
            padded = PHOTO + b"\0" * (3 << 20)
            answer = await client.classify([padded])
            release.engine = real
            return engine.calls, len(answer.photos)

    assert asyncio.run(call()) == (2, 1)
