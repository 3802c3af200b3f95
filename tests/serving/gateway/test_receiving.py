"""Messages that never end: real connections that stop before their last byte."""

import asyncio
import contextlib
import gc
import tracemalloc
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from prometheus_client import REGISTRY

from benchmarks.load.stalled_upload import StalledUpload
from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.status import Refusal
from serving.gateway import receiving
from serving.gateway.receiving import Receiver
from tests.support.gateway import PHOTO, open_stub, run_gateway
from tests.support.waiting import async_wait_until

MIB = 1 << 20
DROPPED = "listing_vision_gateway_incomplete_messages_dropped_total"


def receive(read, deadline_s, **options):
    async def run():
        receiver = Receiver(num_held_bytes=lambda: 0, get_typical_bytes=lambda caller: None)
        return await receiver.receive(read, caller="a", peer="unix:", deadline_s=deadline_s, **options)

    return asyncio.run(run())


def test_a_message_is_returned_and_the_end_is_none():
    assert receive(AsyncMock(return_value=b"abc"), 1.0) == b"abc"
    assert receive(AsyncMock(return_value=grpc.aio.EOF), None) is None


def test_a_message_that_would_be_received_in_vain_is_not_read():
    read = AsyncMock(return_value=b"abc")

    @contextlib.contextmanager
    def refuse():
        raise Refusal(reason="TOO_BUSY", message="its share is used")
        yield

    with pytest.raises(Refusal, match="its share"):
        receive(read, None, expect=refuse)
    assert not read.called


def test_a_message_that_does_not_come_in_time_is_refused():
    with pytest.raises(Refusal) as refused:
        receive(asyncio.Event().wait, 0.01)
    assert refused.value.reason == "DEADLINE_TOO_SHORT"


@pytest.mark.parametrize(
    ("num_bytes", "is_returned"), [(receiving.LARGE_BYTES, True), (receiving.LARGE_BYTES - 1, False)]
)
def test_memory_of_large_messages_is_returned_once_none_has_come_for_a_while(monkeypatch, num_bytes, is_returned):
    libc = Mock()
    monkeypatch.setattr(receiving, "LIBC", libc)
    monkeypatch.setattr(receiving, "TRIM_IDLE_S", 0.05)

    async def run():
        receiver = Receiver(num_held_bytes=lambda: 0, get_typical_bytes=lambda caller: None)
        await receiver.receive(AsyncMock(return_value=bytes(num_bytes)), caller="a", peer="unix:", deadline_s=None)
        assert not libc.malloc_trim.called
        if is_returned:
            await async_wait_until(lambda: libc.malloc_trim.called)
        else:
            await asyncio.sleep(0.2)

    asyncio.run(run())
    assert libc.malloc_trim.call_count == is_returned


@contextlib.asynccontextmanager
async def stalled_uploads(port, count, num_bytes, **options):
    uploads = [StalledUpload(port, num_bytes, **options) for _ in range(count)]
    try:
        for upload in uploads:
            await asyncio.to_thread(upload.start)
        yield uploads
    finally:
        for upload in uploads:
            upload.close()


@pytest.mark.parametrize("method", ["ClassifyListing", "ClassifyListings"])
def test_uploads_that_stop_before_their_end_are_dropped_and_others_answered(bundle, method):
    async def run():
        async with (
            run_gateway(bundle) as (gateway_server, _),
            open_stub(gateway_server) as stub,
            # 1,200 MiB in all; a process may hold 256.
            stalled_uploads(gateway_server.port, 20, 60 * MIB, method=method) as uploads,
        ):
            await async_wait_until(lambda: sum(upload.is_refused for upload in uploads) >= 16, "refusals")
            refused = [upload.is_refused for upload in uploads]
            answered = await stub.ClassifyListing(pb.ClassifyListingRequest(photos=[{"content": PHOTO}]))
            return answered, refused

    answered, refused = asyncio.run(run())
    assert answered.category_path
    assert not all(refused)  # what fits may wait until its deadline


def test_a_new_caller_does_not_wait_for_uploads_that_never_end(bundle):
    async def run():
        async with (
            run_gateway(bundle) as (gateway_server, _),
            open_stub(gateway_server) as stub,
            # Of other addresses, and as much as may wait.
            stalled_uploads(gateway_server.port, 1, 60 * MIB, source="127.0.0.2") as first,
            stalled_uploads(gateway_server.port, 1, 60 * MIB, source="127.0.0.3") as second,
        ):
            await async_wait_until(lambda: all(one.num_left == 0 for one in (*first, *second)), "all but the last byte")
            request = pb.ClassifyListingRequest(photos=[{"content": PHOTO}])
            return await stub.ClassifyListing(request, timeout=20)

    assert asyncio.run(run()).category_path


def test_a_quiet_stream_beside_busy_calls_on_one_connection_is_kept(bundle):
    async def run():
        async with run_gateway(bundle) as (gateway_server, _), open_stub(gateway_server) as stub:
            quiet = stub.ClassifyListings()
            await quiet.write(pb.ClassifyListingsRequest(sequence=1, request={"photos": [{"content": PHOTO}]}))
            assert (await quiet.read()).response.category_path
            large = pb.ClassifyListingRequest(photos=[{"content": b"x" * (15 * MIB)}] * 4)
            for _ in range(8):  # 480 MiB pass by, more than may wait
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.ClassifyListing(large)
                assert read_error_details(refused.value).reason == "NO_USABLE_PHOTO"
            await quiet.write(pb.ClassifyListingsRequest(sequence=2, request={"photos": [{"content": PHOTO}]}))
            answer = await quiet.read()
            await quiet.done_writing()
            return answer

    assert asyncio.run(run()).response.category_path


def test_a_quiet_stream_outlives_uploads_of_its_caller_that_are_dropped(bundle):
    async def run():
        async with run_gateway(bundle) as (gateway_server, _), open_stub(gateway_server) as stub:
            quiet = stub.ClassifyListings()
            await quiet.write(pb.ClassifyListingsRequest(sequence=1, request={"photos": [{"content": PHOTO}]}))
            assert (await quiet.read()).response.category_path
            num_dropped = REGISTRY.get_sample_value(DROPPED)
            async with stalled_uploads(gateway_server.port, 4, 60 * MIB) as uploads:
                await async_wait_until(lambda: sum(one.is_refused for one in uploads) == 3, "refusals")
            assert REGISTRY.get_sample_value(DROPPED) == num_dropped + 3
            await quiet.write(pb.ClassifyListingsRequest(sequence=2, request={"photos": [{"content": PHOTO}]}))
            return await quiet.read()

    assert asyncio.run(run()).response.category_path


def test_one_caller_never_fills_all_of_the_room(bundle):
    """Two uploads of the largest size would: the second one is not read before the first one is dropped."""

    async def run():
        async with (
            run_gateway(bundle) as (gateway_server, _),
            stalled_uploads(gateway_server.port, 2, 60 * MIB) as both,
        ):
            await async_wait_until(lambda: any(one.num_left == 0 for one in both), "all but the last byte")
            most_unread = max(one.num_left for one in both if not one.is_refused)
            await async_wait_until(lambda: any(one.is_refused for one in both), "a refusal")
            await async_wait_until(lambda: all(one.is_refused or one.num_left == 0 for one in both), "the second one")
            return most_unread

    assert asyncio.run(run()) > 50 * MIB


@pytest.fixture
def no_garbage_collection():
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


@pytest.mark.parametrize("num_photos", [0, 4], ids=["refused", "answered"])
def test_large_messages_are_freed_with_their_calls(bundle, no_garbage_collection, num_photos):
    """What refers to itself stays until the garbage collector runs, which in a quiet process may be much later."""
    padding = [{"content": b"x" * (4 * MIB)}] * (4 - num_photos)
    request = pb.ClassifyListingRequest(photos=[{"content": PHOTO + bytes(4 * MIB)}] * num_photos + padding)

    async def run():
        async with run_gateway(bundle) as (gateway_server, _), open_stub(gateway_server) as stub:
            for _ in range(4):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.ClassifyListing(request, timeout=20)
            held, _ = tracemalloc.get_traced_memory()
            return held / MIB

    assert asyncio.run(run()) < 8
