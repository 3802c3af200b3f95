"""A quota of photos for each caller, shared by all gateway processes."""

import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.api.status import Refusal

__all__ = ["PhotoQuota"]

_RECORD = struct.Struct("<8sdd")
"""Hash of a caller's name, photos left, and when that was. All zeros: free."""
NUM_RECORDS = 1 << 14
_NUM_PROBES = 16
"""Records in which a caller may be found."""


class PhotoQuota:
    """Token buckets: a number of photos per second for each caller, with a burst of a few seconds' worth.

    The buckets are in a file that processes map, so that a caller has one quota, whichever process its connections
    reach. Whoever signs tokens can invent names: the table does not grow, and the caller that was quiet for longest
    gives way.
    """

    BURST_S = 5.0

    def __init__(
        self, photos_per_s: float, path: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        photos_per_s: of each caller.
        path: file of the buckets, created if there is none; None: this process alone counts.
        clock: the same in all processes, as Linux's monotonic clock is.
        """
        self._rate = photos_per_s
        self._clock = clock
        self._descriptor = -1 if path is None else os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if path is not None:
            os.ftruncate(self._descriptor, NUM_RECORDS * _RECORD.size)
        self._table = mmap.mmap(self._descriptor, NUM_RECORDS * _RECORD.size)

    def consume(self, caller: str, num_photos: int) -> None:
        """Raises Refusal: QUOTA_EXCEEDED, with the time after which to try again."""
        burst = self._rate * self.BURST_S
        # A listing larger than the burst needs a full bucket; otherwise it could never pass.
        needed = min(num_photos, burst)
        key = hashlib.blake2b(caller.encode(), digest_size=8).digest()
        with self._lock():
            now_s = self._clock()
            offset, remaining, last_s = self._find(key, default=(burst, now_s))
            remaining = min(burst, remaining + (now_s - last_s) * self._rate)
            is_within = remaining >= needed
            left = remaining - num_photos if is_within else remaining
            _RECORD.pack_into(self._table, offset, key, left, now_s)
        if not is_within:
            raise Refusal(
                reason="QUOTA_EXCEEDED",
                message=f"caller {caller!r} may send {self._rate:g} photos a second; try later",
                metadata={"limit": f"{self._rate:g}"},
                retry_after_s=(needed - remaining) / self._rate,
            )

    def close(self) -> None:
        self._table.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if self._descriptor < 0:
            yield
            return
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _find(self, key: bytes, *, default: tuple[float, float]) -> tuple[int, float, float]:
        """Return the offset of a caller's record and its values; of a new caller, those of a full bucket."""
        first = int.from_bytes(key) % NUM_RECORDS
        oldest_offset, oldest_s = 0, float("inf")
        for probe in range(_NUM_PROBES):
            offset = (first + probe) % NUM_RECORDS * _RECORD.size
            found, remaining, last_s = _RECORD.unpack_from(self._table, offset)
            if found == key:
                return offset, remaining, last_s
            if found == bytes(8):
                last_s = -float("inf")
            if last_s < oldest_s:
                oldest_offset, oldest_s = offset, last_s
        return oldest_offset, *default
