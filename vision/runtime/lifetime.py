"""What a process takes over from its parent: its end, its limit of open files, what it does with freed memory."""

import ctypes
import logging
import os
import platform
import resource
import signal

__all__ = [
    "HEAP_VARIABLES",
    "count_free_descriptors",
    "die_with_parent",
    "keep_freed_memory",
    "keep_freed_memory_in_children",
    "raise_descriptor_limit",
]

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
# glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
MAX_DESCRIPTORS = 65_536
"""Some programs walk through all that they might have open: a limit of a billion would keep them busy."""

HEAP_VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment that has glibc keep freed memory, and ask for huge pages where the kernel gives them to who asks.

32 MiB is the largest threshold that glibc takes; up to 128 MiB at the heap's end are kept. What is larger, as a message
of 20 photos, is mapped for each request, but for gateway processes, which `keep_freed_memory`: 60 MiB are 30 huge
pages, or 15,360 of 4 KiB, each with a page fault."""


def keep_freed_memory_in_children() -> None:
    """Have glibc keep freed memory in processes that are started from now on (`HEAP_VARIABLES`; what is set wins).

    By default the buffers of large photos are mapped for each request, and the kernel zeroes all their pages again.
    """
    for name, value in HEAP_VARIABLES.items():
        os.environ.setdefault(name, value)


def keep_freed_memory(max_bytes: int = 2**31 - 1) -> None:
    """Have glibc keep what this process frees, buffers of any size included.

    Does nothing with another C library, or where `MALLOC_MMAP_MAX_` is set in the environment.

    By default each buffer of megabytes is mapped for itself, and the kernel zeroes its pages each time, which
    slows training on a CPU (`python -m benchmarks.training_speed`) and large messages.

    Args:
        max_bytes: to keep at the heap's end, at most 2 GiB. What lies below something in use is kept besides, until
            `malloc_trim` is called.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_MAX_" in os.environ:
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, max_bytes)


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
