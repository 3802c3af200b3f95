"""Open calls are bounded: a flood of watches or streams stops nobody else, and is counted."""

import asyncio
import os
from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.api.status import Refusal
from serving.api.suggestion_id import write_random_key
from serving.config import SUGGESTION_KEY_FILE
from serving.gateway.call_limits import WATCH_METHOD, CallLimits
from serving.inference.fair_slots import CALLER_KEY
from serving.processes.sockets import gateway_socket_address
from tests.support.gateway import PHOTO, open_stub, run_gateway

METHOD = "/listing.vision.v1.ListingVisionService/ClassifyListing"


def read_refused_count(limit):
    return REGISTRY.get_sample_value("listing_vision_gateway_calls_refused_at_limit_total", {"limit": limit}) or 0.0


def open_calls(limits, count, *, method=METHOD, caller="a", is_stream=False):
    stack = ExitStack()
    for _ in range(count):
        stack.enter_context(limits.open(method, caller=caller, is_stream=is_stream))
    return stack


@pytest.mark.parametrize(
    ("limit", "call"),
    [
        ("caller", {"caller": "a"}),
        ("all", {"caller": "c"}),
        ("watch", {"method": WATCH_METHOD, "caller": "c"}),
    ],
)
def test_each_limit_refuses_the_call_above_it_and_counts_it(limit, call):
    limits = CallLimits(max_calls=5, max_caller_calls=3, max_watches=2)
    with (
        open_calls(limits, 3, caller="a"),
        open_calls(limits, 2 if limit == "all" else 1, caller="b"),
        open_calls(limits, 2, method=WATCH_METHOD, caller="w"),
    ):
        before = read_refused_count(limit)
        with pytest.raises(Refusal) as refused, open_calls(limits, 1, **call):
            pass
        assert refused.value.metadata == {"limit": limit}
        assert read_refused_count(limit) == before + 1
    with open_calls(limits, 3, caller="a"), open_calls(limits, 2, caller="c"):
        pass


def test_streams_have_a_limit_of_their_own():
    limits = CallLimits(max_caller_streams=2)
    with (
        open_calls(limits, 2, is_stream=True),
        open_calls(limits, 1),
        open_calls(limits, 1, caller="b", is_stream=True),
    ):
        with pytest.raises(Refusal) as refused:
            open_calls(limits, 1, is_stream=True)
        assert refused.value.metadata == {"limit": "stream"}


def test_a_flood_of_watches_stops_neither_callers_nor_checks(bundle):
    async def run():
        async with run_gateway(bundle) as (gateway_server, _), open_stub(gateway_server) as stub:
            address = f"127.0.0.1:{gateway_server.port}"
            channels = [
                grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)
            ]
            watches = [
                health_pb2_grpc.HealthStub(channels[i % 4]).Watch(health_pb2.HealthCheckRequest()) for i in range(1100)
            ]
            ends = await asyncio.gather(*(_end_of_watch(watch) for watch in watches))
            checked = await health_pb2_grpc.HealthStub(channels[0]).Check(health_pb2.HealthCheckRequest())
            answered = await stub.ClassifyListing(pb.ClassifyListingRequest(photos=[{"content": PHOTO}]))
            for watch in watches:
                watch.cancel()
            for channel in channels:
                await channel.close()
            return ends, checked.status, answered

    before = read_refused_count("watch")
    ends, status, answered = asyncio.run(run())
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert answered.category_path
    assert ends.count(None) == 64
    # gRPC may end a few itself while hundreds end on one connection.
    assert ends.count("TOO_BUSY") > 1000
    assert read_refused_count("watch") > before + 1000


async def _end_of_watch(watch):
    """Return None for a watch that is served, the reason of one that is refused."""
    try:
        await watch.read()
    except grpc.aio.AioRpcError as error:
        return read_error_details(error).reason
    return None


def test_a_caller_with_too_many_streams_is_refused_and_another_one_served(bundle):
    async def run():
        async with run_gateway(bundle) as (gateway_server, _), open_stub(gateway_server) as stub:
            streams = [stub.ClassifyListings() for _ in range(80)]
            request = pb.ClassifyListingsRequest(request={"photos": [{"content": PHOTO}]})
            ends = await asyncio.gather(*(_use_stream(stream, request) for stream in streams))
            answered = await stub.ClassifyListing(pb.ClassifyListingRequest(photos=[{"content": PHOTO}]))
            for stream in streams:
                stream.cancel()
            return ends, answered

    ends, answered = asyncio.run(run())
    assert answered.category_path
    assert (ends.count("served"), ends.count("TOO_BUSY")) == (64, 16)


async def _use_stream(stream, request):
    try:
        await stream.write(request)
        return "served" if (await stream.read()).response.category_path else "failed"
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return read_error_details(await _read_error(stream)).reason


async def _read_error(stream):
    try:
        await stream.read()
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the stream did not fail")


@pytest.mark.parametrize(
    ("headers", "key"), [([("x-listing-vision-http-peer", "192.0.2.7")], "http:192.0.2.7"), ([], "unix")]
)
def test_http_callers_share_capacity_by_their_own_address(bundle, tmp_path, headers, key):
    write_random_key(tmp_path / SUGGESTION_KEY_FILE)

    async def run():
        async with run_gateway(bundle, runtime_folder=tmp_path) as (gateway_server, _):
            engine, keys = gateway_server.router.stable.engine, []
            infer = engine.infer

            async def infer_and_note(photos_nhwc, **options):
                keys.append(CALLER_KEY.get())
                return await infer(photos_nhwc, **options)

            engine.infer = infer_and_note
            async with grpc.aio.insecure_channel(gateway_socket_address(tmp_path, os.getpid())) as channel:
                request = pb.ClassifyListingRequest(photos=[{"content": PHOTO}])
                await pb_grpc.ListingVisionServiceStub(channel).ClassifyListing(request, metadata=headers)
            async with open_stub(gateway_server) as stub:  # whoever comes over the network cannot choose
                await stub.ClassifyListing(request, metadata=headers)
            return keys

    assert asyncio.run(run()) == [key, "ipv4:127.0.0.1"]
