"""Read, decode and classify the photos of shards on threads of their own, with short queues between the stages.

Shards overlap: photos of the next one are read while those of the last one are in the model, so no stage runs dry.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from serving.backfill.plan import ShardPhotos
from serving.errors import BackfillError
from vision.engine import Logits
from vision.errors import PhotoDecoderCrashed, PhotoError, PhotoServiceBusy, PhotoTimedOut
from vision.feeders.photo_reader import PhotoFailure, PhotoReader
from vision.images import Photo

__all__ = [
    "NO_LOGITS",
    "READERS_PER_DECODER",
    "PhotoDecoder",
    "Pipeline",
    "ShardLogits",
    "WaitTimes",
    "decode_with_retry",
]

READERS_PER_DECODER = 8
"""Photos read at once: a core decodes a hundred per second, and object storage takes 0.1 s for each."""
MAX_OPEN_SHARDS = 8
"""Shards that are open or not yet taken; bounds memory where results are written slowly."""
MAX_BUSY_ATTEMPTS = 10
"""Attempts to decode a photo on a machine that is too busy for it, before the backfill ends."""
_POLL_INTERVAL_S = 0.5
"""Interval at which waiting threads check whether to stop."""

_T = TypeVar("_T")


class PhotoDecoder(Protocol):
    """Decodes a photo at a time."""

    def begin(self, data: bytes | memoryview) -> None: ...

    def end(self) -> Photo | PhotoError: ...

    def close(self) -> None: ...


class WaitTimes:
    """Seconds that threads spent waiting, by what for; safe to use from many threads."""

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
class _OpenShard:
    shard: ShardPhotos
    began_s: float = field(default_factory=time.monotonic)
    rows: dict[int, tuple[npt.NDArray[np.float32], ...]] = field(default_factory=dict)
    failures: dict[int, PhotoFailure] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return len(self.rows) + len(self.failures) == len(self.shard.photos)

    def to_shard_logits(self) -> ShardLogits:
        ordered = [self.rows[photo] for photo in sorted(self.rows)]
        logits = Logits(*(np.stack(part) for part in zip(*ordered, strict=True))) if ordered else NO_LOGITS
        seconds = time.monotonic() - self.began_s
        return ShardLogits(shard=self.shard, logits=logits, failures=self.failures, seconds=seconds)


NO_LOGITS = Logits(*(np.zeros((0, 0), np.float32) for _ in Logits._fields))


class _EncodedPhoto(NamedTuple):
    work: _OpenShard
    photo: int
    data: bytes


class _DecodedPhoto(NamedTuple):
    work: _OpenShard
    photo: int
    pixels: Photo


class _Stopped(Exception):
    pass


def decode_with_retry(
    decoder: PhotoDecoder, data: bytes, *, raise_if_stopped: Callable[[], None] = lambda: None
) -> Photo | PhotoFailure:
    """Return the photo, or why it cannot be used.

    A decoder may crash because of the machine, and its CPU time grows where cores are shared; only the second time the
    photo is blamed. A machine that is too busy is never stored as the photo's failure.

    Args:
        decoder: it must not be decoding.
        data: encoded.
        raise_if_stopped: called before a photo is decoded again.

    Raises:
        BackfillError: the machine remains too busy to decode it.
    """
    may_blame_photo = False
    for _ in range(MAX_BUSY_ATTEMPTS):
        decoder.begin(data)
        found = decoder.end()
        if not isinstance(found, PhotoError):
            return found
        if not isinstance(found, PhotoServiceBusy):
            if may_blame_photo or not isinstance(found, (PhotoDecoderCrashed, PhotoTimedOut)):
                return PhotoFailure(reason=found.reason, message=str(found))
            may_blame_photo = True
        raise_if_stopped()
    raise BackfillError(
        f"a photo is not decoded after {MAX_BUSY_ATTEMPTS} attempts: {found}; rerun the same command to resume"
    )


class Pipeline:
    """Runs the stages once; use it from one thread."""

    def __init__(
        self,
        reader: PhotoReader,
        decoders: Sequence[PhotoDecoder],
        infer: Callable[[npt.NDArray[np.uint8]], Logits],
        *,
        num_infer_threads: int,
        max_batch_size: int,
        stop: threading.Event,
        wait_times: WaitTimes,
    ) -> None:
        """Args:
        decoders: each is used by one thread.
        infer: returns the logits of (P, S, S, 3) uint8 photos; called from `num_infer_threads` threads.
        max_batch_size: maximum P.
        stop: when set, the pipeline ends as soon as it can; open shards are lost.
        """
        self._reader = reader
        self._decoders = decoders
        self._infer = infer
        self._num_infer_threads = num_infer_threads
        self._max_batch_size = max_batch_size
        self._stop = stop
        self._wait_times = wait_times
        in_model = num_infer_threads * max_batch_size
        self._num_readers = READERS_PER_DECODER * len(decoders)
        self._encoded_photos: queue.Queue[_EncodedPhoto] = queue.Queue(2 * len(decoders))
        self._decoded_photos: queue.Queue[_DecodedPhoto] = queue.Queue(2 * in_model)
        self._results: queue.Queue[_OpenShard | BaseException | None] = queue.Queue()
        # Photos in the pipeline: bounds memory, and the work that a kill loses.
        self._photo_slots = threading.Semaphore(self._num_readers + self._encoded_photos.maxsize + 3 * in_model)
        # Shards in the pipeline, completed ones that are not taken included.
        self._shard_slots = threading.Semaphore(MAX_OPEN_SHARDS)
        self._lock = threading.Lock()
        self._num_open_shards = 0
        self._all_submitted = False
        self._closed = threading.Event()

    def run(self, shards: Iterable[ShardPhotos]) -> Iterator[ShardLogits]:
        """Yield each shard once all its photos are classified or failed, in any order.

        Raises:
            BackfillError: the machine is too busy to decode.
            Exception: what reading shards or the model raised; a photo's failure raises nothing.
        """
        readers = ThreadPoolExecutor(self._num_readers, thread_name_prefix="read")
        threads = [threading.Thread(target=self._run_guarded, args=(self._submit_photos, shards, readers), name="feed")]
        threads += [
            threading.Thread(target=self._run_guarded, args=(self._decode, decoder), name="decode")
            for decoder in self._decoders
        ]
        threads += [
            threading.Thread(target=self._run_guarded, args=(self._infer_batches,), name="model")
            for _ in range(self._num_infer_threads)
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        try:
            while True:
                with contextlib.suppress(_Stopped):
                    found = self._get(self._results)
                    if found is None:
                        return
                    if isinstance(found, BaseException):
                        raise found
                    yield found.to_shard_logits()
                    self._shard_slots.release()
                    continue
                return
        finally:
            self._closed.set()
            readers.shutdown(wait=True, cancel_futures=True)
            for thread in threads:
                thread.join()

    def _run_guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except _Stopped:
            pass
        except BaseException as error:
            self._results.put(error)

    def _submit_photos(self, shards: Iterable[ShardPhotos], readers: ThreadPoolExecutor) -> None:
        for shard in shards:
            while not self._shard_slots.acquire(timeout=_POLL_INTERVAL_S):
                self._raise_if_stopped()
            work = _OpenShard(shard)
            with self._lock:
                self._num_open_shards += 1
            for photo, where in enumerate(shard.photos):
                while not self._photo_slots.acquire(timeout=_POLL_INTERVAL_S):
                    self._raise_if_stopped()
                self._raise_if_stopped()
                readers.submit(self._run_guarded, self._read, work, photo, where)
        with self._lock:
            self._all_submitted = True
            if not self._num_open_shards:
                self._results.put(None)

    def _read(self, work: _OpenShard, photo: int, where: str) -> None:
        found = self._reader.read(where)
        if isinstance(found, PhotoFailure):
            self._raise_if_stopped()  # it may have failed because it was not retried
            self._record_photo(work, {photo: found}, {})
        else:
            self._put(self._encoded_photos, _EncodedPhoto(work, photo, found))

    def _decode(self, decoder: PhotoDecoder) -> None:
        while True:
            began_s = time.monotonic()
            work, photo, data = self._get(self._encoded_photos)
            self._wait_times.add("read", time.monotonic() - began_s)
            found = decode_with_retry(decoder, data, raise_if_stopped=self._raise_if_stopped)
            if isinstance(found, PhotoFailure):
                self._record_photo(work, {photo: found}, {})
                continue
            began_s = time.monotonic()
            self._put(self._decoded_photos, _DecodedPhoto(work, photo, found))
            self._wait_times.add("model", time.monotonic() - began_s)

    def _infer_batches(self) -> None:
        while True:
            began_s = time.monotonic()
            batch = [self._get(self._decoded_photos)]
            self._wait_times.add("decode", time.monotonic() - began_s)
            with contextlib.suppress(queue.Empty):
                while len(batch) < self._max_batch_size:
                    batch.append(self._decoded_photos.get_nowait())
            pixels = batch[0].pixels[None] if len(batch) == 1 else np.stack([item.pixels for item in batch])
            logits = self._infer(pixels)
            for item, *rows in zip(batch, *logits, strict=True):
                self._record_photo(item.work, {}, {item.photo: tuple(rows)})

    def _record_photo(
        self, work: _OpenShard, failures: dict[int, PhotoFailure], rows: dict[int, tuple[npt.NDArray[np.float32], ...]]
    ) -> None:
        self._photo_slots.release()
        with self._lock:
            work.failures |= failures
            work.rows.update(rows)
            if work.is_complete:
                self._num_open_shards -= 1
                self._results.put(work)
                if self._all_submitted and not self._num_open_shards:
                    self._results.put(None)

    def _get(self, source: "queue.Queue[_T]") -> _T:
        while True:
            self._raise_if_stopped()
            with contextlib.suppress(queue.Empty):
                return source.get(timeout=_POLL_INTERVAL_S)

    def _put(self, target: "queue.Queue[_T]", item: _T) -> None:
        while True:
            self._raise_if_stopped()
            with contextlib.suppress(queue.Full):
                return target.put(item, timeout=_POLL_INTERVAL_S)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set() or self._closed.is_set():
            raise _Stopped
