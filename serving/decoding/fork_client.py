"""The other side of `serving.decoding.fork_server`: starts the nursery, has children forked, hands one photo at a time
to each.

Blocking, and without any package that Triton's Python backend lacks: it decodes with this too.
"""

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
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
"""Of one photo in a child: so that any bytes at all are answered for within two seconds.

Photos as phones make them take a hundredth of it; a noisy 48-megapixel HEIC may take longer and is refused.
"""
LISTING_TIMEOUT_S = 3.0
"""Of the photos of one listing that a copy of the model decodes one after another: what comes after it is not begun.

Twenty photos that each take their whole time would hold the copy for half a minute.
"""
MAX_MEMORY_BYTES = 2 << 30
"""Of a child's address space; the largest photos within the limits take 0.8 GiB."""
_START_TIMEOUT_S = 60.0
_MIN_WAIT_S = 0.001
"""A socket takes 0 for something else."""


def create_timeout_error(timeout_s: float) -> PhotoTimedOut:
    return PhotoTimedOut(f"decoding took longer than {timeout_s:g} s; save it again as JPEG")


def create_crash_error() -> PhotoDecoderCrashed:
    return PhotoDecoderCrashed("it crashed the decoder; save it again as JPEG")


@dataclass(eq=False)
class DecodeWorker:
    """One decoding process: write, wait until `sock` can be read, read."""

    sock: socket.socket
    memory: mmap.mmap
    pidfd: int
    side_px: int

    def write(self, data: bytes | memoryview) -> None:
        """Hand it a photo of at most the limit of bytes. Raises OSError: it has died."""
        self.memory[: len(data)] = data
        self.sock.send(NUM_BYTES_STRUCT.pack(len(data)))

    def read(self) -> Photo | PhotoError | None:
        """The photo or what was wrong with it, as its answer says; None: it has died, or not answered in time."""
        try:
            response = self.sock.recv(MAX_RESPONSE_BYTES)
        except (ConnectionError, TimeoutError):  # for a socket with a time limit: or it has not answered in time
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
    """The process that forks children; started by the first."""

    def __init__(self, settings: DecodeSettings, python: Sequence[str], *, path: Path) -> None:
        """Args: python: that runs the nursery; path: where `serving` and `vision` lie."""
        self._settings = settings
        self._python = python
        self._path = path
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def fork(self) -> DecodeWorker:
        """A new child. Raises OSError: it could not be had; the nursery is started anew by the next call."""
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
            raise ConnectionResetError("the process that starts decoders has died")
        pid: int = PID_STRUCT.unpack(response)[0]
        return pid

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_TIMEOUT_S)
        with theirs:
            self.process = subprocess.Popen(
                [*self._python, "-m", "serving.decoding.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=self._path,
                # A thread pool in the nursery would not survive the fork.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        return ours

    def _terminate(self) -> None:
        if self._sock:
            self._sock.close()
            self._sock = None
        if self.process:
            self.process.wait()


class Decoder:
    """One child for one caller, who blocks; a child that dies over a photo is replaced."""

    def __init__(
        self, fork_server: ForkServer, settings: DecodeSettings, *, timeout_s: float = PHOTO_TIMEOUT_S
    ) -> None:
        self._fork_server = fork_server
        self._limits = settings.limits
        self._timeout_s = timeout_s
        self._rejection: PhotoError | None = None
        self._in_progress = False
        self._deadline_s = 0.0
        self._worker = self._fork_worker()

    def begin(self, data: bytes | memoryview) -> None:
        """Have a photo decoded, while the caller does something else until `end`.

        One that was begun and never ended, because its caller failed in between, is forgotten with its child: its
        pixels must not come out as the next photo's.
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
            self._in_progress, self._deadline_s = True, time.monotonic() + self._timeout_s

    def end(self) -> Photo | PhotoError:
        """The photo that was begun, or what was wrong with it."""
        if self._rejection:
            return self._rejection
        # From its begin on: of several that are decoded at once each would else have its time after the others'.
        self._worker.sock.settimeout(max(self._deadline_s - time.monotonic(), _MIN_WAIT_S))
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
        except OSError:  # it died idle, so it was not this photo's doing
            self._replace_worker()
            self._worker.write(data)

    def _replace_and_check_exited(self) -> bool:
        """Replace the child; whether it had ended by itself."""
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
        except ConnectionResetError:  # the nursery had died; the next one is its successor's
            worker = self._fork_server.fork()
        worker.sock.settimeout(self._timeout_s)
        return worker


class InlineDecoder:
    """As `Decoder`, with nothing isolated: a photo may take the caller with it."""

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
        """Nothing to end."""
