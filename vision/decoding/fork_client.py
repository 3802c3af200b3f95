"""Starts the fork server (`vision.decoding.fork_server`), has it fork decode workers, and sends each a photo at a
time.

Its calls block. Triton's Python backend decodes with it too, so it imports only packages that exist there.
"""

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vision.decoding.fork_server import (
    MAX_RESPONSE_BYTES,
    NUM_BYTES_STRUCT,
    OK,
    PID_STRUCT,
    DecodeSettings,
    parse_photo_error,
)
from vision.decoding.time_limits import PhotoTimer, TimeLimits
from vision.errors import PhotoDecoderCrashed, PhotoError
from vision.images import Photo, check_bytes, prepare_photo
from vision.runtime.lifetime import HEAP_VARIABLES

__all__ = ["MAX_MEMORY_BYTES", "DecodeWorker", "Decoder", "ForkServer", "InlineDecoder", "create_crash_error"]

MAX_MEMORY_BYTES = 2 << 30
"""Address space of a worker; the largest photos within the limits take 0.8 GiB."""
_START_TIMEOUT_S = 60.0


def create_crash_error() -> PhotoDecoderCrashed:
    return PhotoDecoderCrashed("it crashed the decoder; save it again as JPEG")


@dataclass(eq=False)
class DecodeWorker:
    """One decoding process: write a photo, wait until `sock`, which never blocks, is readable, read the result."""

    sock: socket.socket
    pid: int
    memory: mmap.mmap
    pidfd: int
    side_px: int

    def write(self, data: bytes | memoryview) -> None:
        """Send it a photo within the limit of bytes. Raises OSError: it has died."""
        self.memory[: len(data)] = data
        self.sock.send(NUM_BYTES_STRUCT.pack(len(data)))

    def read(self) -> Photo | PhotoError | None:
        """The decoded photo or what was wrong with it; None: the worker has died.

        Raises:
            BlockingIOError: the worker has not responded yet.
        """
        try:
            response = self.sock.recv(MAX_RESPONSE_BYTES)
        except ConnectionError:
            return None
        if not response:
            return None
        if response != OK:
            return parse_photo_error(response)
        pixels: npt.NDArray[np.uint8] = np.frombuffer(self.memory[: 3 * self.side_px**2], np.uint8)
        return pixels.reshape(self.side_px, self.side_px, 3)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        os.close(self.pidfd)
        self.sock.close()
        self.memory.close()


class ForkServer:
    """The process that forks decode workers; the first fork starts it."""

    def __init__(self, settings: DecodeSettings, python: Sequence[str], *, path: Path) -> None:
        """Args: python: command that runs Python; path: folder of the package `vision`."""
        self._settings = settings
        self._python = python
        self._path = path
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def fork(self) -> DecodeWorker:
        """Start a worker. Raises OSError: it failed; the next call starts another fork server."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory_fd = os.memfd_create("listing-vision-photo")
        try:
            os.ftruncate(memory_fd, self._settings.shared_memory_bytes)
            memory = mmap.mmap(memory_fd, self._settings.shared_memory_bytes)
            with self._lock:
                pid = self._request_fork([theirs.fileno(), memory_fd])
            ours.setblocking(False)
            return DecodeWorker(ours, pid, memory, os.pidfd_open(pid), self._settings.preprocessing.input_px)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory_fd)

    def close(self) -> None:
        with self._lock:
            self._terminate()

    def _request_fork(self, descriptors: list[int]) -> int:
        if self._sock is None:
            self._sock = self._start()
        try:
            socket.send_fds(self._sock, [self._settings.to_json().encode()], descriptors)
            response = self._sock.recv(PID_STRUCT.size)
        except OSError:
            response = b""
        if not response:
            self._terminate()
            raise ConnectionResetError("the fork server has died")
        pid: int = PID_STRUCT.unpack(response)[0]
        return pid

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_TIMEOUT_S)
        with theirs:
            self._process = subprocess.Popen(
                [*self._python, "-m", "vision.decoding.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=self._path,
                # Threads of a pool would not survive the fork.
                env={**HEAP_VARIABLES, **os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        return ours

    def _terminate(self) -> None:
        if self._sock:
            self._sock.close()
            self._sock = None
        if self._process:
            self._process.wait()


class Decoder:
    """One decode worker for one caller; a worker that dies is replaced."""

    def __init__(
        self,
        fork_server: ForkServer,
        settings: DecodeSettings,
        *,
        time_limits: TimeLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fork_server = fork_server
        self._limits = settings.limits
        self._time_limits = time_limits or TimeLimits()
        self._clock = clock
        self._rejection: PhotoError | None = None
        self._timer: PhotoTimer | None = None
        self._worker = self._fork_worker()

    @property
    def pidfd(self) -> int:
        """File descriptor of the worker's process."""
        return self._worker.pidfd

    def fileno(self) -> int:
        """The descriptor that is readable once the worker has responded or died."""
        return self._worker.sock.fileno()

    @property
    def next_check_s(self) -> float:
        """Seconds after which to call `poll` although the worker has not responded."""
        return self._timer.next_check_s if self._timer else 0.0

    def begin(self, data: bytes | memoryview, *, deadline_s: float = float("inf"), yields: bool = False) -> None:
        """Start decoding a photo; the caller is free until it calls `end`.

        If the caller has failed between `begin` and `end`, the worker is replaced, so that the pixels of that photo are
        not returned for the next one.

        Args:
            data: encoded.
            deadline_s: on the clock; when the machine counts as busy, if not before by the limit of one photo.
            yields: whether the worker yields the cores to others once the photo takes long. Only root can raise a
                priority again, so it is then replaced.
        """
        if self._timer:
            self._replace_worker()
            self._timer = None
        self._rejection = None
        try:
            check_bytes(data, self._limits)
        except PhotoError as error:
            self._rejection = error
        else:
            self._write(data, deadline_s, yields=yields)

    def poll(self) -> Photo | PhotoError | None:
        """The decoded photo, or what was wrong with it; None: it is still being decoded."""
        if self._rejection:
            return self._rejection
        assert self._timer
        result: Photo | PhotoError | None
        try:
            result = self._worker.read()
        except BlockingIOError:
            result = self._timer.check()
            if result is None:
                return None
            self._replace_worker()
        else:
            if result is None or self._timer.has_yielded:
                self._replace_worker()
            if result is None:
                result = create_crash_error()
        self._timer = None
        return result

    def end(self) -> Photo | PhotoError:
        """The decoded photo, or what was wrong with it."""
        responses = select.poll()
        responses.register(self, select.POLLIN)
        while (result := self.poll()) is None:
            responses.poll(1000 * self.next_check_s)
        return result

    def close(self) -> None:
        self._worker.close()
        self._fork_server.close()

    def _write(self, data: bytes | memoryview, deadline_s: float, *, yields: bool) -> None:
        try:
            self._begin_timer(deadline_s, yields=yields)
            self._worker.write(data)
        except OSError:  # it died while idle, so this photo is not the cause
            self._replace_worker()
            self._begin_timer(deadline_s, yields=yields)
            self._worker.write(data)

    def _begin_timer(self, deadline_s: float, *, yields: bool) -> None:
        self._timer = PhotoTimer(
            self._worker.pid, self._time_limits, deadline_s=deadline_s, yields=yields, clock=self._clock
        )

    def _replace_worker(self) -> None:
        successor = self._fork_worker()
        self._worker.close()
        self._worker = successor

    def _fork_worker(self) -> DecodeWorker:
        try:
            return self._fork_server.fork()
        except ConnectionResetError:  # the fork server had died; this starts another one
            return self._fork_server.fork()


class InlineDecoder:
    """Like `Decoder`, without isolation: a photo may crash the caller."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._data: bytes | memoryview = b""

    def begin(self, data: bytes | memoryview) -> None:
        self._data = data

    def end(self) -> Photo | PhotoError:
        try:
            return prepare_photo(bytes(self._data), self._settings.preprocessing, self._settings.limits)
        except PhotoError as error:
            return error

    def close(self) -> None:
        """Do nothing: there is no process to end."""
