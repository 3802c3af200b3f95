"""How many cores this process may use: in a container fewer than the machine has."""

import math
import os
from pathlib import Path

__all__ = ["usable_cores"]

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Of control groups version 2, as a container sees its own: quota and period in microseconds, or `max` for no quota."""


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """At least 1: those it may run on, or as many as its CPU quota pays for, rounded up, where these are fewer.

    A quota alone leaves all cores of a node in sight, and as many decoding processes as these would share it.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no Linux control groups of version 2
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
