"""Streams of listings: over a real channel, and what they do where nothing can be caused on demand."""

import asyncio
import itertools

import grpc
import pytest

from listing_vision_client import CallFailed, ListingToClassify, ListingVisionClient, Stage
from listing_vision_client.errors import parse_status
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.stream import MAX_PENDING
from serving.api.status import Refusal
from serving.gateway.admission import Admission, ThroughputEstimator
from serving.gateway.streaming import MAX_CONCURRENT_LISTINGS, ListingStreams
from tests.support.gateway import PHOTO, FailingEngine, run_gateway
from tests.support.waiting import async_wait_until
from vision.errors import EngineBusy

NUM_LISTINGS = 150


class Source:
    """Listings that note how many were taken."""

    def __init__(self, listings):
        self.num_taken, self.listings = 0, listings

    def __iter__(self):
        for listing in self.listings:
            self.num_taken += 1
            yield listing


def listing(number, photos=(PHOTO,)):
    return ListingToClassify(photos, listing_id=f"listing-{number}")


def stream_listings(bundle, listings, look=lambda answered: None):
    """All that was answered, the listings read by a client of its own thread."""

    async def run():
        async with run_gateway(bundle) as (server, _):

            def read():
                with ListingVisionClient(f"127.0.0.1:{server.port}") as client:
                    found = []
                    for answered in client.classify_stream(listings):
                        found.append(answered)
                        look(found)
                    return found

            return await asyncio.to_thread(read)

    return asyncio.run(run())


def test_every_listing_is_answered_once_and_a_bad_one_has_an_error_of_its_own(bundle):
    source = Source(listing(n, (b"no photo",) if n == 70 else (PHOTO, PHOTO)) for n in range(NUM_LISTINGS))
    ahead = []
    answered = stream_listings(bundle, source, lambda found: ahead.append(source.num_taken - len(found)))
    assert sorted(one.listing.listing_id for one in answered) == sorted(f"listing-{n}" for n in range(NUM_LISTINGS))
    bad = [one for one in answered if one.error]
    assert [one.listing.listing_id for one in bad] == ["listing-70"]
    assert bad[0].error.code == grpc.StatusCode.INVALID_ARGUMENT
    details = bad[0].error.details
    assert details.reason == "NO_USABLE_PHOTO"
    assert [v.field for v in details.violations] == ["photos[0].content"]
    assert all(one.suggestion.listing_id == one.listing.listing_id for one in answered if one.suggestion)
    assert 0 < max(ahead) <= MAX_PENDING


def test_an_answer_says_how_long_its_stages_took(bundle):
    (answered,) = stream_listings(bundle, [listing(0)])
    stage_times = answered.suggestion.stage_times
    assert [time.stage for time in stage_times] == [Stage.DECODE, Stage.MODEL, Stage.DECISION]
    assert all(time.duration_s > 0 for time in stage_times)


def test_a_gateway_that_stops_answers_what_it_has_begun_and_tells_the_caller_to_go_on_elsewhere(bundle):
    async def run():
        async with run_gateway(bundle) as (server, _):
            stopping, found = [], []
            loop = asyncio.get_running_loop()

            def read():
                with ListingVisionClient(f"127.0.0.1:{server.port}") as client:
                    for answered in client.classify_stream(map(listing, itertools.count())):
                        found.append(answered)
                        if len(found) == 5:
                            stopping.append(asyncio.run_coroutine_threadsafe(server.stop(), loop))

            with pytest.raises(
                CallFailed, match="SHUTTING_DOWN: the service stops; send the listings without a response"
            ):
                await asyncio.to_thread(read)
            await asyncio.wrap_future(stopping[0])
            return found

    found = asyncio.run(run())
    assert len(found) > 5
    assert not any(one.error for one in found)


def test_a_caller_that_goes_leaves_nothing_behind(bundle):
    async def run():
        async with run_gateway(bundle) as (server, client):

            def read():
                with ListingVisionClient(f"127.0.0.1:{server.port}") as streaming:
                    return next(iter(streaming.classify_stream(map(listing, itertools.count()))))

            await asyncio.to_thread(read)
            await async_wait_until(lambda: server.admission.num_photos == 0)
            return await client.classify([PHOTO])

    assert asyncio.run(run()).category_path


async def create_requests(numbers, read):
    for number in numbers:
        read.append(number)
        yield pb.ClassifyListingsRequest(sequence=number)


def served(streams, answer, numbers=range(40)):
    read, written = [], []

    async def write(response):
        written.append(response)

    return read, written, streams.serve(create_requests(numbers, read), answer, write)


def test_no_more_are_read_than_are_answered_at_once():
    async def run():
        release, begun = asyncio.Event(), []

        async def answer(request, deadline_s):
            begun.append(deadline_s)
            await release.wait()
            return pb.ClassifyListingResponse()

        read, written, serving = served(ListingStreams(has_low_priority_capacity=lambda photos: True), answer)
        task = asyncio.create_task(serving)
        await asyncio.sleep(0.05)
        assert len(read) == len(begun) == MAX_CONCURRENT_LISTINGS
        release.set()
        await task
        assert sorted(response.sequence for response in written) == list(range(40))

    asyncio.run(run())


def test_a_stream_is_not_read_while_there_is_no_ample_room():
    async def run():
        room = [False]

        async def answer(request, deadline_s):
            return pb.ClassifyListingResponse()

        read, written, serving = served(ListingStreams(has_low_priority_capacity=lambda photos: room[0]), answer)
        task = asyncio.create_task(serving)
        await asyncio.sleep(0.05)
        assert not read
        room[0] = True
        await task
        assert len(written) == 40

    asyncio.run(run())


def test_half_of_the_room_is_left_to_calls_that_people_wait_for():
    admission = Admission(ThroughputEstimator(saturation_photos=4), max_photos=10)
    assert admission.has_low_priority_capacity(5)
    assert not admission.has_low_priority_capacity(6)
    with admission.admit(5, 0, deadline_s=1):
        assert not admission.has_low_priority_capacity(1)
        with admission.admit(5, 0, deadline_s=1):  # a unary call's
            pass


def test_a_listing_that_finds_no_room_waits_instead_of_its_caller():
    async def run():
        refused = []

        async def answer(request, deadline_s):
            if len(refused) < 3:
                refused.append(deadline_s)
                raise Refusal(reason="TOO_BUSY", message="later", retry_after_s=0.01)
            if len(refused) < 6:  # even if the quota takes longer than a listing's deadline
                refused.append(0.0)
                raise Refusal(reason="QUOTA_EXCEEDED", message="slower", retry_after_s=0.01)
            raise Refusal(reason="MODEL_BROKEN", message="broken")

        _, written, serving = served(ListingStreams(has_low_priority_capacity=lambda photos: True), answer, range(1))
        await serving
        (response,) = written
        assert parse_status(response.error).reason == "MODEL_BROKEN"
        assert refused[:3] == sorted(refused[:3], reverse=True)
        assert len(refused) == 6

    asyncio.run(run())


def test_a_model_that_is_busy_for_a_moment_costs_a_stream_only_time(bundle):
    class BusyOnceEngine(FailingEngine):
        async def infer(self, photos_nhwc, **options):
            self.calls += 1
            if self.calls <= 3:
                raise EngineBusy("full")
            return await engine.infer(photos_nhwc)

    async def run():
        global engine
        async with run_gateway(bundle) as (server, _):
            engine = server.router.stable.engine
            server.router.stable.engine = BusyOnceEngine()

            def read():
                with ListingVisionClient(f"127.0.0.1:{server.port}") as client:
                    return list(client.classify_stream(map(listing, range(4))))

            return await asyncio.to_thread(read)

    assert [one.error for one in asyncio.run(run())] == [None] * 4
