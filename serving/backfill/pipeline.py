"""Classify the photos of shards, which feeders read and decode.

Shards overlap: photos of the next one are read while those of the last one are in the model, so no core runs dry.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serving.backfill.plan import ShardPhotos
from vision.engine import Logits
from vision.errors import FeederError
from vision.feeders.photo_reader import PhotoFailure
from vision.feeders.pool import FeederPool, FilledSlab
from vision.photo_files import resolve_photo_url

__all__ = ["Pipeline", "ShardLogits", "Task", "WaitTimes"]

MAX_OPEN_SHARDS = 8
"""Shards that are open or not yet taken; bounds memory where results are written slowly."""
_POLL_INTERVAL_S = 0.5
"""Interval at which waiting threads check whether to stop."""


class WaitTimes:
    """Seconds that threads and decoders spent waiting, by what for; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    def add(self, what: str, seconds: float) -> None:
        with self._lock:
            self._seconds[what] = self._seconds.get(what, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        with self._lock:
            return dict(self._seconds)


@dataclass(frozen=True, kw_only=True)
class ShardLogits:
    """A shard whose photos are all classified or failed."""

    shard: ShardPhotos
    logits: Logits
    """Logits of the photos without failure, in their order."""
    failures: dict[int, PhotoFailure]
    """Failures by photo."""
    seconds: float
    """Time since the shard was opened."""


@dataclass(eq=False)
class _Run:
    """One call of `Pipeline.run`."""

    results: "queue.SimpleQueue[_OpenShard | BaseException | None]" = field(default_factory=queue.SimpleQueue)
    shard_slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_OPEN_SHARDS))
    """Shards in the pipeline, completed ones that are not taken included."""
    closed: threading.Event = field(default_factory=threading.Event)
    num_open_shards: int = 1
    """One more until all are submitted."""


@dataclass(eq=False)
class _OpenShard:
    run: _Run
    shard: ShardPhotos
    num_remaining: int
    logits: Logits | None = None
    """Those of all photos; allocated with the first result."""
    failures: dict[int, PhotoFailure] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    def to_shard_logits(self) -> ShardLogits:
        logits = self.logits or _NO_LOGITS
        if self.logits and self.failures:
            usable = np.setdiff1d(np.arange(len(self.shard.photos)), list(self.failures))
            logits = Logits(*(part[usable] for part in self.logits))
        seconds = time.monotonic() - self.began_s
        return ShardLogits(shard=self.shard, logits=logits, failures=self.failures, seconds=seconds)


_NO_LOGITS = Logits(*(np.zeros((0, 0), np.float32) for _ in Logits._fields))

Task: TypeAlias = tuple[_OpenShard, int]
"""The shard of a slab's photos, and the first of them."""


class Pipeline:
    """Runs the model on the slabs that feeders fill."""

    def __init__(
        self,
        feeders: FeederPool[Task],
        infer: Callable[[npt.NDArray[np.uint8]], Logits],
        *,
        num_infer_threads: int,
        slab_photos: int,
        max_batch_size: int,
        stop: threading.Event,
        wait_times: WaitTimes,
    ) -> None:
        """Args:
        infer: returns the logits of (P, S, S, 3) uint8 photos; called from `num_infer_threads` threads.
        slab_photos: most photos of the feeders' slabs.
        max_batch_size: maximum P.
        stop: when set, runs end as soon as they can; open shards are lost.
        """
        self._feeders = feeders
        self._infer = infer
        self._slab_photos = slab_photos
        self._max_batch_size = max_batch_size
        self._stop = stop
        self._wait_times = wait_times
        self._lock = threading.Lock()
        self._runs: set[_Run] = set()
        self._failure: Exception | None = None
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._infer_slabs, name="model", daemon=True) for _ in range(num_infer_threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, shards: Iterable[ShardPhotos], *, base_url: str) -> Iterator[ShardLogits]:
        """Yield each shard once all its photos are classified or failed, in any order; safe to call from many threads.

        Args:
            shards: iterated by a thread of the run.
            base_url: folder or URL that relative photo paths start from.

        Raises:
            FeederError: feeders die repeatedly, or the machine remains too busy to decode.
            Exception: what reading shards or the model raised; a photo's failure raises nothing.
        """
        run = _Run()
        with self._lock:
            if self._failure:
                raise self._failure
            self._runs.add(run)
        thread = threading.Thread(target=self._submit_shards, args=(run, shards, base_url), name="submit", daemon=True)
        thread.start()
        try:
            while not self._stop.is_set():
                try:
                    found = run.results.get(timeout=_POLL_INTERVAL_S)
                except queue.Empty:
                    continue
                if found is None:
                    return
                if isinstance(found, BaseException):
                    raise found
                yield found.to_shard_logits()
                run.shard_slots.release()
        finally:
            run.closed.set()
            with self._lock:
                self._runs.discard(run)
            thread.join()

    def close(self) -> None:
        """End the threads."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _submit_shards(self, run: _Run, shards: Iterable[ShardPhotos], base_url: str) -> None:
        try:
            for shard in shards:
                while not run.shard_slots.acquire(timeout=_POLL_INTERVAL_S):
                    if self._has_ended(run):
                        return
                work = _OpenShard(run, shard, num_remaining=len(shard.photos))
                with self._lock:
                    run.num_open_shards += 1
                for first in range(0, len(shard.photos), self._slab_photos):
                    photos = shard.photos[first : first + self._slab_photos]
                    urls = [resolve_photo_url(base_url, photo) for photo in photos]
                    while not self._feeders.submit(urls, (work, first), timeout_s=_POLL_INTERVAL_S):
                        if self._has_ended(run):
                            return
                    if self._has_ended(run):
                        return
            self._close_shard(run)
        except BaseException as error:
            run.results.put(error)

    def _infer_slabs(self) -> None:
        while not self._closed.is_set():
            began_s = time.monotonic()
            try:
                slab = self._feeders.take(timeout_s=_POLL_INTERVAL_S)
            except (FeederError, OSError) as error:
                self._fail(error)
                continue
            if self._runs:
                self._wait_times.add("decode", time.monotonic() - began_s)
            if slab is not None:
                self._infer_slab(slab)

    def _infer_slab(self, slab: FilledSlab[Task]) -> None:
        work, first = slab.key
        try:
            if self._has_ended(work.run):
                return
            for what, seconds in slab.wait_times_s.items():
                self._wait_times.add(what, seconds)
            for begin in range(0, len(slab.places), self._max_batch_size):
                batch = slice(begin, begin + self._max_batch_size)
                self._write(work, first + slab.places[batch], self._infer(slab.photos_nhwc[batch]))
        except BaseException as error:
            work.run.results.put(error)
            return
        finally:
            slab.release()
        with self._lock:
            work.failures |= {first + place: failure for place, failure in slab.failures.items()}
            work.num_remaining -= len(slab.places) + len(slab.failures)
            is_complete = not work.num_remaining
        if is_complete:
            work.run.results.put(work)
            self._close_shard(work.run)

    def _write(self, work: _OpenShard, rows: npt.NDArray[np.int64], logits: Logits) -> None:
        """Write the logits of some photos of the shard."""
        with self._lock:
            if work.logits is None:
                shapes = [(len(work.shard.photos), *part.shape[1:]) for part in logits]
                work.logits = Logits(*(np.empty(shape, np.float32) for shape in shapes))
        for target, part in zip(work.logits, logits, strict=True):
            target[rows] = part

    def _close_shard(self, run: _Run) -> None:
        """Count down; end the run after its last shard."""
        with self._lock:
            run.num_open_shards -= 1
            is_last = not run.num_open_shards
        if is_last:
            run.results.put(None)

    def _fail(self, error: Exception) -> None:
        """End all runs, those to come included: a feeder is gone for good."""
        with self._lock:
            self._failure = error
            for run in self._runs:
                run.results.put(error)

    def _has_ended(self, run: _Run) -> bool:
        return run.closed.is_set() or self._stop.is_set() or self._closed.is_set()
