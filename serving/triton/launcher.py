"""Starts Triton so that it ends with its parent and makes nothing that other users can open.

    python -I -S launcher.py PROGRAM ARGUMENT…

A script of the standard library alone, which becomes PROGRAM: a umask, a signal at the parent's exit and a seccomp
filter outlast that.

Triton's Python backend keeps photos in /dev/shm, in regions that Boost.Interprocess makes: it gives each the mode 0644
by fchmod, whatever the umask is (`shared_memory_object::priv_open_or_create`). The filter lets an fchmod that would
open a file to others succeed without an effect (seccomp(2)), so the mode of its creation stays, which the umask limits.
"""

import ctypes
import os
import signal
import struct
import sys

__all__ = ["main"]

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SYS_SECCOMP, SYS_FCHMOD, AUDIT_ARCH = 317, 91, 0xC000003E  # of x86-64, for which alone there is a wheel of Triton
SECCOMP_SET_MODE_FILTER = 1
# Otherwise kernels before 5.16 slow the process down (Speculative Store Bypass).
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_RET_ALLOW, SECCOMP_RET_SUCCESS = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ERRNO with the error 0
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # instructions of classic BPF
OFFSET_OF_NUMBER, OFFSET_OF_ARCH, OFFSET_OF_MODE = 0, 4, 24  # in `struct seccomp_data`
FILTER = (
    # instruction, skipped instructions if true and if false, operand
    (LOAD_WORD, 0, 0, OFFSET_OF_ARCH),
    (JUMP_IF_EQUAL, 0, 4, AUDIT_ARCH),
    (LOAD_WORD, 0, 0, OFFSET_OF_NUMBER),
    (JUMP_IF_EQUAL, 0, 2, SYS_FCHMOD),
    (LOAD_WORD, 0, 0, OFFSET_OF_MODE),
    (JUMP_IF_ANY_BIT, 1, 0, 0o077),
    (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    (RETURN, 0, 0, SECCOMP_RET_SUCCESS),
)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("num_instructions", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def main(command: list[str]) -> None:
    """Become a command; does not return."""
    parent = os.getppid()
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it exited before prctl was called
        return
    if not _ignore_fchmod_for_others(libc):
        print(f"no seccomp filter: {os.strerror(ctypes.get_errno())}", file=sys.stderr, flush=True)
    os.execv(command[0], command)


def _ignore_fchmod_for_others(libc: ctypes.CDLL) -> bool:
    """Return whether the kernel has taken the filter."""
    instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in FILTER)
    program = _Program(len(FILTER), instructions)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW
    return not libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))


if __name__ == "__main__":
    main(sys.argv[1:])
