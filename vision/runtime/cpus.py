"""CPU cores that this process may use; in a container fewer than the machine has."""

import math
import os
from pathlib import Path

__all__ = ["count_usable_cores"]

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2 file with quota and period in microseconds, or `max` for no quota."""


def count_usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """Return the cores of the affinity mask, limited by the cgroup CPU quota, rounded up; at least 1.

    A quota leaves all cores of a node visible; a process per visible core would share the quota.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no Linux control groups of version 2
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
