"""What a process takes over from its parent: its end, and its limit of open files."""

import ctypes
import logging
import os
import resource
import signal

__all__ = ["count_free_descriptors", "die_with_parent", "raise_descriptor_limit"]

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
MAX_DESCRIPTORS = 65_536
"""Some programs walk through all that they might have open: a limit of a billion would keep them busy."""


def die_with_parent(number: signal.Signals, *, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent exits, for any reason (Linux).

    Args:
        number: the signal.
        parent: pid of the parent where this process knows it; a parent that exited before this call is noticed then.
    """
    parent = parent or os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent exited before prctl was called
        os.kill(os.getpid(), number)


def raise_descriptor_limit() -> None:
    """Allow this process and its children many open files; the usual 1024 are used up by as many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    except (ValueError, OSError) as error:
        _log.warning("at most %d open files: the limit cannot be raised: %s", soft, error)


def count_free_descriptors() -> int:
    """Return how many more files and connections this process may open (Linux)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd"))
