"""The lifetime of a child process, bound to its parent's."""

import ctypes
import os
import signal

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1


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
