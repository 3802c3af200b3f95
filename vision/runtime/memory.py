"""Memory that this process may still use; in a container less than the machine has."""

from pathlib import Path

__all__ = ["measure_available_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
"""cgroup v2 of this process, as a container sees it."""


def measure_available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be allocated before the kernel begins to kill; None where the system does not say.

    The least of what the machine has left and what the control group may still take. File pages that the kernel drops
    when asked count as free in both.
    """
    found = [available for available in (_read_machine(meminfo), _read_cgroup(cgroup)) if available is not None]
    return min(found) if found else None


def _read_machine(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _read_cgroup(cgroup: Path) -> int | None:
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        pages = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no Linux control groups of version 2
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(pages.get("inactive_file", 0)))
