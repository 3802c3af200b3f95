"""What each caller has in flight, and how much it may have."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["CallerShares"]

ACTIVE_S = 10.0
"""A caller counts as active for this long after it last asked for capacity."""
SHARED_SHARE = 0.5
"""Share of all capacity that a caller may hold while others are active."""
SOLE_SHARE = 0.875
"""The same while none is: whoever comes next finds room."""
_SMOOTHING = 0.5


@dataclass
class _Share:
    num_photos: int = 0
    num_bytes: int = 0
    last_seen_s: float = 0.0
    typical_photos: float = 1.0
    typical_bytes: float | None = None
    """Size of its listings, as a moving average; None: it has sent none."""


class CallerShares:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shares: dict[str, _Share] = {}

    @contextmanager
    def hold(self, caller: str | None, num_photos: int, num_bytes: int) -> Iterator[None]:
        """Count photos as the caller's while they are in flight; None: as nobody's."""
        share = _Share() if caller is None else self._see(caller)
        share.num_photos += num_photos
        share.num_bytes += num_bytes
        try:
            yield
        finally:
            share.num_photos -= num_photos
            share.num_bytes -= num_bytes

    def exceeds_share(self, caller: str, num_photos: int, num_bytes: int, *, max_photos: int, max_bytes: int) -> bool:
        """Return whether a caller may not have so many more. A caller without any in flight always may."""
        share = self._see(caller)
        allowed = SHARED_SHARE if len(self._shares) > 1 else SOLE_SHARE
        fits = (
            share.num_photos + num_photos <= allowed * max_photos and share.num_bytes + num_bytes <= allowed * max_bytes
        )
        return share.num_photos > 0 and not fits

    def record_size(self, caller: str, num_photos: int, num_bytes: int) -> None:
        """Note the size of a listing that a caller has sent, admitted or not."""
        share = self._see(caller)
        share.typical_photos += _SMOOTHING * (num_photos - share.typical_photos)
        before = num_bytes if share.typical_bytes is None else share.typical_bytes
        share.typical_bytes = before + _SMOOTHING * (num_bytes - before)

    def get_typical_bytes(self, caller: str) -> float | None:
        """Return the size of a caller's listings, as a moving average; None: it has sent none lately."""
        share = self._shares.get(caller)
        return share.typical_bytes if share else None

    def will_exceed_share(self, caller: str, *, max_photos: int, max_bytes: int) -> bool:
        """Return whether a listing of a caller's usual size would be too much, before it is read."""
        share = self._see(caller)
        num_photos, num_bytes = int(share.typical_photos), int(share.typical_bytes or 0)
        return self.exceeds_share(caller, num_photos, num_bytes, max_photos=max_photos, max_bytes=max_bytes)

    def count_before(self, caller: str, num_in_flight: int) -> int:
        """Return the photos that are done before another one of a caller: callers take turns."""
        share = self._shares.get(caller, _Share())
        num_busy = sum(one.num_photos > 0 for one in self._shares.values()) + (share.num_photos == 0)
        return min(num_in_flight, num_busy * share.num_photos + (num_busy - 1))

    def _see(self, caller: str) -> _Share:
        now_s = self._clock()
        for name, one in list(self._shares.items()):
            if not one.num_photos and now_s - one.last_seen_s > ACTIVE_S:
                del self._shares[name]
        share = self._shares.setdefault(caller, _Share())
        share.last_seen_s = now_s
        return share
