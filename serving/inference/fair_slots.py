"""Share a model's capacity among callers: whoever has used least is next, and nobody takes all of it.

A caller is charged with the time that its photos took, not with their number: a photo of 50 megapixels takes as long as
dozens of ordinary ones. This is fair queueing with costs that become known afterwards (CFS, the scheduler of Linux 2.6,
works alike).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["CALLER_KEY", "FairSlots"]

CALLER_KEY: ContextVar[str] = ContextVar("caller key", default="")
"""Who shares capacity with others: the caller's name, or its address where callers need no token."""

ACTIVE_S = 10.0
"""A caller counts as active for this long after its last request."""


@dataclass
class _Caller:
    used_s: float = 0.0
    """Slot seconds charged so far, or those of the least charged active caller when it became active."""
    num_held: int = 0
    last_seen_s: float = 0.0
    last_turn: int = 0
    """Number of its last grant; among equals the one who waited longest is next."""
    waiting: "deque[tuple[int, asyncio.Future[None]]]" = field(default_factory=deque)


class FairSlots:
    """Slots, one a photo, that requests hold while they are with the model; in order of arrival for each caller."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.caller_limit = limit
        """Slots that one caller may hold while others are active."""
        self._clock = clock
        self._num_held = 0
        self._num_grants = 0
        self._callers: dict[str, _Caller] = {}

    async def acquire(self, caller: str, num_slots: int) -> None:
        """Wait for slots. More than there are count as all of them."""
        entry = self._enter(caller)
        turn = asyncio.get_running_loop().create_future()
        entry.waiting.append((num_slots, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # granted at the same moment
                self.release(caller, num_slots, seconds=0.0)
            else:
                entry.waiting.remove((num_slots, turn))
                self._grant()
            raise

    def release(self, caller: str, num_slots: int, *, seconds: float) -> None:
        """Give slots back that were held for `seconds`."""
        entry = self._callers[caller]
        entry.num_held -= num_slots
        entry.used_s += num_slots * seconds
        self._num_held -= num_slots
        self._grant()

    def _enter(self, caller: str) -> _Caller:
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

    def _is_active(self, caller: _Caller, now_s: float) -> bool:
        return bool(caller.num_held or caller.waiting) or now_s - caller.last_seen_s < ACTIVE_S

    def _grant(self) -> None:
        while (found := self._find_next()) is not None:
            num_slots, turn = found.waiting.popleft()
            self._num_grants += 1
            found.last_turn = self._num_grants
            found.num_held += num_slots
            self._num_held += num_slots
            turn.set_result(None)

    def _find_next(self) -> _Caller | None:
        """Return the caller whose first request is next, if there is room for it: the one that has used least."""
        limit = self.caller_limit if len(self._callers) > 1 else self.limit
        entitled = [c for c in self._callers.values() if c.waiting and _has_room(limit, c.num_held, c.waiting[0][0])]
        if not entitled:
            return None
        found = min(entitled, key=lambda caller: (caller.used_s, caller.last_turn))
        return found if _has_room(self.limit, self._num_held, found.waiting[0][0]) else None


def _has_room(limit: int, num_held: int, num_slots: int) -> bool:
    """Return whether more slots may be held; a request larger than the limit, only when none is."""
    return num_held + num_slots <= limit or not num_held
