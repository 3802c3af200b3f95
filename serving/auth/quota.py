"""A quota of photos for each caller."""

import time
from collections.abc import Callable

from serving.api.status import Refusal

__all__ = ["PhotoQuota"]


class PhotoQuota:
    """Token buckets: a number of photos per second for each caller, with a burst of a few seconds' worth."""

    BURST_S = 5.0
    MAX_TRACKED_CALLERS = 10_000
    """Above it, callers whose bucket is full again are forgotten: whoever signs tokens can invent names."""

    def __init__(self, photos_per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = photos_per_s
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """By caller: photos left, and when that was."""

    @property
    def num_tracked_callers(self) -> int:
        return len(self._buckets)

    def consume(self, caller: str, num_photos: int) -> None:
        """Raises Refusal: QUOTA_EXCEEDED, with the time after which to try again."""
        now_s, burst = self._clock(), self._rate * self.BURST_S
        remaining, last_s = self._buckets.get(caller, (burst, now_s))
        remaining = min(burst, remaining + (now_s - last_s) * self._rate)
        # A listing larger than the burst needs a full bucket; otherwise it could never pass.
        if remaining < min(num_photos, burst):
            self._buckets[caller] = remaining, now_s
            raise Refusal(
                reason="QUOTA_EXCEEDED",
                message=f"caller {caller!r} may send {self._rate:g} photos a second; try later",
                metadata={"limit": f"{self._rate:g}"},
                retry_after_s=(min(num_photos, burst) - remaining) / self._rate,
            )
        self._buckets[caller] = remaining - num_photos, now_s
        if len(self._buckets) > self.MAX_TRACKED_CALLERS:
            self._buckets = {
                name: (left, then_s)
                for name, (left, then_s) in self._buckets.items()
                if now_s - then_s < self.BURST_S - left / self._rate
            }
