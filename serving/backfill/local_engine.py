"""What answers the shards of a backfill: the model in this process, a Triton, or a gateway that serves live traffic."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from serving.backfill.job import Job, ModelVersions
from serving.backfill.output import Rows, decided
from serving.backfill.photo_reader import Reader
from serving.backfill.pipeline import PhotoDecoder, Pipeline, Waits
from serving.backfill.plan import PhotosOfShard
from serving.decoding.fork_client import MAX_MEMORY_BYTES, Decoder, InThisProcess, Nursery
from serving.decoding.fork_server import Settings
from serving.errors import BackfillError
from vision.bundle import ONNX_ON_CPU, Bundle
from vision.engine import Logits, OnnxEngine
from vision.errors import EngineError
from vision.images import PhotoLimits
from vision.runtime.cpus import usable_cores

__all__ = ["Answered", "BackfillEngine", "LogitsEngine", "local_engine", "make_decoder"]

GPU_BATCH = 128
DECODE_TIMEOUT_S = 15.0
"""Of one photo: nobody waits for it, and a machine that is paused for a second must not cost it."""


class Answered(NamedTuple):
    shard: PhotosOfShard
    rows: Rows
    seconds: float


class BackfillEngine(Protocol):
    versions: ModelVersions
    waits: Waits

    def answer(self, job: Job, shards: Iterable[PhotosOfShard], reader: Reader) -> Iterator[Answered]:
        """Each shard once it is answered, in whatever order that is.

        Raises:
            BackfillError: it cannot go on.
        """
        ...

    def close(self) -> None: ...


def make_decoder(bundle: Bundle, *, isolate: bool) -> PhotoDecoder:
    """A child process that a photo may crash or hang; else this process does it, at the photos' mercy."""
    settings = Settings(
        preprocessing=bundle.info.preprocessing, limits=PhotoLimits(), max_memory_bytes=MAX_MEMORY_BYTES
    )
    if not isolate:
        return InThisProcess(settings)
    return Decoder(
        Nursery(settings, [sys.executable], path=Path(__file__).resolve().parents[2]),
        settings,
        timeout_s=DECODE_TIMEOUT_S,
    )


class LogitsEngine:
    """Decodes here, has logits computed by a function, and decides here."""

    def __init__(
        self,
        bundle: Bundle,
        infer: Callable[[npt.NDArray[np.uint8]], Logits],
        *,
        backend: str,
        num_decoders: int,
        num_infer_threads: int,
        photos_at_once: int,
        stop: threading.Event,
        isolate: bool = True,
        check: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        check: raises an EngineError where the model is another by now; called before a shard's answers are given out.
        """
        self.versions = ModelVersions.of(bundle, backend)
        self.waits = Waits()
        self._bundle = bundle.on_backend(backend)
        self._infer = infer
        self._num_infer_threads = num_infer_threads
        self._photos_at_once = photos_at_once
        self._stop = stop
        self._check = check
        self._close = close
        self._decoders = [make_decoder(bundle, isolate=isolate) for _ in range(num_decoders)]

    def answer(self, job: Job, shards: Iterable[PhotosOfShard], reader: Reader) -> Iterator[Answered]:
        pipeline = Pipeline(
            reader,
            self._decoders,
            self._infer,
            num_infer_threads=self._num_infer_threads,
            photos_at_once=self._photos_at_once,
            stop=self._stop,
            waits=self.waits,
        )
        try:
            for done in pipeline.run(shards):
                self._check()
                rows = decided(job, self._bundle, done.shard, done.logits, done.failures)
                yield Answered(done.shard, rows, done.seconds)
        except EngineError as error:
            raise BackfillError(f"the model does not answer: {error}; start the same command again to go on") from error

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.close()
        self._close()


def local_engine(
    bundle: Bundle, *, stop: threading.Event, num_cores: int | None = None, isolate: bool = True
) -> LogitsEngine:
    """ONNX Runtime in this process: on a GPU in batches; else on the CPU, a photo and a thread a core.

    On a CPU a batch is slower for each photo, since its activations leave the cache.
    """
    cores = num_cores or usable_cores()
    engine = OnnxEngine(bundle, num_threads=1)
    on_cpu = engine.backend == ONNX_ON_CPU
    return LogitsEngine(
        bundle,
        engine.infer,
        backend=engine.backend,
        num_decoders=cores,
        num_infer_threads=cores if on_cpu else 2,
        photos_at_once=1 if on_cpu else GPU_BATCH,
        stop=stop,
        isolate=isolate,
    )
