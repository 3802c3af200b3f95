"""Decoding in the gateway: encoded photos to the model's input, in decode workers that a photo may crash without
harm."""

import asyncio
import logging
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from serving.decoding.prepared import PHOTO_LIMITS, PreparedPhoto, prepare
from vision.decoding.fork_client import (
    MAX_MEMORY_BYTES,
    DecodeWorker,
    ForkServer,
    create_crash_error,
)
from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import PhotoTimer, TimeLimits
from vision.errors import PhotoError
from vision.images import EncodedPhoto, PhotoLimits, Preprocessing, check_bytes

__all__ = ["DecoderPool", "DecoderThreads"]

_log = logging.getLogger(__name__)

_RESTART_DELAY_S = 0.5
_TIME_LIMITS = TimeLimits(wall_s=30.0)
"""A photo here holds a decode worker and no model, so it may wait for a core as long as a call without a deadline."""


@dataclass(eq=False)
class _Job:
    data: EncodedPhoto
    future: "asyncio.Future[PreparedPhoto]"


@dataclass(eq=False)
class _WorkerSlot:
    worker: DecodeWorker
    job: _Job | None = None
    next_check: asyncio.TimerHandle | None = None
    killed_for: PhotoError | None = None
    """Why it was killed, if it was."""

    def close(self) -> None:
        if self.next_check:
            self.next_check.cancel()
        self.worker.close()


@dataclass(eq=False)
class DecoderPool:
    """`num_workers` processes that each decode one photo at a time; further photos wait here, and can be cancelled.

    The first photo, or `start`, starts the processes. Use the pool in one running loop, and close it.
    """

    preprocessing: Preprocessing
    num_workers: int
    time_limits: TimeLimits = _TIME_LIMITS
    max_memory_bytes: int = MAX_MEMORY_BYTES
    limits: PhotoLimits = PHOTO_LIMITS
    num_workers_lost: int = field(default=0, init=False)
    """Workers that crashed on a photo, or were killed because it took too long."""

    def __post_init__(self) -> None:
        settings = DecodeSettings(
            preprocessing=self.preprocessing, limits=self.limits, max_memory_bytes=self.max_memory_bytes
        )
        self._fork_server = ForkServer(settings, [sys.executable], path=Path(__file__).resolve().parents[2])
        self._waiting: deque[_Job] = deque()
        self._idle: list[_WorkerSlot] = []
        self._workers: set[_WorkerSlot] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._num_requested = 0
        self._closed = False

    async def start(self) -> None:
        """Return once all workers run."""
        self._start_missing_workers()
        await asyncio.gather(*self._starting)

    async def prepare(self, data: EncodedPhoto) -> PreparedPhoto:
        """The model's input for one encoded photo, or what was wrong with it; never raises a PhotoError.

        A photo that is cancelled while it waits is never decoded; one that a worker has begun is decoded to its end.
        """
        try:
            check_bytes(data, self.limits)
        except PhotoError as error:
            return PreparedPhoto(None, error)
        self._start_missing_workers()
        job = _Job(data, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._dispatch()
        return await job.future

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_decoding(self) -> int:
        return sum(slot.job is not None for slot in self._workers)

    @property
    def pidfds(self) -> list[int]:
        """File descriptors of the workers that run."""
        return [slot.worker.pidfd for slot in self._workers]

    @property
    def fork_server_pid(self) -> int | None:
        return self._fork_server.pid

    async def close(self) -> None:
        """End all workers; photos that still wait are cancelled."""
        self._closed = True
        # Not cancelled: a thread that forks cannot be, and its worker would be left open.
        await asyncio.gather(*self._starting, return_exceptions=True)
        for slot in self._workers:
            if slot.job:
                slot.job.future.cancel()
            asyncio.get_running_loop().remove_reader(slot.worker.sock)
            slot.close()
        for job in self._waiting:
            job.future.cancel()
        self._workers.clear()
        self._idle.clear()
        self._waiting.clear()
        await asyncio.to_thread(self._fork_server.close)

    def _start_missing_workers(self) -> None:
        while self._num_requested < self.num_workers:
            self._num_requested += 1
            self._start_worker()

    def _start_worker(self) -> None:
        task = asyncio.get_running_loop().create_task(self._add_worker())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _add_worker(self) -> None:
        while not self._closed:
            try:
                slot = _WorkerSlot(await asyncio.to_thread(self._fork_server.fork))
                break
            except OSError as error:  # the fork server has died, or the machine lacks a resource
                _log.error("no new decode worker: %s; trying again", error)
                await asyncio.sleep(_RESTART_DELAY_S)
        else:
            return
        if self._closed:
            slot.close()
            return
        self._workers.add(slot)
        self._idle.append(slot)
        asyncio.get_running_loop().add_reader(slot.worker.sock, self._on_response, slot)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            job = self._waiting.popleft()
            if job.future.done():  # cancelled while it waited
                continue
            slot = self._idle.pop()
            try:
                timer = PhotoTimer(slot.worker.pid, self.time_limits)
                slot.worker.write(job.data)
            except OSError:  # it died while idle, so this photo is not the cause
                self._waiting.appendleft(job)
                self._on_worker_exit(slot)
                continue
            slot.job = job
            self._schedule_check(slot, timer)

    def _on_response(self, slot: _WorkerSlot) -> None:
        try:
            result = slot.worker.read()
        except BlockingIOError:
            return
        if result is None:
            self._on_worker_exit(slot)
            return
        job, slot.job = slot.job, None
        assert job is not None
        assert slot.next_check is not None
        slot.next_check.cancel()
        if not job.future.done():
            photo = PreparedPhoto(None, result) if isinstance(result, PhotoError) else PreparedPhoto(result, None)
            job.future.set_result(photo)
        if not slot.killed_for:  # otherwise it responded as it was being killed; the end of its socket comes next
            self._idle.append(slot)
            self._dispatch()

    def _schedule_check(self, slot: _WorkerSlot, timer: PhotoTimer) -> None:
        slot.next_check = asyncio.get_running_loop().call_later(timer.next_check_s, self._check_time, slot, timer)

    def _check_time(self, slot: _WorkerSlot, timer: PhotoTimer) -> None:
        slot.killed_for = timer.check()
        if slot.killed_for:
            slot.worker.kill()  # _on_response reads the end of its socket
        else:
            self._schedule_check(slot, timer)

    def _on_worker_exit(self, slot: _WorkerSlot) -> None:
        """A worker has ended: its photo gets the error, and another worker is started."""
        asyncio.get_running_loop().remove_reader(slot.worker.sock)
        self._workers.discard(slot)
        if slot in self._idle:
            self._idle.remove(slot)
        job, slot.job = slot.job, None
        slot.close()
        if job:
            self.num_workers_lost += 1
            error = slot.killed_for or create_crash_error()
            _log.warning("a decode worker is replaced: %s, photo of %d bytes", error.reason, len(job.data))
            if not job.future.done():
                job.future.set_result(PreparedPhoto(None, error))
        if not self._closed:
            self._start_worker()


class DecoderThreads:
    """Like `DecoderPool` on threads of this process, without isolation: a photo that hangs blocks its thread for
    ever."""

    def __init__(self, preprocessing: Preprocessing, num_threads: int) -> None:
        self._preprocessing = preprocessing
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def start(self) -> None:
        """Do nothing: threads need no start."""

    async def prepare(self, data: EncodedPhoto) -> PreparedPhoto:
        """The model's input for one encoded photo, or what was wrong with it; never raises a PhotoError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, prepare, data, self._preprocessing)

    async def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
