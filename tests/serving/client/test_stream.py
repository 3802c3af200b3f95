from listing_vision_client.errors import parse_status
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.status import Refusal, build_status
from serving.client.stream import MAX_ATTEMPTS, StreamedListings


def refuse_with_retry(request, delay_ms=1):
    error = build_status(Refusal(reason="QUOTA_EXCEEDED", message="slower", retry_after_s=delay_ms / 1000))
    return pb.ClassifyListingsResponse(sequence=request.sequence, error=error)


def test_a_client_sends_again_what_was_refused_for_now_and_gives_up_in_the_end():
    stream_listings = StreamedListings(["a", "b"], lambda name: pb.ClassifyListingRequest(listing_id=name))
    sent = []

    def service():
        for request in stream_listings.iter_requests():
            sent.append(request.request.listing_id)
            if request.request.listing_id == "b" and sent.count("b") == 2:
                yield pb.ClassifyListingsResponse(sequence=request.sequence, response=pb.ClassifyListingResponse())
            else:
                yield refuse_with_retry(request)

    answered = {one.listing: one for one in stream_listings.iter_results(service())}
    assert sent.count("a") == MAX_ATTEMPTS
    assert parse_status(answered["a"].error).reason == "QUOTA_EXCEEDED"
    assert (sent.count("b"), answered["b"].error) == (2, None)
