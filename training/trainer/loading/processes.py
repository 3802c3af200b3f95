"""Data loader processes, forked by a small server process instead of by the training process.

A fork of a process with threads copies their locks in whatever state they are, without the threads that would release
them: training in a process that has used gRPC, or a second thread of any kind, could wait for ever for its first batch.
The server is a new process that imports what the loader needs and then only forks. Torch is not imported here, so that
a command can start the server before it imports torch itself.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import DupFd
from types import ModuleType
from typing import Any

import pyarrow as pa

from training.errors import RunError

__all__ = ["LOADER_CONTEXT", "LoaderStart", "SharedTable", "start_loader_server"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def start_loader_server() -> None:
    """Start the process that forks loader processes, if it does not run; return before it has imported its modules.

    The server and the loader processes block SIGTERM, SIGINT and SIGUSR1: a terminal's Ctrl-C and a scheduler's signals
    reach the whole process group, and the training process still needs batches for its last checkpoint.
    """
    multiprocessing.set_forkserver_preload(["training.trainer.loading.dataloader"])
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        with _WithoutMainModule():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


class _WithoutMainModule:
    """Hides the caller's script, which a new process would otherwise run again up to its `__main__` guard, if it has
    one; a loader needs nothing of it."""

    def __enter__(self) -> None:
        self._main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")

    def __exit__(self, *_: object) -> None:
        sys.modules["__main__"] = self._main


class _LoaderProcess(ForkServerProcess):
    def start(self) -> None:
        start_loader_server()
        with _WithoutMainModule():
            super().start()


class _LoaderContext(ForkServerContext):
    Process = _LoaderProcess


LOADER_CONTEXT = _LoaderContext()
"""`multiprocessing_context` of a DataLoader."""


class LoaderStart:
    """`worker_init_fn` of a DataLoader: gives a process the environment of the one that uses it, and ends with it."""

    def __init__(self) -> None:
        # The server may be older than some of the variables.
        self._environment: Mapping[str, str] = dict(os.environ)

    def __call__(self, worker: int) -> None:
        import torch

        os.environ.update(self._environment)
        torch.set_num_threads(1)
        threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # The parent in the sense of getppid, which torch watches, is the server, and that lives as long as its children.
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


class SharedTable:
    """A table that is sent to other processes as an open temporary file, which all of them map into memory.

    Pickled by value, ten million rows would be copied into each process.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._descriptor: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._descriptor is None:
            self._descriptor = self._write()
            weakref.finalize(self, os.close, self._descriptor)
        return _map_table, (DupFd(self._descriptor),)

    def _write(self) -> int:
        try:
            # Without a name: the kernel removes it with the last process that has it open, however that ends.
            with tempfile.TemporaryFile() as file:
                with pa.ipc.new_file(file, self.table.schema) as writer:
                    writer.write_table(self.table)
                file.flush()
                return os.dup(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self.table.nbytes} bytes for the data loader cannot be written to {tempfile.gettempdir()}: {error}; "
                "make room, set TMPDIR to another folder, or use --workers 0"
            ) from error


def _map_table(fd: Any) -> SharedTable:
    descriptor = fd.detach()
    try:
        mapped = pa.memory_map(f"/dev/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return SharedTable(pa.ipc.open_file(mapped).read_all())
