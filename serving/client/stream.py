"""A caller's side of a stream of listings: lazy both ways, with what was refused for now sent again."""

import heapq
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from serving.protocol import listing_vision_pb2 as pb

__all__ = ["MAX_UNANSWERED", "ListingAnswered", "StreamedListings"]

MAX_UNANSWERED = 64
"""Listings that are kept, in case they must be sent again; until some are answered no more are taken."""
MAX_SENT = 5
"""Times that a listing is sent."""

_T = TypeVar("_T")


class ListingAnswered(NamedTuple, Generic[_T]):
    """What became of one listing."""

    listing: _T
    """As the caller gave it."""
    response: pb.ClassifyListingResponse | None
    error: pb.ListingError | None
    """Why there is no response."""


@dataclass
class _Unanswered(Generic[_T]):
    listing: _T
    request: pb.ClassifyListingRequest
    num_sent: int = 0


@dataclass
class StreamedListings(Generic[_T]):
    """Give `requests` to the stub's stream, and its responses to `answers`."""

    listings: Iterable[_T]
    request_of: Callable[[_T], pb.ClassifyListingRequest]
    _unanswered: dict[int, _Unanswered[_T]] = field(default_factory=dict)
    _again: list[tuple[float, int]] = field(default_factory=list)
    """When each of them is to be sent again; a heap."""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def requests(self) -> Iterator[pb.ClassifyListingsRequest]:
        """Runs on gRPC's thread, as fast as the service reads."""
        source, num_taken, has_more = iter(self.listings), 0, True
        while True:
            sequence = self._due(has_more=has_more)
            if sequence is None:
                return
            if sequence < 0:
                try:
                    listing = next(source)
                except StopIteration:
                    has_more = False
                    continue
                sequence, num_taken = num_taken, num_taken + 1
                with self._changed:
                    self._unanswered[sequence] = _Unanswered(listing, self.request_of(listing))
            with self._changed:
                waiting = self._unanswered[sequence]
                waiting.num_sent += 1
            yield pb.ClassifyListingsRequest(sequence=sequence, listing=waiting.request)

    def answers(self, responses: Iterable[Any]) -> Iterator[ListingAnswered[_T]]:
        """Each listing once, as soon as it is answered or finally refused."""
        try:
            for response in responses:
                answered = self._answered(response)
                if answered is not None:
                    yield answered
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _due(self, *, has_more: bool) -> int | None:
        """The listing to send again, -1 for the next new one, None when all is answered."""
        with self._changed:
            while not self._ended:
                if self._again and self._again[0][0] <= time.monotonic():
                    return heapq.heappop(self._again)[1]
                if has_more and len(self._unanswered) < MAX_UNANSWERED:
                    return -1
                if not has_more and not self._unanswered:
                    return None
                wait_s = self._again[0][0] - time.monotonic() if self._again else None
                self._changed.wait(wait_s)
        return None

    def _answered(self, response: pb.ClassifyListingsResponse) -> ListingAnswered[_T] | None:
        with self._changed:
            waiting = self._unanswered[response.sequence]
            error = response.error if response.HasField("error") else None
            if error and error.HasField("retry_delay_ms") and waiting.num_sent < MAX_SENT:
                at_s = time.monotonic() + error.retry_delay_ms / 1000
                heapq.heappush(self._again, (at_s, response.sequence))
                self._changed.notify_all()
                return None
            del self._unanswered[response.sequence]
            self._changed.notify_all()
        return ListingAnswered(waiting.listing, None if error else response.listing, error)
