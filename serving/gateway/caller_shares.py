"""What each caller has in flight, and how much it may have.

While others are active, a caller whose listings are not answered in time may have half as many photos in flight, and
one more for each listing that is: additive increase, multiplicative decrease, as of TCP. What is not answered in time
has been received and decoded in vain, at the cost of others.
"""

import math
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
SLOW_S = 2.0
"""A listing that ends without an answer after this long was not answered in time; a shorter deadline says nothing."""
_SMOOTHING = 0.5


@dataclass
class _Share:
    num_photos: int = 0
    num_bytes: int = 0
    num_expected_photos: int = 0
    """Photos of listings that are being received, by their usual size."""
    num_expected_bytes: int = 0
    max_photos: float = math.inf
    """Photos that it may have in flight while others are active."""
    last_seen_s: float = 0.0
    typical_photos: float = 1.0
    typical_bytes: float | None = None
    """Size of its listings, as a moving average; None: it has sent none."""

    @property
    def typical_size(self) -> tuple[int, int]:
        """Photos and bytes of its listings."""
        return int(self.typical_photos), int(self.typical_bytes or 0)


class CallerShares:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shares: dict[str, _Share] = {}

    @contextmanager
    def hold(self, caller: str | None, num_photos: int, num_bytes: int) -> Iterator[None]:
        """Count photos as the caller's while they are in flight; None: as nobody's.

        Whether the body ends by an exception says whether the listing was answered.
        """
        share = _Share() if caller is None else self._see(caller)
        began_s = self._clock()
        share.num_photos += num_photos
        share.num_bytes += num_bytes
        try:
            yield
            share.max_photos += 1
        except BaseException:
            if self._clock() - began_s >= SLOW_S:
                share.max_photos = min(share.max_photos, share.num_photos) / 2
            raise
        finally:
            share.num_photos -= num_photos
            share.num_bytes -= num_bytes

    @contextmanager
    def expect(self, caller: str) -> Iterator[None]:
        """Count a listing of the caller's usual size while it is received."""
        share = self._see(caller)
        num_photos, num_bytes = share.typical_size
        share.num_expected_photos += num_photos
        share.num_expected_bytes += num_bytes
        try:
            yield
        finally:
            share.num_expected_photos -= num_photos
            share.num_expected_bytes -= num_bytes

    def exceeds_share(self, caller: str, num_photos: int, num_bytes: int, *, max_photos: int, max_bytes: int) -> bool:
        """Return whether a caller may not have so many more. A caller without any in flight always may."""
        share = self._see(caller)
        total = share.num_photos + num_photos, share.num_bytes + num_bytes
        return share.num_photos > 0 and not self._allows(share, *total, max_photos=max_photos, max_bytes=max_bytes)

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
        """Return whether a listing of a caller's usual size would be too much, before it is read.

        Those that are being read count too, so that none is read in vain.
        """
        share = self._see(caller)
        num_photos, num_bytes = share.num_photos + share.num_expected_photos, share.num_bytes + share.num_expected_bytes
        total = num_photos + share.typical_size[0], num_bytes + share.typical_size[1]
        return num_photos > 0 and not self._allows(share, *total, max_photos=max_photos, max_bytes=max_bytes)

    def count_before(self, caller: str, num_in_flight: int) -> int:
        """Return the photos that are done before another one of a caller: callers take turns."""
        share = self._shares.get(caller, _Share())
        num_busy = sum(one.num_photos > 0 for one in self._shares.values()) + (share.num_photos == 0)
        return min(num_in_flight, num_busy * share.num_photos + (num_busy - 1))

    def _allows(self, share: _Share, num_photos: int, num_bytes: int, *, max_photos: int, max_bytes: int) -> bool:
        """Return whether a caller may have so much, of the most that all may have together."""
        if len(self._shares) == 1:
            return num_photos <= SOLE_SHARE * max_photos and num_bytes <= SOLE_SHARE * max_bytes
        allowed_photos = min(share.max_photos, SHARED_SHARE * max_photos)
        return num_photos <= allowed_photos and num_bytes <= SHARED_SHARE * max_bytes

    def _see(self, caller: str) -> _Share:
        now_s = self._clock()
        for name, one in list(self._shares.items()):
            if not one.num_photos and not one.num_expected_photos and now_s - one.last_seen_s > ACTIVE_S:
                del self._shares[name]
        share = self._shares.setdefault(caller, _Share())
        share.last_seen_s = now_s
        return share
