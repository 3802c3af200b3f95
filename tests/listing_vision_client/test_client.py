import contextlib
import socket
import subprocess
import sys
import time

import grpc
import pytest

from listing_vision_client import CallFailed, ListingToClassify, ListingVisionClient, SuggestionIdStatus
from listing_vision_client.limits import REQUEST_LIMIT_BYTES
from serving.api.status import Refusal

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
BUSY = Refusal(reason="TOO_BUSY", message="later", retry_after_s=0.3)


def test_a_call_that_is_unavailable_is_retried_twice(fake_service):
    with (
        fake_service(UNAVAILABLE, grpc.StatusCode.CANCELLED) as service,
        ListingVisionClient(service.address) as client,
    ):
        assert client.get_model().category_count == 7
        assert service.num_attempts == 3


def test_a_call_of_several_megabytes_is_retried(fake_service):
    with fake_service(UNAVAILABLE) as service, ListingVisionClient(service.address) as client:
        assert client.classify([b"x" * (3 << 20)], listing_id="a").listing_id == "a"
        assert service.num_attempts == 2


def test_a_service_that_is_away_gets_few_retries(fake_service):
    with fake_service(fails_always=UNAVAILABLE) as service, ListingVisionClient(service.address) as client:

        def call(num_calls: int) -> float:
            """Attempts per call."""
            before = service.num_attempts
            for _ in range(num_calls):
                with pytest.raises(CallFailed):
                    client.report_outcome(category_id="bags")
            return (service.num_attempts - before) / num_calls

        assert call(100) <= 2.2
        assert call(300) <= 1.2


def test_a_busy_service_is_called_again_only_where_that_was_asked_for(fake_service):
    with fake_service(BUSY) as service, ListingVisionClient(service.address) as client:
        with pytest.raises(CallFailed) as caught:
            client.get_model()
        assert (caught.value.reason, caught.value.retry_delay_s, service.num_attempts) == ("TOO_BUSY", 0.3, 1)
    with fake_service(BUSY, BUSY) as service, ListingVisionClient(service.address, num_busy_retries=2) as client:
        began_s = time.monotonic()
        assert client.get_model().category_count == 7
        assert time.monotonic() - began_s >= 0.6
        assert service.num_attempts == 3
    with fake_service(BUSY, BUSY) as service, ListingVisionClient(service.address, num_busy_retries=1) as client:
        with pytest.raises(CallFailed, match="TOO_BUSY"):
            client.get_model()
        assert service.num_attempts == 2


def test_no_delay_is_waited_for_that_the_call_has_no_time_for(fake_service):
    with fake_service(BUSY) as service, ListingVisionClient(service.address, num_busy_retries=1) as client:
        began_s = time.monotonic()
        with pytest.raises(CallFailed, match="TOO_BUSY"):
            client.get_model(timeout_s=0.25)
        assert time.monotonic() - began_s < 0.25
        assert service.num_attempts == 1


def test_a_request_beyond_the_limit_is_not_sent(fake_service):
    too_large = [b"x" * (REQUEST_LIMIT_BYTES + 1)]
    with fake_service() as service, ListingVisionClient(service.address) as client:
        with pytest.raises(CallFailed, match=f"more than the limit of {REQUEST_LIMIT_BYTES}"):
            client.classify(too_large)
        listings = [ListingToClassify(photos, listing_id=name) for name, photos in (("a", too_large), ("b", [b"b"]))]
        found = {result.listing.listing_id: result for result in client.classify_stream(listings)}
        assert found["a"].error.reason == "REQUEST_TOO_LARGE"
        assert (found["b"].error, found["b"].suggestion.listing_id) == (None, "b")
        assert [request.listing_id for request in service.requests] == ["b"]


def test_a_hook_is_open_during_each_attempt_and_adds_headers(fake_service):
    calls = []

    @contextlib.contextmanager
    def hook(method):
        calls.append(f"begin {method.rpartition('/')[2]}")
        try:
            yield [("traceparent", f"trace-{len(calls)}")]
        finally:
            calls.append("end")

    with (
        fake_service(BUSY) as service,
        ListingVisionClient(service.address, num_busy_retries=1, call_hook=hook) as client,
    ):
        client.get_model()
        list(client.classify_stream([]))
    assert calls == ["begin GetModel", "end"] * 2 + ["begin ClassifyListings", "end"]
    assert [metadata["traceparent"] for metadata in service.metadata] == ["trace-1", "trace-3"]


def test_an_outcome_is_reported(fake_service):
    with fake_service() as service, ListingVisionClient(service.address) as client:
        receipt = client.report_outcome(suggestion_id="s", category_id="bags")
    assert receipt.suggestion_id_status == SuggestionIdStatus.VALID
    assert [(request.suggestion_id, request.category_id) for request in service.requests] == [("s", "bags")]


def test_an_error_of_the_callers_own_listings_is_raised_after_the_results_before_it(fake_service):
    def read():
        yield ListingToClassify([b"a"], listing_id="a")
        raise KeyError("b")

    found = []
    with fake_service() as service, ListingVisionClient(service.address) as client, pytest.raises(KeyError, match="b"):
        found.extend(result.suggestion.listing_id for result in client.classify_stream(read()))
    with fake_service() as service, ListingVisionClient(service.address) as client:
        stream = client.classify_stream(read())
        assert next(stream).suggestion.listing_id == "a"
        with pytest.raises(KeyError, match="b"):
            next(stream)


def test_ipv6_addresses_are_called(fake_service):
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        with fake_service(host="[::1]") as service:
            for address in (service.address, ["[::1]:1", service.address]):
                with ListingVisionClient(address) as client:
                    assert client.get_model().category_count == 7
        return
    pytest.skip("this machine has no IPv6 loopback")


def test_the_client_needs_nothing_of_the_project_and_no_opentelemetry():
    code = (
        "import sys, listing_vision_client; "
        "found = {name.partition('.')[0] for name in sys.modules}; "
        "assert not found & {'vision', 'serving', 'training', 'listing_vision', 'numpy', 'opentelemetry'}, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
