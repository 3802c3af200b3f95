"""A health check of one model that the gateway processes of a machine share: one runs it, the others learn its end."""

import asyncio
import fcntl
import mmap
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vision.errors import EngineBusy, EngineError, EngineUnavailable

__all__ = ["SharedCheck"]

POLL_INTERVAL_S = 0.05
"""Interval at which a process looks for the end of a check that another one runs."""
_BEGUN, _PASSED, _FAILED = range(3)
_NUM_BYTES = 3 * 8


class SharedCheck:
    """One process's view of the check; those that have the same file share it.

    The file has three times: when the last check was begun, when the last one that passed ended, and when the last one
    that failed did. Each is one double, and 0 if there was none. Whoever runs the check holds a lock on the file, which
    the kernel releases when the process ends.
    """

    def __init__(self, path: Path, *, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        path: created if there is none.
        timeout_s: a check that takes longer is that of a frozen process, and waited for no more.
        clock: in seconds, the same in all processes, as Linux's monotonic clock is.
        """
        self._timeout_s = timeout_s
        self._clock = clock
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, _NUM_BYTES)
        self._memory = mmap.mmap(self._descriptor, _NUM_BYTES)
        self._times_s = memoryview(self._memory).cast("d")

    async def run(self, check: Callable[[], Awaitable[None]], *, max_age_s: float) -> float:
        """Return how many seconds ago the check passed; it is run unless one passed within `max_age_s`, or now passes
        in another process.

        Raises:
            EngineUnavailable: it has just failed in another process.
            EngineError: what `check` raises here.
        """
        came_s = self._clock()
        while True:
            with self._claim() as is_claimed:
                begun_s, passed_s, failed_s = self._times_s
                now_s = self._clock()
                if passed_s and (passed_s >= came_s or now_s - passed_s < max_age_s):
                    return now_s - passed_s
                if failed_s >= came_s:
                    raise EngineUnavailable("the golden photos have failed in another gateway process")
                if is_claimed:
                    await self._run_and_record(check)
                    return 0.0
            if now_s - begun_s > self._timeout_s:
                await check()
                return 0.0
            await asyncio.sleep(POLL_INTERVAL_S)

    def close(self) -> None:
        self._times_s.release()
        self._memory.close()
        os.close(self._descriptor)

    async def _run_and_record(self, check: Callable[[], Awaitable[None]]) -> None:
        self._times_s[_BEGUN] = self._clock()
        try:
            await check()
        except EngineBusy:  # neither
            raise
        except EngineError:
            self._times_s[_FAILED] = self._clock()
            raise
        self._times_s[_PASSED] = self._clock()

    @contextmanager
    def _claim(self) -> Iterator[bool]:
        """Hold the lock, and yield True, unless another process has it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
