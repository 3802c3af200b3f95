"""Who may come in: what is in flight is bounded, and no call is begun that would be answered too late."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.api.status import Refusal
from serving.observability.metrics import PHOTOS_IN_FLIGHT

__all__ = ["Admission", "ThroughputEstimator"]

MAX_PHOTOS_IN_FLIGHT = 256
MAX_BYTES_IN_FLIGHT = 256 << 20
"""Of encoded photos: what a gateway process may hold of its callers' uploads."""
MAX_WAIT_S = 5.0
"""Nobody waits longer than this for a photo that a person has just taken, whatever deadline the caller set."""
MAX_DEADLINE_SHARE = 0.6
"""A call is let in when its answer is expected within this share of what its caller allows: estimates err."""
MIN_RETRY_DELAY_S = 0.1
ESTIMATE_EXPIRES_AFTER_S = 10.0
"""A drain rate, when the machine was not fully used since."""
LOW_PRIORITY_SHARE = 0.5
"""Of room and of waiting time that listings of streams may take."""


class ThroughputEstimator:
    """Photos a second that leave while there is a queue: what the service can do, whatever is the bottleneck.

    Only stretches that begin with `saturation_photos` or more in flight count: with fewer the machine is not fully used
    and its speed says nothing. Older stretches fade away over `time_constant_s` seconds.
    """

    def __init__(
        self, *, saturation_photos: int, time_constant_s: float = 2.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._saturation_photos = saturation_photos
        self._time_constant_s = time_constant_s
        self._clock = clock
        self._saturated_since_s: float | None = None
        self._last_measured_s = 0.0
        self._weighted_seconds = 0.0
        self._weighted_photos = 0.0

    @property
    def photos_per_s(self) -> float | None:
        """None: it has not been busy for long enough to tell, or not lately."""
        is_known = self._weighted_seconds > 0.1 * self._time_constant_s and not self._is_stale()
        return self._weighted_photos / self._weighted_seconds if is_known else None

    def _is_stale(self) -> bool:
        # A rate of a bad moment would let in too few to use the whole machine, and so never be measured anew.
        return self._saturated_since_s is None and self._clock() - self._last_measured_s > ESTIMATE_EXPIRES_AFTER_S

    def is_saturated(self, num_in_flight: int) -> bool:
        """Whether so many in flight use the whole machine."""
        return num_in_flight >= self._saturation_photos

    def record_completion(self, num_photos: int, num_in_flight: int) -> None:
        """Some photos have left, and so many are still in flight."""
        now_s = self._clock()
        if self._is_stale():
            self._weighted_seconds = self._weighted_photos = 0.0
        if self._saturated_since_s is not None:
            seconds = now_s - self._saturated_since_s
            decay = math.exp(-seconds / self._time_constant_s)
            self._weighted_seconds = self._weighted_seconds * decay + seconds
            self._weighted_photos = self._weighted_photos * decay + num_photos
            self._last_measured_s = now_s
        self._saturated_since_s = now_s if self.is_saturated(num_in_flight) else None


class Admission:
    """Counts photos and bytes in flight and refuses what is too much, or would come too late."""

    def __init__(
        self,
        rate: ThroughputEstimator,
        *,
        max_photos: int = MAX_PHOTOS_IN_FLIGHT,
        max_bytes: int = MAX_BYTES_IN_FLIGHT,
    ) -> None:
        self._throughput = rate
        self.max_photos = max_photos
        self._max_bytes = max_bytes
        self.num_photos = 0
        self.num_bytes = 0

    @contextmanager
    def admit(self, num_photos: int, num_bytes: int, *, deadline_s: float) -> Iterator[None]:
        """Hold room for one listing's photos.

        Args:
            num_photos: of the listing.
            num_bytes: of its encoded photos together.
            deadline_s: seconds that the caller allows.

        Raises:
            Refusal: TOO_BUSY, with the time after which to try again.
        """
        self._check_capacity(num_photos, num_bytes, min(deadline_s, MAX_WAIT_S))
        self.num_photos += num_photos
        self.num_bytes += num_bytes
        PHOTOS_IN_FLIGHT.inc(num_photos)
        try:
            yield
        finally:
            PHOTOS_IN_FLIGHT.dec(num_photos)
            self.num_photos -= num_photos
            self.num_bytes -= num_bytes
            self._throughput.record_completion(num_photos, self.num_photos)

    def reject_early(self, *, deadline_s: float) -> None:
        """Refuse a call of which nothing but the deadline is known, where not even one empty photo would be let in.

        Raises:
            Refusal: TOO_BUSY.
        """
        self._check_capacity(1, 0, min(deadline_s, MAX_WAIT_S))

    def has_low_priority_capacity(self, num_photos: int) -> bool:
        """Whether photos that nobody waits for may be let in: half of all room is left to those that somebody does."""
        fits = self.num_photos + num_photos <= LOW_PRIORITY_SHARE * self.max_photos
        return (
            fits
            and self.num_bytes <= LOW_PRIORITY_SHARE * self._max_bytes
            and not self._exceeds_low_priority_wait(num_photos)
        )

    def is_idle(self) -> bool:
        """Whether callers leave some of the machine unused."""
        return not self._throughput.is_saturated(self.num_photos)

    def estimate_wait_s(self, num_photos: int) -> float:
        """Until so many photos more would be answered; 0: nobody waits for long.

        Args: num_photos: beside those that are let in.
        """
        rate = self._throughput.photos_per_s
        return 0.0 if rate is None else (self.num_photos + num_photos) / rate

    def _exceeds_low_priority_wait(self, num_photos: int) -> bool:
        return (
            self.num_photos > 0
            and self.estimate_wait_s(num_photos) > LOW_PRIORITY_SHARE * MAX_WAIT_S * MAX_DEADLINE_SHARE
        )

    def _check_capacity(self, num_photos: int, num_bytes: int, deadline_s: float) -> None:
        if self.num_photos + num_photos > self.max_photos:
            detail = f"{self.num_photos} photos are in flight of at most {self.max_photos}"
        elif self.num_bytes + num_bytes > self._max_bytes:
            detail = f"{self.num_bytes >> 20} MiB of photos are in flight of at most {self._max_bytes >> 20}"
        elif self.estimate_wait_s(num_photos) > MAX_DEADLINE_SHARE * deadline_s and self.num_photos:
            detail = (
                f"an answer is expected in {self.estimate_wait_s(num_photos):.2f} s, too close to {deadline_s:.2f} s"
            )
        else:
            return
        raise Refusal(reason="TOO_BUSY", message=f"{detail}; try later", retry_after_s=self._compute_retry_delay_s())

    def _compute_retry_delay_s(self) -> float:
        """Until half of what is in flight has left; drawn, so that those who were refused together come back apart."""
        return max(MIN_RETRY_DELAY_S, self.estimate_wait_s(0) / 2) * random.uniform(0.75, 1.5)
