"""Starts the fork server (`serving.decoding.fork_server`), has it fork decode workers, and sends each a photo at a
time.

Its calls block. Triton's Python backend decodes with it too, so it imports only packages that exist there.
"""

import contextlib
import mmap
import os
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

from serving.decoding.fork_server import (
    MAX_RESPONSE_BYTES,
    NUM_BYTES_STRUCT,
    OK,
    PID_STRUCT,
    DecodeSettings,
    parse_photo_error,
)
from vision.errors import PhotoDecoderCrashed, PhotoError, PhotoTimedOut
from vision.images import Photo, check_bytes, prepare_photo

__all__ = [
    "LISTING_TIMEOUT_S",
    "MAX_MEMORY_BYTES",
    "PHOTO_TIMEOUT_S",
    "DecodeWorker",
    "Decoder",
    "ForkServer",
    "InlineDecoder",
    "create_crash_error",
    "create_timeout_error",
]

PHOTO_TIMEOUT_S = 1.5
"""For one photo in a worker, so that any bytes have a result within two seconds.

Photos of phones take a hundredth of it; a noisy 48-megapixel HEIC may take longer and is refused.
"""
LISTING_TIMEOUT_S = 3.0
"""For the photos of one listing that an instance of the model decodes one after another; later photos are not begun.

Twenty photos that each take all their time would otherwise block the instance for half a minute.
"""
MAX_MEMORY_BYTES = 2 << 30
"""Address space of a worker; the largest photos within the limits take 0.8 GiB."""
_START_TIMEOUT_S = 60.0
_MIN_WAIT_S = 0.001
"""A timeout of 0 would make a socket non-blocking."""


def create_timeout_error(timeout_s: float) -> PhotoTimedOut:
    return PhotoTimedOut(f"decoding took longer than {timeout_s:g} s; save it again as JPEG")


def create_crash_error() -> PhotoDecoderCrashed:
    return PhotoDecoderCrashed("it crashed the decoder; save it again as JPEG")


@dataclass(eq=False)
class DecodeWorker:
    """One decoding process: write a photo, wait until `sock` is readable, read the result."""

    sock: socket.socket
    memory: mmap.mmap
    pidfd: int
    side_px: int

    def write(self, data: bytes | memoryview) -> None:
        """Send it a photo within the limit of bytes. Raises OSError: it has died."""
        self.memory[: len(data)] = data
        self.sock.send(NUM_BYTES_STRUCT.pack(len(data)))

    def read(self) -> Photo | PhotoError | None:
        """The decoded photo or what was wrong with it; None: the worker has died, or not responded in time."""
        try:
            response = self.sock.recv(MAX_RESPONSE_BYTES)
        except (ConnectionError, TimeoutError):  # TimeoutError: of a socket that has a timeout
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
        """Args: python: command that runs Python; path: folder of the packages `serving` and `vision`."""
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
            return DecodeWorker(ours, memory, os.pidfd_open(pid), self._settings.preprocessing.input_px)
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
                [*self._python, "-m", "serving.decoding.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=self._path,
                # Threads of a pool would not survive the fork.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        return ours

    def _terminate(self) -> None:
        if self._sock:
            self._sock.close()
            self._sock = None
        if self._process:
            self._process.wait()


class Decoder:
    """One decode worker for one caller, who waits for it; a worker that dies is replaced."""

    def __init__(
        self,
        fork_server: ForkServer,
        settings: DecodeSettings,
        *,
        timeout_s: float = PHOTO_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fork_server = fork_server
        self._limits = settings.limits
        self._timeout_s = timeout_s
        self._clock = clock
        self._rejection: PhotoError | None = None
        self._in_progress = False
        self._deadline_s = 0.0
        self._worker = self._fork_worker()

    @property
    def pidfd(self) -> int:
        """File descriptor of the worker's process."""
        return self._worker.pidfd

    def begin(self, data: bytes | memoryview) -> None:
        """Start decoding a photo; the caller is free until it calls `end`.

        If the caller has failed between `begin` and `end`, the worker is replaced, so that the pixels of that photo are
        not returned for the next one.
        """
        if self._in_progress:
            self._replace_worker()
            self._in_progress = False
        self._rejection = None
        try:
            check_bytes(data, self._limits)
        except PhotoError as error:
            self._rejection = error
        else:
            self._write(data)
            self._in_progress, self._deadline_s = True, self._clock() + self._timeout_s

    def end(self) -> Photo | PhotoError:
        """The decoded photo, or what was wrong with it."""
        if self._rejection:
            return self._rejection
        # The time counts from `begin`: of several photos that are decoded at once, all have the same time.
        self._worker.sock.settimeout(max(self._deadline_s - self._clock(), _MIN_WAIT_S))
        result = self._worker.read()
        if result is None:
            result = create_crash_error() if self._replace_and_check_exited() else create_timeout_error(self._timeout_s)
        self._in_progress = False
        return result

    def close(self) -> None:
        self._worker.close()
        self._fork_server.close()

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._worker.write(data)
        except OSError:  # it died while idle, so this photo is not the cause
            self._replace_worker()
            self._worker.write(data)

    def _replace_and_check_exited(self) -> bool:
        """Replace the worker; return whether it had ended by itself."""
        self._worker.sock.setblocking(False)
        try:
            ended = self._worker.sock.recv(1) == b""
        except BlockingIOError:
            ended = False
        except OSError:
            ended = True
        self._replace_worker()
        return ended

    def _replace_worker(self) -> None:
        successor = self._fork_worker()
        self._worker.close()
        self._worker = successor

    def _fork_worker(self) -> DecodeWorker:
        try:
            worker = self._fork_server.fork()
        except ConnectionResetError:  # the fork server had died; this starts another one
            worker = self._fork_server.fork()
        worker.sock.settimeout(self._timeout_s)
        return worker


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
