"""Encoded photos to the model's input in the gateway, in child processes that a photo may crash without harm."""

import asyncio
import logging
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from serving.api.responses import PREPARE_LIMITS, PreparedPhoto, prepare, refused_unread
from serving.decoding.fork_client import MAX_MEMORY_BYTES, TIMEOUT_S, Child, Nursery, crashed, timed_out
from serving.decoding.fork_server import Settings
from vision.errors import PhotoError
from vision.images import Preprocessing

__all__ = ["DecoderPool", "DecoderThreads"]

_log = logging.getLogger(__name__)

_RESTART_PAUSE_S = 0.5


@dataclass(eq=False)
class _Job:
    data: bytes
    done: "asyncio.Future[PreparedPhoto]"


@dataclass(eq=False)
class _Worker:
    child: Child
    job: _Job | None = None
    timer: asyncio.TimerHandle | None = None
    timed_out: bool = False

    def close(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.child.close()


@dataclass(eq=False)
class DecoderPool:
    """`num_children` processes that decode a photo each at a time; those beyond wait here, where they can be dropped.

    Processes are started by the first photo, or by `start`. Use it in one running loop, and close it.
    """

    preprocessing: Preprocessing
    num_children: int
    timeout_s: float = TIMEOUT_S
    max_memory_bytes: int = MAX_MEMORY_BYTES
    num_lost: int = field(default=0, init=False)
    """Children that a photo crashed or that were killed over one."""

    def __post_init__(self) -> None:
        settings = Settings(
            preprocessing=self.preprocessing, limits=PREPARE_LIMITS, max_memory_bytes=self.max_memory_bytes
        )
        self._nursery = Nursery(settings, [sys.executable], path=Path(__file__).resolve().parents[2])
        self._waiting: deque[_Job] = deque()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._num_wanted = 0
        self._closed = False

    async def start(self) -> None:
        """Return once all children are there."""
        self._start_missing()
        await asyncio.gather(*self._starting)

    async def prepare(self, data: bytes) -> PreparedPhoto:
        """The model's input for one encoded photo, or what was wrong with it; never raises a PhotoError.

        Cancelled while it waits for a child it costs nothing more; in a child it runs to its end.
        """
        if error := refused_unread(data):
            return PreparedPhoto(None, error)
        self._start_missing()
        job = _Job(data, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._hand_out()
        return await job.done

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def pidfds(self) -> list[int]:
        """Of the children that are there."""
        return [worker.child.pidfd for worker in self._workers]

    async def close(self) -> None:
        """End all children; whatever still waits is cancelled."""
        self._closed = True
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for worker in self._workers:
            if worker.job:
                worker.job.done.cancel()
            asyncio.get_running_loop().remove_reader(worker.child.sock)
            worker.close()
        for job in self._waiting:
            job.done.cancel()
        self._workers.clear()
        self._idle.clear()
        self._waiting.clear()
        await asyncio.to_thread(self._nursery.close)

    def _start_missing(self) -> None:
        while self._num_wanted < self.num_children:
            self._num_wanted += 1
            self._start_one()

    def _start_one(self) -> None:
        task = asyncio.get_running_loop().create_task(self._add_worker())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _add_worker(self) -> None:
        while not self._closed:
            try:
                worker = _Worker(await asyncio.to_thread(self._nursery.fork))
                break
            except OSError as error:  # the nursery itself has died, or the machine is out of something
                _log.error("no new decoder child: %s; trying again", error)
                await asyncio.sleep(_RESTART_PAUSE_S)
        else:
            return
        worker.child.sock.setblocking(False)
        self._workers.add(worker)
        self._idle.append(worker)
        asyncio.get_running_loop().add_reader(worker.child.sock, self._on_answer, worker)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            job = self._waiting.popleft()
            if job.done.done():  # given up while it waited
                continue
            worker = self._idle.pop()
            try:
                worker.child.write(job.data)
            except OSError:  # it died idle, so it was not this photo's doing
                self._waiting.appendleft(job)
                self._lose(worker)
                continue
            worker.job = job
            worker.timer = asyncio.get_running_loop().call_later(self.timeout_s, self._time_out, worker)

    def _on_answer(self, worker: _Worker) -> None:
        try:
            found = worker.child.read()
        except BlockingIOError:
            return
        if found is None:
            self._lose(worker)
            return
        job, worker.job = worker.job, None
        assert job is not None
        assert worker.timer is not None
        worker.timer.cancel()
        if not job.done.done():
            photo = PreparedPhoto(None, found) if isinstance(found, PhotoError) else PreparedPhoto(found, None)
            job.done.set_result(photo)
        if not worker.timed_out:  # else it answered at the last moment and is being killed; its socket's end comes next
            self._idle.append(worker)
            self._hand_out()

    def _time_out(self, worker: _Worker) -> None:
        worker.timed_out = True
        worker.child.kill()  # its socket's end is met in _on_answer

    def _lose(self, worker: _Worker) -> None:
        """A child has ended: its photo gets the blame, and another child takes its place."""
        asyncio.get_running_loop().remove_reader(worker.child.sock)
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        job, worker.job = worker.job, None
        worker.close()
        if job:
            self.num_lost += 1
            error = timed_out(self.timeout_s) if worker.timed_out else crashed()
            _log.warning("a decoder child is replaced: %s, photo of %d bytes", error.reason, len(job.data))
            if not job.done.done():
                job.done.set_result(PreparedPhoto(None, error))
        if not self._closed:
            self._start_one()


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
