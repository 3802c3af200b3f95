"""Encoded photos to the model's input, in child processes that a photo may crash or hang without harm to others."""

import asyncio
import contextlib
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.answers import PREPARE_LIMITS, PreparedPhoto, prepare
from serving.decode_child import ANSWER_BYTES, NUM_BYTES, OK, PID, Settings, read_failure
from vision.errors import PhotoDecoderCrashed, PhotoError, PhotoTimedOut
from vision.images import Preprocessing

__all__ = ["DecoderPool", "DecoderThreads"]

_log = logging.getLogger(__name__)

TIMEOUT_S = 1.5
"""Of one photo in a child: so that any bytes at all are answered for within two seconds.

Photos as phones make them take a hundredth of it; a noisy 48-megapixel HEIC may take longer and is refused.
"""
MAX_MEMORY_BYTES = 2 << 30
"""Of a child's address space; a photo of 50 megapixels with transparency takes 0.9 GiB."""
_START_TIMEOUT_S = 60.0
_RESTART_PAUSE_S = 0.5


@dataclass(eq=False)
class _Job:
    data: bytes
    done: "asyncio.Future[PreparedPhoto]"


@dataclass(eq=False)
class _Child:
    sock: socket.socket
    memory: mmap.mmap
    pidfd: int
    job: _Job | None = None
    timer: asyncio.TimerHandle | None = None
    timed_out: bool = False

    def close(self) -> None:
        if self.timer:
            self.timer.cancel()
        # Closing its socket ends it once it has finished; a hanging one is killed.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)
        self.sock.close()
        self.memory.close()


@dataclass(eq=False)
class DecoderPool:
    """`num_children` processes that decode a photo each at a time; those beyond wait here, where they can be dropped.

    Start it in the running loop, and close it.
    """

    preprocessing: Preprocessing
    num_children: int
    timeout_s: float = TIMEOUT_S
    max_memory_bytes: int = MAX_MEMORY_BYTES
    num_lost: int = field(default=0, init=False)
    """Children that a photo crashed or that were killed over one."""

    def __post_init__(self) -> None:
        self._settings = Settings(
            preprocessing=self.preprocessing, limits=PREPARE_LIMITS, max_memory_bytes=self.max_memory_bytes
        )
        self._waiting: deque[_Job] = deque()
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._nursery: _Nursery | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Return once all children are there."""
        for _ in range(self.num_children):
            await self._add_child()

    async def prepare(self, data: bytes) -> PreparedPhoto:
        """The model's input for one encoded photo, or what was wrong with it; never raises a PhotoError.

        Cancelled while it waits for a child it costs nothing more; in a child it runs to its end.
        """
        if not 0 < len(data) <= PREPARE_LIMITS.max_bytes:
            return prepare(data, self.preprocessing)  # refused unread
        job = _Job(data, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._hand_out()
        return await job.done

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def close(self) -> None:
        """End all children; whatever still waits is cancelled."""
        self._closed = True
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for child in self._children:
            if child.job:
                child.job.done.cancel()
            asyncio.get_running_loop().remove_reader(child.sock)
            child.close()
        for job in self._waiting:
            job.done.cancel()
        self._children.clear()
        self._idle.clear()
        self._waiting.clear()
        if self._nursery:
            await self._nursery.close()

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            job = self._waiting.popleft()
            if job.done.done():  # given up while it waited
                continue
            child = self._idle.pop()
            child.job = job
            child.memory[: len(job.data)] = job.data
            child.timer = asyncio.get_running_loop().call_later(self.timeout_s, self._time_out, child)
            try:
                child.sock.send(NUM_BYTES.pack(len(job.data)))
            except OSError:  # it died idle, so it was not this photo's doing
                child.job = None
                self._waiting.appendleft(job)
                self._lose(child)

    def _on_answer(self, child: _Child) -> None:
        try:
            answer = child.sock.recv(ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if not answer:
            self._lose(child)
            return
        job, child.job = child.job, None
        assert job is not None
        assert child.timer is not None
        child.timer.cancel()
        if not job.done.done():
            job.done.set_result(self._read(child, answer))
        if not child.timed_out:  # else it answered at the last moment and is being killed: its socket's end comes next
            self._idle.append(child)
            self._hand_out()

    def _read(self, child: _Child, answer: bytes) -> PreparedPhoto:
        if answer != OK:
            return PreparedPhoto(None, read_failure(answer))
        side = self.preprocessing.input_px
        pixels: npt.NDArray[np.uint8] = np.frombuffer(child.memory[: 3 * side * side], np.uint8)
        return PreparedPhoto(pixels.reshape(side, side, 3), None)

    def _time_out(self, child: _Child) -> None:
        child.timed_out = True
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)  # its socket's end is met in _on_answer

    def _lose(self, child: _Child) -> None:
        """A child has ended: its photo gets the blame, and another child takes its place."""
        asyncio.get_running_loop().remove_reader(child.sock)
        self._children.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        job, child.job = child.job, None
        child.close()
        if job:
            self.num_lost += 1
            error: PhotoError
            if child.timed_out:
                error = PhotoTimedOut(f"decoding took longer than {self.timeout_s:g} s; save it again as JPEG")
            else:
                error = PhotoDecoderCrashed("it crashed the decoder; save it again as JPEG")
            _log.warning("a decoder child is replaced: %s, photo of %d bytes", error.reason, len(job.data))
            if not job.done.done():
                job.done.set_result(PreparedPhoto(None, error))
        if not self._closed:
            task = asyncio.get_running_loop().create_task(self._replace())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _replace(self) -> None:
        while not self._closed:
            try:
                return await self._add_child()
            except OSError as error:  # the nursery itself has died, or the machine is out of something
                _log.error("no new decoder child: %s; trying again", error)
                if self._nursery:
                    await self._nursery.close()
                    self._nursery = None
                await asyncio.sleep(_RESTART_PAUSE_S)

    async def _add_child(self) -> None:
        if self._nursery is None:
            self._nursery = _Nursery()
        child = await self._nursery.fork(self._settings)
        self._children.add(child)
        self._idle.append(child)
        asyncio.get_running_loop().add_reader(child.sock, self._on_answer, child)
        self._hand_out()


class _Nursery:
    """The process that forks children; one request at a time."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.decode_child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parent.parent,
                # A thread pool in the nursery would not survive the fork.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._lock = asyncio.Lock()

    async def fork(self, settings: Settings) -> _Child:
        """Raises OSError: the nursery has died."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        memory_fd = os.memfd_create("listing-vision-photo")
        try:
            os.ftruncate(memory_fd, settings.shared_bytes)
            memory = mmap.mmap(memory_fd, settings.shared_bytes)
            async with self._lock:
                socket.send_fds(self._sock, [settings.to_json().encode()], [theirs.fileno(), memory_fd])
                async with asyncio.timeout(_START_TIMEOUT_S):
                    answer = await asyncio.get_running_loop().sock_recv(self._sock, PID.size)
            if not answer:
                raise ConnectionResetError("the process that starts decoders has died")
            return _Child(ours, memory, os.pidfd_open(PID.unpack(answer)[0]))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory_fd)

    async def close(self) -> None:
        self._sock.close()
        await asyncio.to_thread(self._process.wait)


class DecoderThreads:
    """The same on threads of this process: nothing is isolated, and a photo that hangs holds its thread for ever."""

    def __init__(self, preprocessing: Preprocessing, num_threads: int) -> None:
        self._preprocessing = preprocessing
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def start(self) -> None:
        """Nothing to wait for."""

    async def prepare(self, data: bytes) -> PreparedPhoto:
        """As `DecoderPool.prepare`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, prepare, data, self._preprocessing)

    async def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
