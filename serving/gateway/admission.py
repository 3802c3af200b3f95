"""Admission control: bound the photos in flight, and refuse calls that would miss their deadline."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.api.status import Refusal
from serving.gateway.caller_shares import CallerShares
from serving.observability.metrics import PHOTOS_IN_FLIGHT

__all__ = ["Admission", "ThroughputEstimator"]

MAX_PHOTOS_IN_FLIGHT = 256
MAX_BYTES_IN_FLIGHT = 256 << 20
"""Encoded photos that a gateway process may hold."""
MAX_WAIT_S = 5.0
"""Longest wait for a response, whatever deadline the caller set: a person is waiting."""
MAX_DEADLINE_SHARE = 0.6
"""A call is admitted if its expected wait is within this share of its deadline; estimates err."""
MIN_RETRY_DELAY_S = 0.1
ESTIMATE_EXPIRES_AFTER_S = 10.0
"""After this time without saturation a throughput estimate is dropped."""
LOW_PRIORITY_SHARE = 0.5
"""Share of capacity and of waiting time that low-priority listings (streams) may take."""
_SHARE_USED = "this caller has its share of all photos in flight"


class ThroughputEstimator:
    """Estimates the photos per second that complete while there is a queue, whatever the bottleneck is.

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
        """The estimate; None if the gateway was not saturated long enough, or not recently."""
        is_known = self._weighted_seconds > 0.1 * self._time_constant_s and not self._is_stale()
        return self._weighted_photos / self._weighted_seconds if is_known else None

    def _is_stale(self) -> bool:
        # A low estimate would admit too few photos to saturate the machine and so would never be updated.
        return self._saturated_since_s is None and self._clock() - self._last_measured_s > ESTIMATE_EXPIRES_AFTER_S

    def is_saturated(self, num_in_flight: int) -> bool:
        """Return whether that many photos in flight use the whole machine."""
        return num_in_flight >= self._saturation_photos

    def record_completion(self, num_photos: int, num_in_flight: int) -> None:
        """Record that photos completed while `num_in_flight` others remain."""
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
    """Counts photos and bytes in flight; refuses a listing that exceeds a limit or would be late."""

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
        self.callers = CallerShares()

    @contextmanager
    def admit(self, num_photos: int, num_bytes: int, *, deadline_s: float, caller: str | None = None) -> Iterator[None]:
        """Reserve capacity for one listing's photos.

        Args:
            num_photos: photos of the listing.
            num_bytes: bytes of its encoded photos together.
            deadline_s: seconds until the caller's deadline.
            caller: who shares the capacity with others; None: nobody does.

        Raises:
            Refusal: TOO_BUSY, with a retry delay.
        """
        if caller is not None:
            self.callers.record_size(caller, num_photos, num_bytes)
        self._check_capacity(num_photos, num_bytes, min(deadline_s, MAX_WAIT_S), caller)
        self.num_photos += num_photos
        self.num_bytes += num_bytes
        PHOTOS_IN_FLIGHT.inc(num_photos)
        try:
            with self.callers.hold(caller, num_photos, num_bytes):
                yield
        finally:
            PHOTOS_IN_FLIGHT.dec(num_photos)
            self.num_photos -= num_photos
            self.num_bytes -= num_bytes
            self._throughput.record_completion(num_photos, self.num_photos)

    def reject_early(self, *, deadline_s: float, caller: str | None = None) -> None:
        """Refuse a call before its photos are read, if not even one empty photo would be admitted.

        Raises:
            Refusal: TOO_BUSY.
        """
        self._check_capacity(1, 0, min(deadline_s, MAX_WAIT_S), caller)
        if caller is not None and self.callers.will_exceed_share(
            caller, max_photos=self.max_photos, max_bytes=self._max_bytes
        ):
            raise self._create_refusal(_SHARE_USED)

    def has_low_priority_capacity(self, num_photos: int) -> bool:
        """Return whether low-priority photos may be admitted; half of all capacity is kept for calls."""
        fits = self.num_photos + num_photos <= LOW_PRIORITY_SHARE * self.max_photos
        return (
            fits
            and self.num_bytes <= LOW_PRIORITY_SHARE * self._max_bytes
            and not self._exceeds_low_priority_wait(num_photos)
        )

    def is_idle(self) -> bool:
        """Return whether calls leave part of the machine unused."""
        return not self._throughput.is_saturated(self.num_photos)

    def estimate_wait_s(self, num_photos: int, caller: str | None = None) -> float:
        """Estimate the seconds until that many more photos would be done; 0 if there is no estimate.

        Args:
            num_photos: in addition to those in flight.
            caller: whose photos wait for their share of those before them; None: for all.
        """
        rate = self._throughput.photos_per_s
        num_before = self.num_photos if caller is None else self.callers.count_before(caller, self.num_photos)
        return 0.0 if rate is None else (num_before + num_photos) / rate

    def _exceeds_low_priority_wait(self, num_photos: int) -> bool:
        return (
            self.num_photos > 0
            and self.estimate_wait_s(num_photos) > LOW_PRIORITY_SHARE * MAX_WAIT_S * MAX_DEADLINE_SHARE
        )

    def _check_capacity(self, num_photos: int, num_bytes: int, deadline_s: float, caller: str | None) -> None:
        wait_s = self.estimate_wait_s(num_photos, caller)
        if self.num_photos + num_photos > self.max_photos:
            detail = f"{self.num_photos} photos are in flight of at most {self.max_photos}"
        elif self.num_bytes + num_bytes > self._max_bytes:
            detail = f"{self.num_bytes >> 20} MiB of photos are in flight of at most {self._max_bytes >> 20}"
        elif caller is not None and self.callers.exceeds_share(
            caller, num_photos, num_bytes, max_photos=self.max_photos, max_bytes=self._max_bytes
        ):
            detail = _SHARE_USED
        elif wait_s > MAX_DEADLINE_SHARE * deadline_s and self.num_photos:
            detail = f"busy: needs {wait_s:.2f} s of the {deadline_s:.2f} s left"
        else:
            return
        raise self._create_refusal(detail)

    def _create_refusal(self, detail: str) -> Refusal:
        return Refusal(reason="TOO_BUSY", message=f"{detail}; try later", retry_after_s=self._compute_retry_delay_s())

    def _compute_retry_delay_s(self) -> float:
        """Return the time until half of the photos in flight are done, with jitter, so that retries spread."""
        return max(MIN_RETRY_DELAY_S, self.estimate_wait_s(0) / 2) * random.uniform(0.75, 1.5)
