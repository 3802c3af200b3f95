import asyncio

from listing_vision_client import ListingToClassify
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.stream import MAX_ATTEMPTS, StreamedListings
from listing_vision_client.stream_aio import AsyncStreamedListings
from serving.api.status import Refusal, build_status


def refuse_with_retry(request, delay_ms=1):
    error = build_status(Refusal(reason="QUOTA_EXCEEDED", message="slower", retry_after_s=delay_ms / 1000))
    return pb.ClassifyListingsResponse(sequence=request.sequence, error=error)


def test_a_client_sends_again_what_was_refused_for_now_and_gives_up_in_the_end():
    stream_listings = StreamedListings([ListingToClassify([], listing_id=name) for name in "ab"])
    sent = []

    def service():
        for request in stream_listings.iter_requests():
            sent.append(request.request.listing_id)
            if request.request.listing_id == "b" and sent.count("b") == 2:
                yield pb.ClassifyListingsResponse(sequence=request.sequence, response=pb.ClassifyListingResponse())
            else:
                yield refuse_with_retry(request)

    answered = {one.listing.listing_id: one for one in stream_listings.iter_results(service())}
    assert sent.count("a") == MAX_ATTEMPTS
    assert answered["a"].error.reason == "QUOTA_EXCEEDED"
    assert (sent.count("b"), answered["b"].error) == (2, None)


def test_async_streams_keep_the_same_books():
    async def run():
        streamed = AsyncStreamedListings([ListingToClassify([], listing_id="a")])

        async def service():
            async for request in streamed.iter_requests():
                yield refuse_with_retry(request)

        return [result async for result in streamed.iter_results(service())]

    (result,) = asyncio.run(run())
    assert (result.error.reason, result.error.retry_delay_s) == ("QUOTA_EXCEEDED", 0.001)
