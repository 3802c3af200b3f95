from serving.client.stream import MAX_ATTEMPTS, StreamedListings
from serving.protocol import listing_vision_pb2 as pb


def refuse_with_retry(request, delay_ms=1):
    error = pb.ListingError(reason="QUOTA_EXCEEDED", retry_delay_ms=delay_ms)
    return pb.ClassifyListingsResponse(sequence=request.sequence, error=error)


def test_a_client_sends_again_what_was_refused_for_now_and_gives_up_in_the_end():
    stream_listings = StreamedListings(["a", "b"], lambda name: pb.ClassifyListingRequest(listing_id=name))
    sent = []

    def service():
        for request in stream_listings.iter_requests():
            sent.append(request.listing.listing_id)
            if request.listing.listing_id == "b" and sent.count("b") == 2:
                yield pb.ClassifyListingsResponse(sequence=request.sequence, listing=pb.ClassifyListingResponse())
            else:
                yield refuse_with_retry(request)

    answered = {one.listing: one for one in stream_listings.iter_results(service())}
    assert sent.count("a") == MAX_ATTEMPTS
    assert answered["a"].error.reason == "QUOTA_EXCEEDED"
    assert (sent.count("b"), answered["b"].error) == (2, None)
