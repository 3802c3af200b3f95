"""Share a model's capacity among callers: whoever has used least is next, and nobody takes all of it.

A caller is charged with the time that its photos took, not with their number: a photo of 50 megapixels takes as long as
dozens of ordinary ones. This is fair queueing with costs that become known afterwards (CFS, the scheduler of Linux 2.6,
works alike).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["CALLER_KEY", "MAX_SHARED_PHOTOS", "FairSlots", "SlotRequest"]

CALLER_KEY: ContextVar[str] = ContextVar("caller key", default="")
"""Who shares capacity with others: the caller's name, or its address where callers need no token."""

MAX_SHARED_PHOTOS = 4
"""Photos of requests that share a slot."""
ACTIVE_S = 10.0
"""A caller counts as active for this long after its last request."""
YIELDING_RATIO = 2.0
"""A caller yields to another one whose photos take less than its own by this factor."""


@dataclass(eq=False, kw_only=True)
class SlotRequest:
    """A request that waits for a slot, or holds one."""

    caller: str
    num_photos: int
    share_key: Hashable = None
    """Requests of one caller with equal keys may share a slot; with None it is never shared."""
    yields: bool = False
    """Whether its photos are to yield the cores, set when it starts: another caller's take much less time."""
    started: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


_Request = TypeVar("_Request", bound=SlotRequest)


@dataclass
class _Caller(Generic[_Request]):
    used_s: float = 0.0
    """Seconds charged so far, one a photo and second, or those of the least charged active caller when it became
    active."""
    photo_s: float | None = None
    """Seconds that a photo of its last requests took; None: none has ended yet."""
    num_photos: int = 0
    """Photos of the requests that hold slots."""
    last_seen_s: float = 0.0
    last_turn: int = 0
    """Number of its last grant; among equals the one who waited longest is next."""
    waiting: "deque[_Request]" = field(default_factory=deque)


class FairSlots(Generic[_Request]):
    """Slots that requests hold while they are with the model; in order of arrival for each caller.

    Small requests of one caller that wait anyway share a slot: what a request costs beside its photos is paid once.
    None waits for others to share with. Callers never share, so that no photo delays another caller's.
    """

    def __init__(
        self, limit: int, start: Callable[[Sequence[_Request]], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        limit: slots.
        start: called with the requests that are granted a slot together.
        clock: in seconds.
        """
        self.limit = limit
        self.caller_limit = MAX_SHARED_PHOTOS * limit
        """Photos that one caller may have with the model while others are active; one larger request it always may."""
        self._start = start
        self._clock = clock
        self._num_held = 0
        self._num_waiting = 0
        self._num_grants = 0
        self._callers: dict[str, _Caller[_Request]] = {}

    def submit(self, request: _Request) -> None:
        """Start the request once there is a slot for it, which may be now."""
        self._enter(request.caller).waiting.append(request)
        self._num_waiting += 1
        self._grant()

    def withdraw(self, request: _Request) -> None:
        """Give up a request that waits; one that has started is not changed."""
        entry = self._callers.get(request.caller)
        if entry and request in entry.waiting:
            entry.waiting.remove(request)
            self._num_waiting -= 1
            self._grant()

    def release(self, requests: Sequence[_Request], *, seconds: float) -> None:
        """Give a slot back that these requests held for `seconds`."""
        entry = self._callers[requests[0].caller]
        num_photos = sum(request.num_photos for request in requests)
        entry.num_photos -= num_photos
        entry.used_s += num_photos * seconds
        entry.photo_s = seconds / num_photos
        self._num_held -= 1
        self._grant()

    def _enter(self, caller: str) -> _Caller[_Request]:
        """Return the caller's entry; time that it was idle earns it nothing."""
        now_s = self._clock()
        for name in [n for n, c in self._callers.items() if not self._is_active(c, now_s)]:
            del self._callers[name]
        entry = self._callers.get(caller)
        if entry is None:
            least_s = min((other.used_s for other in self._callers.values()), default=0.0)
            entry = self._callers[caller] = _Caller(used_s=least_s)
        entry.last_seen_s = now_s
        return entry

    def _is_active(self, caller: _Caller[_Request], now_s: float) -> bool:
        return bool(caller.num_photos or caller.waiting) or now_s - caller.last_seen_s < ACTIVE_S

    def _grant(self) -> None:
        while self._num_held < self.limit and (found := self._find_next()) is not None:
            if requests := self._take(found):
                self._num_held += 1
                self._num_grants += 1
                found.last_turn = self._num_grants
                for request in requests:
                    request.yields = self._yields(found)
                self._start(requests)

    def _find_next(self) -> _Caller[_Request] | None:
        """Return the caller whose first request is next: of those that may start one, who has used least."""
        entitled = [c for c in self._callers.values() if c.waiting and self._has_room(c, c.waiting[0])]
        return min(entitled, key=lambda caller: (caller.used_s, caller.last_turn), default=None)

    def _has_room(self, caller: _Caller[_Request], request: _Request) -> bool:
        """Return whether the caller's share has room for it, as it has for a first request of any size."""
        if len(self._callers) == 1 or not caller.num_photos:
            return True
        return caller.num_photos + request.num_photos <= self.caller_limit

    def _yields(self, caller: _Caller[_Request]) -> bool:
        others = [c.photo_s for c in self._callers.values() if c is not caller and c.photo_s is not None]
        return caller.photo_s is not None and bool(others) and caller.photo_s > YIELDING_RATIO * min(others)

    def _take(self, caller: _Caller[_Request]) -> Sequence[_Request]:
        """Take the caller's first request, and with it what else waits beyond the free slots."""
        max_photos = min(MAX_SHARED_PHOTOS, -(-self._num_waiting // (self.limit - self._num_held)))
        taken: list[_Request] = []
        num_photos = 0
        while caller.waiting:
            request = caller.waiting[0]
            if taken and not (
                _may_share(taken[0], request)
                and num_photos + request.num_photos <= max_photos
                and self._has_room(caller, request)
            ):
                break
            caller.waiting.popleft()
            self._num_waiting -= 1
            if not request.started.cancelled():  # given up at this moment
                request.started.set_result(None)
                taken.append(request)
                num_photos += request.num_photos
                caller.num_photos += request.num_photos
        return taken


def _may_share(first: SlotRequest, other: SlotRequest) -> bool:
    return first.share_key is not None and first.share_key == other.share_key
