"""The client side of a stream of listings: lazy in both directions, with temporary refusals retried."""

import heapq
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from google.rpc import status_pb2

from listing_vision_client.errors import parse_status
from listing_vision_client.protocol import listing_vision_pb2 as pb

__all__ = ["MAX_PENDING", "ListingResult", "StreamedListings"]

MAX_PENDING = 64
"""Listings kept for a retry; no more are taken until some have a result."""
MAX_ATTEMPTS = 5
"""Attempts per listing."""

_T = TypeVar("_T")


class ListingResult(NamedTuple, Generic[_T]):
    """The result of one listing."""

    listing: _T
    """The listing that the caller gave."""
    response: pb.ClassifyListingResponse | None
    error: status_pb2.Status | None
    """The error, if there is no response."""


@dataclass
class _PendingListing(Generic[_T]):
    listing: _T
    request: pb.ClassifyListingRequest
    num_attempts: int = 0


@dataclass
class StreamedListings(Generic[_T]):
    """Give `requests` to the stub's stream, and its responses to `answers`."""

    listings: Iterable[_T]
    build_request: Callable[[_T], pb.ClassifyListingRequest]
    _pending: dict[int, _PendingListing[_T]] = field(default_factory=dict)
    _retries: list[tuple[float, int]] = field(default_factory=list)
    """A heap of times at which listings are to be sent again."""
    _condition: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False

    def iter_requests(self) -> Iterator[pb.ClassifyListingsRequest]:
        """Yield requests; runs on gRPC's thread, as fast as the service reads."""
        source, num_taken, has_more = iter(self.listings), 0, True
        while True:
            sequence = self._next_to_send(has_more=has_more)
            if sequence is None:
                return
            if sequence < 0:
                try:
                    listing = next(source)
                except StopIteration:
                    has_more = False
                    continue
                sequence, num_taken = num_taken, num_taken + 1
                with self._condition:
                    self._pending[sequence] = _PendingListing(listing, self.build_request(listing))
            with self._condition:
                pending = self._pending[sequence]
                pending.num_attempts += 1
            yield pb.ClassifyListingsRequest(sequence=sequence, request=pending.request)

    def iter_results(self, responses: Iterable[Any]) -> Iterator[ListingResult[_T]]:
        """Yield each listing once, as soon as it has a response or a final error."""
        try:
            for response in responses:
                result = self._handle_response(response)
                if result is not None:
                    yield result
        finally:
            with self._condition:
                self._closed = True
                self._condition.notify_all()

    def _next_to_send(self, *, has_more: bool) -> int | None:
        """Return the listing to send again, -1 for the next new one, None when all have a result."""
        with self._condition:
            while not self._closed:
                if self._retries and self._retries[0][0] <= time.monotonic():
                    return heapq.heappop(self._retries)[1]
                if has_more and len(self._pending) < MAX_PENDING:
                    return -1
                if not has_more and not self._pending:
                    return None
                wait_s = self._retries[0][0] - time.monotonic() if self._retries else None
                self._condition.wait(wait_s)
        return None

    def _handle_response(self, response: pb.ClassifyListingsResponse) -> ListingResult[_T] | None:
        with self._condition:
            pending = self._pending[response.sequence]
            error = response.error if response.HasField("error") else None
            retry_delay_s = parse_status(error).retry_delay_s if error else None
            if retry_delay_s is not None and pending.num_attempts < MAX_ATTEMPTS:
                at_s = time.monotonic() + retry_delay_s
                heapq.heappush(self._retries, (at_s, response.sequence))
                self._condition.notify_all()
                return None
            del self._pending[response.sequence]
            self._condition.notify_all()
        return ListingResult(pending.listing, None if error else response.response, error)
