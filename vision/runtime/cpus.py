"""CPU cores that this process may use, in a container fewer than the machine has, and how its threads share them."""

import math
import os
from pathlib import Path

__all__ = ["count_usable_cores", "set_thread_policy"]

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


def set_thread_policy() -> None:
    """Make OpenMP's threads sleep while they wait, and be no more than the usable cores; before torch is loaded.

    By default they spin for milliseconds, which takes the core from the thread that they wait for once anything else
    runs on the machine (`python -m benchmarks.busy_cores`). OMP_WAIT_POLICY and OMP_NUM_THREADS are kept where they are
    set. The number does not follow the load: sums, and so the weights of a resumed run, depend on it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = count_usable_cores()
    if cores < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
