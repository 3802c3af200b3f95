"""Limits of the time that a photo may take in a decode worker.

A photo is judged by the CPU time of its worker, which is the same on an idle and on a busy machine. The time on the
clock ends a wait only: where it runs out, the machine is at fault and not the photo.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from vision.errors import PhotoError, PhotoServiceBusy, PhotoTimedOut

__all__ = ["MAX_CPU_S", "MAX_WALL_S", "PhotoTimer", "TimeLimits", "create_busy_error", "read_cpu_s"]

MAX_CPU_S = 6.0
"""A HEIC of 48 megapixels and 13.5 MB, near both limits, takes 3.2 s on a core of a 2-core virtual machine, with a free
core and with a shared one; one of 12 megapixels 0.4 to 1.2 s, by its bytes."""
MAX_WALL_S = 8.0
"""Eight HEICs of 8 and 12 megapixels, 44 MB together, take 4.8 s on two cores and 7.3 s on one.

A model whose instances are all held for longer would miss two golden photos in a row and count as broken."""
YIELDS_AFTER_CPU_S = 0.06
"""CPU time after which a worker yields the cores, where its photo is to do so: ordinary photos are soon done."""
YIELDING_NICENESS = 10
"""A worker that yields gets a tenth of a core that another process wants too."""
_MIN_CHECK_S = 0.01


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    cpu_s: float = MAX_CPU_S
    """CPU time for one photo; a photo that takes more gets PhotoTimedOut."""
    wall_s: float = MAX_WALL_S
    """Time on the clock for one photo, or for all photos of a listing that a model decodes; later the machine counts
    as busy, and the photos that are not decoded get PhotoServiceBusy."""


def create_busy_error(wall_s: float) -> PhotoServiceBusy:
    return PhotoServiceBusy(f"the machine is busy and has not decoded it within {wall_s:g} s; try again")


def read_cpu_s(pid: int) -> float:
    """CPU seconds of a process and all its threads.

    Raises:
        OSError: it has ended.
    """
    # What clock_getcpuclockid(3) computes on Linux: MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED), include/linux/
    # posix-timers.h. Python has no function for it.
    return time.clock_gettime((~pid << 3) | 2)


class PhotoTimer:
    """The time of one photo in a decode worker; begins when it is created."""

    def __init__(
        self,
        pid: int,
        limits: TimeLimits,
        *,
        deadline_s: float = float("inf"),
        yields: bool = False,
        clock: Callable[[], float] = time.monotonic,
        read_cpu_s: Callable[[int], float] = read_cpu_s,
    ) -> None:
        """Args:
        pid: the worker.
        deadline_s: on the clock; applies where it is earlier than the limit of the photo.
        yields: whether the worker is to get a low priority once the photo takes long.

        Raises:
            OSError: the worker has ended.
        """
        self._pid = pid
        self._limits = limits
        self._clock = clock
        self._read_cpu_s = read_cpu_s
        self._deadline_s = min(clock() + limits.wall_s, deadline_s)
        self._yields = yields
        self._began_cpu_s = read_cpu_s(pid)
        self.has_yielded = False
        """Whether the worker has a low priority now."""

    def check(self) -> PhotoError | None:
        """PhotoTimedOut, PhotoServiceBusy, or None while time is left; lower the worker's priority where it is due."""
        if self._yields and not self.has_yielded and self._remaining_cpu_s(YIELDS_AFTER_CPU_S) <= 0:
            with contextlib.suppress(ProcessLookupError):  # it has ended, which its socket says too
                os.setpriority(os.PRIO_PROCESS, self._pid, YIELDING_NICENESS)
            self.has_yielded = True
        if self._remaining_cpu_s(self._limits.cpu_s) <= 0:
            return PhotoTimedOut(f"decoding took more than {self._limits.cpu_s:g} s of CPU time; save it again as JPEG")
        if self._clock() >= self._deadline_s:
            return create_busy_error(self._limits.wall_s)
        return None

    @property
    def next_check_s(self) -> float:
        """Seconds until a limit can be reached: a worker has one thread, so it uses no more CPU time than that."""
        next_limit_s = YIELDS_AFTER_CPU_S if self._yields and not self.has_yielded else self._limits.cpu_s
        return max(min(self._remaining_cpu_s(next_limit_s), self._deadline_s - self._clock()), _MIN_CHECK_S)

    def _remaining_cpu_s(self, limit_s: float) -> float:
        try:
            return limit_s - (self._read_cpu_s(self._pid) - self._began_cpu_s)
        except OSError:  # it has ended, which its socket says too
            return limit_s
