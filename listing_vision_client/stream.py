"""A stream of listings: lazy in both directions, with temporary refusals retried."""

import heapq
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from listing_vision_client.convert import from_message
from listing_vision_client.errors import CallFailed, convert_status
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.requests import ListingToClassify, build_classify_request
from listing_vision_client.results import ListingSuggestion

__all__ = ["MAX_ATTEMPTS", "MAX_PENDING", "ListingResult", "PendingListings", "StreamedListings"]

MAX_PENDING = 64
"""Listings kept for a retry; no more are taken until some have a result."""
MAX_ATTEMPTS = 5
"""Attempts per listing."""


@dataclass(frozen=True, kw_only=True)
class ListingResult:
    """The result of one listing: exactly one of suggestion and error."""

    listing: ListingToClassify
    """The listing that the caller gave."""
    suggestion: ListingSuggestion | None
    error: CallFailed | None


@dataclass
class _Pending:
    listing: ListingToClassify
    request: pb.ClassifyListingRequest
    num_attempts: int = 0


class PendingListings:
    """The listings of a stream that have no result yet. Not safe to use from several threads."""

    def __init__(self) -> None:
        self._pending: dict[int, _Pending] = {}
        self._num_taken = 0
        self._retries: list[tuple[float, int]] = []
        """A heap of times at which listings are to be sent again."""
        self._refused: deque[ListingResult] = deque()
        """Results of listings that were not sent."""

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, listing: ListingToClassify) -> pb.ClassifyListingsRequest | None:
        """Return the first request for a listing; None: it is too large, which is its result.

        Raises:
            OSError: a photo cannot be read.
        """
        try:
            request = build_classify_request(listing)
        except CallFailed as error:
            self._refused.append(ListingResult(listing=listing, suggestion=None, error=error))
            return None
        sequence, self._num_taken = self._num_taken, self._num_taken + 1
        self._pending[sequence] = _Pending(listing, request)
        return self._send(sequence)

    def take_retry(self) -> pb.ClassifyListingsRequest | None:
        """Return the request of a listing that is to be sent again now."""
        if self._retries and self._retries[0][0] <= time.monotonic():
            return self._send(heapq.heappop(self._retries)[1])
        return None

    def compute_wait_s(self) -> float | None:
        """Return the time until a listing is to be sent again; None: none is."""
        return max(0.0, self._retries[0][0] - time.monotonic()) if self._retries else None

    def handle(self, response: pb.ClassifyListingsResponse) -> ListingResult | None:
        """Return the result of a listing; None: it is sent again later."""
        pending = self._pending[response.sequence]
        error = convert_status(response.error) if response.HasField("error") else None
        if error and error.retry_delay_s is not None and pending.num_attempts < MAX_ATTEMPTS:
            heapq.heappush(self._retries, (time.monotonic() + error.retry_delay_s, response.sequence))
            return None
        del self._pending[response.sequence]
        suggestion = None if error else from_message(ListingSuggestion, response.response)
        return ListingResult(listing=pending.listing, suggestion=suggestion, error=error)

    def take_refused(self) -> Iterator[ListingResult]:
        """Yield the results of listings that were not sent."""
        while self._refused:
            yield self._refused.popleft()

    def _send(self, sequence: int) -> pb.ClassifyListingsRequest:
        pending = self._pending[sequence]
        pending.num_attempts += 1
        return pb.ClassifyListingsRequest(sequence=sequence, request=pending.request)


class StreamedListings:
    """Give `iter_requests` to the stub's stream, and its responses to `iter_results`."""

    def __init__(self, listings: Iterable[ListingToClassify]) -> None:
        self._listings = listings
        self._pending = PendingListings()
        self._condition = threading.Condition()
        self._is_closed = False
        self._source_error: BaseException | None = None

    def iter_requests(self) -> Iterator[pb.ClassifyListingsRequest]:
        """Yield requests; runs on gRPC's thread, as fast as the service reads."""
        source, has_more = iter(self._listings), True
        while True:
            request, wants_more = self._wait_for_work(has_more=has_more)
            if request:
                yield request
            elif not wants_more:
                return
            else:
                request, has_more = self._take_next(source)
                if request:
                    yield request

    def iter_results(self, responses: Iterable[pb.ClassifyListingsResponse]) -> Iterator[ListingResult]:
        """Yield each listing once, as soon as it has a response or a final error.

        Raises:
            BaseException: what the caller's listings raised, once all listings before have a result.
        """
        try:
            for response in responses:
                with self._condition:
                    result = self._pending.handle(response)
                    self._condition.notify_all()
                if result:
                    yield result
                yield from self._pending.take_refused()
            yield from self._pending.take_refused()
            if self._source_error:
                raise self._source_error
        finally:
            with self._condition:
                self._is_closed = True
                self._condition.notify_all()

    def _wait_for_work(self, *, has_more: bool) -> tuple[pb.ClassifyListingsRequest | None, bool]:
        """Return the listing to send again, if any, and whether a new one is to be taken; neither: all is sent."""
        with self._condition:
            while not self._is_closed:
                if retry := self._pending.take_retry():
                    return retry, False
                if has_more and len(self._pending) < MAX_PENDING:
                    return None, True
                if not has_more and not self._pending:
                    break
                self._condition.wait(self._pending.compute_wait_s())
        return None, False

    def _take_next(self, source: Iterator[ListingToClassify]) -> tuple[pb.ClassifyListingsRequest | None, bool]:
        """Return the request of the next listing, if it is sent, and whether the source has more."""
        try:
            # Outside the lock: a source may wait for long, and results go on meanwhile.
            listing = next(source)
            with self._condition:
                return self._pending.add(listing), True
        except StopIteration:
            return None, False
        except BaseException as error:
            # gRPC would log it and end the stream with UNKNOWN.
            self._source_error = error
            return None, False
