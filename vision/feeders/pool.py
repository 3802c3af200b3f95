"""Feeders, seen from the process with the model: it submits photos and takes slabs of pixels."""

import logging
import math
import mmap
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from vision.decoding.fork_client import MAX_MEMORY_BYTES
from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import TimeLimits
from vision.errors import FeederError
from vision.feeders.photo_reader import PhotoFailure
from vision.feeders.protocol import READ_AHEAD, FeederSettings, FeedResult, FeedTask
from vision.images import PhotoLimits, Preprocessing
from vision.photo_files import PHOTO_TIMEOUT_S
from vision.runtime.lifetime import HEAP_VARIABLES

__all__ = ["FeederPool", "FilledSlab", "plan_feeders"]

_log = logging.getLogger(__name__)
_K = TypeVar("_K")
_ROOT = Path(__file__).resolve().parents[2]
DECODERS_PER_FEEDER = 8
MAX_DEATHS = 3
"""A feeder may die so often without filling a slab in between."""
DECODE_LIMITS = TimeLimits(wall_s=60.0)
"""There is time to wait for a busy machine; the CPU time of a photo is that of the service."""


@dataclass(eq=False)
class FilledSlab(Generic[_K]):
    """Pixels of a task; they may be used until `release`."""

    key: _K
    places: npt.NDArray[np.int64]
    """(P,) places of the usable photos in the task, ascending."""
    photos_nhwc: npt.NDArray[np.uint8]
    """(P, S, S, 3); a view of shared memory unless a photo has failed."""
    failures: dict[int, PhotoFailure]
    """Failures by place."""
    wait_times_s: dict[str, float]
    """Seconds that decoders waited: `read` for bytes, `model` for a slab to fill."""
    feeder: "_FeederProcess[_K]"
    slab: int

    def release(self) -> None:
        """Let the slab be filled again."""
        self.feeder.free.put((self.feeder, self.slab))


def plan_feeders(
    preprocessing: Preprocessing,
    *,
    num_decoders: int,
    slab_photos: int,
    num_taken: int,
    isolate: bool = True,
    photo_timeout_s: float = PHOTO_TIMEOUT_S,
    rendition_px: int | None = None,
    python: Sequence[str] = (sys.executable,),
) -> list[FeederSettings]:
    """Return the settings of the feeders of a machine.

    Args:
        preprocessing: what photos are decoded to.
        num_decoders: photos decoded at once, by all feeders together.
        slab_photos: most photos of a slab.
        num_taken: slabs that the caller uses at once.
        isolate: whether photos are decoded in decode workers; otherwise in the feeders, which a photo may then crash.
        photo_timeout_s: how long a server may take for a photo, all attempts together.
        rendition_px: short side of the photos if they are renditions; larger ones fail.
        python: command that runs Python.
    """
    num_feeders = math.ceil(num_decoders / DECODERS_PER_FEEDER) if isolate else num_decoders
    return [
        FeederSettings(
            decoding=DecodeSettings(
                preprocessing=preprocessing,
                limits=PhotoLimits(rendition_px=rendition_px),
                max_memory_bytes=MAX_MEMORY_BYTES,
            ),
            time_limits=DECODE_LIMITS,
            isolate=isolate,
            num_decoders=decoders,
            slab_photos=slab_photos,
            # One is filled while others are taken, and the photos that are read ahead have their places too.
            num_slabs=1 + math.ceil(num_taken / num_feeders) + math.ceil(READ_AHEAD * decoders / slab_photos),
            photo_timeout_s=photo_timeout_s,
            python=tuple(python),
        )
        for decoders in (len(range(feeder, num_decoders, num_feeders)) for feeder in range(num_feeders))
    ]


class FeederPool(Generic[_K]):
    """Processes that fill slabs of shared memory with decoded photos.

    Submit tasks and take slabs from any thread; a feeder that dies is replaced and its tasks are repeated.
    """

    def __init__(self, settings: Sequence[FeederSettings]) -> None:
        """Args: settings: those of each feeder."""
        self._free: queue.SimpleQueue[tuple[_FeederProcess[_K], int]] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[FilledSlab[_K] | Exception] = queue.SimpleQueue()
        self._feeders = [_FeederProcess(one, self._free, self._filled) for one in settings]
        for slab in range(max(one.num_slabs for one in settings)):  # in turns, so that all feeders begin
            for feeder, one in zip(self._feeders, settings, strict=True):
                if slab < one.num_slabs:
                    self._free.put((feeder, slab))

    def submit(self, urls: Sequence[str], key: _K, *, timeout_s: float) -> bool:
        """Have a feeder fill a slab; False: none has become free in time."""
        try:
            feeder, slab = self._free.get(timeout=timeout_s)
        except queue.Empty:
            return False
        feeder.submit(FeedTask(slab=slab, urls=tuple(urls)), key)
        return True

    def take(self, *, timeout_s: float) -> FilledSlab[_K] | None:
        """Return the next filled slab, in any order; None: there is none in time.

        Raises:
            FeederError: a feeder dies repeatedly, or the machine remains too busy to decode.
            OSError: the system starts no process.
        """
        try:
            found = self._filled.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    @property
    def pids(self) -> list[int]:
        return [feeder.process.pid for feeder in self._feeders]

    def close(self) -> None:
        """Kill the feeders, with which their decode workers end."""
        for feeder in self._feeders:
            feeder.close()


class _FeederProcess(Generic[_K]):
    def __init__(
        self,
        settings: FeederSettings,
        free: "queue.SimpleQueue[tuple[_FeederProcess[_K], int]]",
        filled: "queue.SimpleQueue[FilledSlab[_K] | Exception]",
    ) -> None:
        self.free = free
        self._filled = filled
        self._settings = settings
        # Anonymous: nothing of it is left when the last process that has it ends, however it ends.
        self._memory_fd = os.memfd_create("listing-vision-slabs")
        os.ftruncate(self._memory_fd, math.prod(settings.slabs_shape))
        self._slabs = settings.view_slabs(memoryview(mmap.mmap(self._memory_fd, 0)))
        self._lock = threading.Lock()
        """Held to send, and to replace the process."""
        self._tasks: dict[int, tuple[FeedTask, _K]] = {}
        self._num_deaths = 0
        self._closed = False
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="feeder", daemon=True)
        self._thread.start()
        started.result()

    def submit(self, task: FeedTask, key: _K) -> None:
        with self._lock:
            self._tasks[task.slab] = task, key
            self._send(task)

    def close(self) -> None:
        self._closed = True
        self.process.kill()  # at once: whoever waits to send to it holds the lock
        with self._lock:
            self.process.kill()  # it may have been replaced meanwhile
        self._thread.join()
        self.process.wait()
        self._connection.close()
        os.close(self._memory_fd)
        del self._slabs

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        descriptors = [theirs.fileno(), self._memory_fd]
        with theirs:
            self.process = subprocess.Popen(
                [*self._settings.python, "-P", "-m", "vision.feeders.feeder", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                # Threads that read would otherwise each keep a heap of their own.
                env={**HEAP_VARIABLES, "MALLOC_ARENA_MAX": "1", **os.environ, "PYTHONPATH": _find_python_path()},
            )
        self._send(self._settings)

    def _send(self, message: FeederSettings | FeedTask) -> None:
        with suppress(OSError):  # it has died; its successor gets all of it
            self._connection.send_bytes(message.to_json())

    def _run(self, started: "Future[None]") -> None:
        # From a thread that lasts: the kernel ends a feeder with the thread that has started it.
        try:
            self._start()
        except OSError as error:
            self._connection.close()
            os.close(self._memory_fd)
            started.set_exception(error)
        else:
            started.set_result(None)
            self._receive()

    def _receive(self) -> None:
        """Hand on what the feeder has filled, and replace it when it ends."""
        while not self._closed:
            try:
                result = FeedResult.from_json(self._connection.recv_bytes())
            except (EOFError, OSError):
                try:
                    self._restart()
                except (FeederError, OSError) as error:
                    self._filled.put(error)
                    return
            else:
                if result.error:
                    self._filled.put(FeederError(result.error))
                    return
                self._num_deaths = 0
                self._on_result(result)

    def _on_result(self, result: FeedResult) -> None:
        # Without the lock: the feeder may wait for this thread while another one waits to send to it.
        task, key = self._tasks.pop(result.slab)
        photos = self._slabs[result.slab, : len(task.urls)]
        places = np.array([place for place in range(len(task.urls)) if place not in result.failures], np.int64)
        if result.failures:
            photos = photos[places]
        self._filled.put(FilledSlab(key, places, photos, result.failures, result.wait_times_s, self, result.slab))

    def _restart(self) -> None:
        """Replace the process, which has ended; its successor gets its tasks. Raises FeederError: it ends each time."""
        status = self.process.wait()
        with self._lock:
            if self._closed:
                return
            self._connection.close()
            self._num_deaths += 1
            first = next((task.urls[0] for task, _ in self._tasks.values()), "no photo")
            if self._num_deaths == MAX_DEATHS:
                raise FeederError(f"a feeder has ended {MAX_DEATHS} times in a row, status {status}, last at {first}")
            _log.warning("a feeder has ended with status %d and is replaced; its photos are read again", status)
            self._start()
            for task, _ in self._tasks.values():
                self._send(task)


def _find_python_path() -> str:
    return f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
