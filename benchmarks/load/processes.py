"""Memory and processor time of processes and their descendants, from /proc (Linux)."""

import itertools
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["CpuMeter", "list_process_tree", "measure_resident_mb", "measure_resident_mb_by_name", "sample_memory"]

_PROC = Path("/proc")
_MS_PER_TICK = 1000 / os.sysconf("SC_CLK_TCK")


class _Stat(NamedTuple):
    """Fields of `/proc/PID/stat`, see proc_pid_stat(5)."""

    parent: int
    cpu_ms: float


def list_process_tree(roots: Sequence[int]) -> list[int]:
    """Return the running processes among the roots and their descendants."""
    parents = {}
    for path in _PROC.iterdir():
        if path.name.isdigit() and (stat := _read_stat(int(path.name))):
            parents[int(path.name)] = stat.parent
    found = [root for root in dict.fromkeys(roots) if root in parents]
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return found


def measure_resident_mb(roots: Sequence[int]) -> float:
    """Return resident memory of the processes and their descendants; shared pages count in each."""
    return sum(measure_resident_mb_by_name(roots).values())


def measure_resident_mb_by_name(roots: Sequence[int]) -> dict[str, float]:
    """Return resident memory by what each process runs."""
    resident: defaultdict[str, float] = defaultdict(float)
    for pid in list_process_tree(roots):
        for line in _read(pid, "status").splitlines():
            if line.startswith("VmRSS:"):
                resident[_process_name(pid)] += int(line.split()[1]) / 1024
    return dict(resident)


@contextmanager
def sample_memory(roots: Sequence[int], *, every_s: float) -> Iterator[list[tuple[float, dict[str, float]]]]:
    """Sample (seconds, resident MB by what the processes run) while the block runs."""
    samples: list[tuple[float, dict[str, float]]] = []
    started_s, stop = time.monotonic(), threading.Event()

    def sample() -> None:
        while not stop.wait(every_s):
            samples.append((time.monotonic() - started_s, measure_resident_mb_by_name(roots)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


class CpuMeter:
    """Measures processor time of processes and their descendants from its creation on."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots
        self._before_ms = self._sample()

    def read_ms_by_name(self) -> dict[str, float]:
        """Return milliseconds of user and system time by what each process runs, without ended processes."""
        spent_ms: defaultdict[str, float] = defaultdict(float)
        for pid, cpu_ms in self._sample().items():
            spent_ms[_process_name(pid)] += cpu_ms - self._before_ms.get(pid, 0.0)
        return dict(spent_ms)

    def _sample(self) -> dict[int, float]:
        stats = {pid: _read_stat(pid) for pid in list_process_tree(self._roots)}
        return {pid: stat.cpu_ms for pid, stat in stats.items() if stat}


def _read_stat(pid: int) -> _Stat | None:
    # The command, in parentheses, may itself hold spaces and parentheses.
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return _Stat(int(fields[1]), (int(fields[11]) + int(fields[12])) * _MS_PER_TICK) if fields else None


def _process_name(pid: int) -> str:
    """Return the program and, for Python, what it runs: `python -m listing_vision`."""
    words = _read(pid, "cmdline").split("\0")
    program = Path(words[0]).name
    if not program.startswith("python"):
        return program
    arguments = [word for word in words[1:] if word]
    for flag, word in itertools.pairwise(arguments):
        if flag in ("-m", "-c"):
            return f"python {flag} {word.split(';')[0]}"
    script = next((word for word in arguments if not word.startswith("-")), "")
    return f"python {Path(script).name}"


def _read(pid: int, name: str) -> str:
    try:
        return (_PROC / str(pid) / name).read_text(errors="replace")
    except OSError:  # it has ended
        return ""
