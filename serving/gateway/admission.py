"""Who may come in: what is in flight is bounded, and no call is begun that would be answered too late."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.api.status import Refusal
from serving.observability.metrics import PHOTOS_IN_FLIGHT

__all__ = ["Admission", "DrainRate"]

MAX_PHOTOS_IN_FLIGHT = 256
MAX_BYTES_IN_FLIGHT = 256 << 20
"""Of encoded photos: what a gateway process may hold of its callers' uploads."""
MAX_WAIT_S = 5.0
"""Nobody waits longer than this for a photo that a person has just taken, whatever deadline the caller set."""
SHARE_OF_DEADLINE = 0.6
"""A call is let in when its answer is expected within this share of what its caller allows: estimates err."""
LEAST_RETRY_S = 0.1
FORGOTTEN_AFTER_S = 10.0
"""A drain rate, when the machine was not fully used since."""
SHARE_OF_STREAMS = 0.5
"""Of room and of waiting time that listings of streams may take."""


class DrainRate:
    """Photos a second that leave while there is a queue: what the service can do, whatever is the bottleneck.

    Only stretches that begin with `busy_photos` or more in flight count: with fewer the machine is not fully used and
    its speed says nothing. Older stretches fade away over `memory_s` seconds.
    """

    def __init__(self, *, busy_photos: int, memory_s: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._busy_photos = busy_photos
        self._memory_s = memory_s
        self._clock = clock
        self._busy_since_s: float | None = None
        self._measured_s = 0.0
        self._seconds = 0.0
        self._photos = 0.0

    @property
    def photos_per_s(self) -> float | None:
        """None: it has not been busy for long enough to tell, or not lately."""
        known = self._seconds > 0.1 * self._memory_s and not self._is_old()
        return self._photos / self._seconds if known else None

    def _is_old(self) -> bool:
        # A rate of a bad moment would let in too few to use the whole machine, and so never be measured anew.
        return self._busy_since_s is None and self._clock() - self._measured_s > FORGOTTEN_AFTER_S

    def is_busy(self, num_in_flight: int) -> bool:
        """Whether so many in flight use the whole machine."""
        return num_in_flight >= self._busy_photos

    def left(self, num_photos: int, num_in_flight: int) -> None:
        """Some photos have left, and so many are still in flight."""
        now_s = self._clock()
        if self._is_old():
            self._seconds = self._photos = 0.0
        if self._busy_since_s is not None:
            seconds = now_s - self._busy_since_s
            faded = math.exp(-seconds / self._memory_s)
            self._seconds = self._seconds * faded + seconds
            self._photos = self._photos * faded + num_photos
            self._measured_s = now_s
        self._busy_since_s = now_s if self.is_busy(num_in_flight) else None


class Admission:
    """Counts photos and bytes in flight and refuses what is too much, or would come too late."""

    def __init__(
        self,
        rate: DrainRate,
        *,
        max_photos: int = MAX_PHOTOS_IN_FLIGHT,
        max_bytes: int = MAX_BYTES_IN_FLIGHT,
    ) -> None:
        self._rate = rate
        self._max_photos = max_photos
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
        self._refuse_unless_room(num_photos, num_bytes, min(deadline_s, MAX_WAIT_S))
        self.num_photos += num_photos
        self.num_bytes += num_bytes
        PHOTOS_IN_FLIGHT.inc(num_photos)
        try:
            yield
        finally:
            PHOTOS_IN_FLIGHT.dec(num_photos)
            self.num_photos -= num_photos
            self.num_bytes -= num_bytes
            self._rate.left(num_photos, self.num_photos)

    def refuse_unread(self, *, deadline_s: float) -> None:
        """Refuse a call of which nothing but the deadline is known, where not even one empty photo would be let in.

        Raises:
            Refusal: TOO_BUSY.
        """
        self._refuse_unless_room(1, 0, min(deadline_s, MAX_WAIT_S))

    def has_ample_room(self, num_photos: int) -> bool:
        """Whether photos that nobody waits for may be let in: half of all room is left to those that somebody does."""
        few = self.num_photos + num_photos <= SHARE_OF_STREAMS * self._max_photos
        return few and self.num_bytes <= SHARE_OF_STREAMS * self._max_bytes and not self._is_slow(num_photos)

    def has_time_to_spare(self) -> bool:
        """Whether callers leave some of the machine unused."""
        return not self._rate.is_busy(self.num_photos)

    def expected_s(self, num_photos: int) -> float:
        """Until so many photos more would be answered; 0: nobody waits for long.

        Args: num_photos: beside those that are let in.
        """
        rate = self._rate.photos_per_s
        return 0.0 if rate is None else (self.num_photos + num_photos) / rate

    def _is_slow(self, num_photos: int) -> bool:
        return self.num_photos > 0 and self.expected_s(num_photos) > SHARE_OF_STREAMS * MAX_WAIT_S * SHARE_OF_DEADLINE

    def _refuse_unless_room(self, num_photos: int, num_bytes: int, deadline_s: float) -> None:
        if self.num_photos + num_photos > self._max_photos:
            said = f"{self.num_photos} photos are in flight of at most {self._max_photos}"
        elif self.num_bytes + num_bytes > self._max_bytes:
            said = f"{self.num_bytes >> 20} MiB of photos are in flight of at most {self._max_bytes >> 20}"
        elif self.expected_s(num_photos) > SHARE_OF_DEADLINE * deadline_s and self.num_photos:
            said = f"an answer is expected in {self.expected_s(num_photos):.2f} s, too close to {deadline_s:.2f} s"
        else:
            return
        raise Refusal(reason="TOO_BUSY", message=f"{said}; try later", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        """Until half of what is in flight has left; drawn, so that those who were refused together come back apart."""
        return max(LEAST_RETRY_S, self.expected_s(0) / 2) * random.uniform(0.75, 1.5)
