"""The interface of engines, which classify the shards of a backfill, and the engine of this process."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from serving.backfill.job import Job, ModelVersions
from serving.backfill.output import ShardTables, decide_shard
from serving.backfill.pipeline import PhotoDecoder, Pipeline, WaitTimes
from serving.backfill.plan import ShardPhotos
from serving.errors import BackfillError
from vision.bundle import ONNX_ON_CPU, Bundle
from vision.decoding.fork_client import MAX_MEMORY_BYTES, Decoder, ForkServer, InlineDecoder
from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import TimeLimits
from vision.engine import Logits, OnnxEngine
from vision.errors import EngineError
from vision.feeders.photo_reader import PhotoReader
from vision.images import PhotoLimits
from vision.runtime.cpus import count_usable_cores

__all__ = ["BackfillEngine", "LogitsEngine", "ShardResult", "create_decoder", "create_local_engine"]

GPU_BATCH_SIZE = 128
DECODE_LIMITS = TimeLimits(wall_s=60.0)
"""A backfill has time to wait for a busy machine; the CPU time of a photo is that of the service."""


class ShardResult(NamedTuple):
    shard: ShardPhotos
    rows: ShardTables
    seconds: float


class BackfillEngine(Protocol):
    versions: ModelVersions
    wait_times: WaitTimes

    def classify(self, job: Job, shards: Iterable[ShardPhotos], reader: PhotoReader) -> Iterator[ShardResult]:
        """Yield each shard once it is classified, in any order.

        Raises:
            BackfillError: the engine cannot classify any more.
        """
        ...

    def close(self) -> None: ...


def create_decoder(bundle: Bundle, *, isolate: bool) -> PhotoDecoder:
    """Return a decoder in a process that a photo may crash or hang; unless isolated, one in this process."""
    settings = DecodeSettings(
        preprocessing=bundle.info.preprocessing, limits=PhotoLimits(), max_memory_bytes=MAX_MEMORY_BYTES
    )
    if not isolate:
        return InlineDecoder(settings)
    return Decoder(
        ForkServer(settings, [sys.executable], path=Path(__file__).resolve().parents[2]),
        settings,
        time_limits=DECODE_LIMITS,
    )


class LogitsEngine:
    """Decodes and decides in this process; a function computes the logits."""

    def __init__(
        self,
        bundle: Bundle,
        infer: Callable[[npt.NDArray[np.uint8]], Logits],
        *,
        backend: str,
        num_decoders: int,
        num_infer_threads: int,
        max_batch_size: int,
        stop: threading.Event,
        isolate: bool = True,
        verify_model: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        verify_model: raises EngineError where the model was replaced; called before a shard is yielded.
        """
        self.versions = ModelVersions.from_bundle(bundle, backend)
        self.wait_times = WaitTimes()
        self._bundle = bundle.for_backend(backend)
        self._infer = infer
        self._num_infer_threads = num_infer_threads
        self._max_batch_size = max_batch_size
        self._stop = stop
        self._verify_model = verify_model
        self._close = close
        self._decoders = [create_decoder(bundle, isolate=isolate) for _ in range(num_decoders)]

    def classify(self, job: Job, shards: Iterable[ShardPhotos], reader: PhotoReader) -> Iterator[ShardResult]:
        pipeline = Pipeline(
            reader,
            self._decoders,
            self._infer,
            num_infer_threads=self._num_infer_threads,
            max_batch_size=self._max_batch_size,
            stop=self._stop,
            wait_times=self.wait_times,
        )
        try:
            for done in pipeline.run(shards):
                self._verify_model()
                rows = decide_shard(job, self._bundle, done.shard, done.logits, done.failures)
                yield ShardResult(done.shard, rows, done.seconds)
        except EngineError as error:
            raise BackfillError(f"the model fails: {error}; rerun the same command to resume") from error

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.close()
        self._close()


def create_local_engine(
    bundle: Bundle, *, stop: threading.Event, num_cores: int | None = None, isolate: bool = True
) -> LogitsEngine:
    """Return an engine with ONNX Runtime in this process: batches on a GPU, else one photo and one thread per core.

    On a CPU a batch is slower per photo than single photos, since its activations leave the cache.
    """
    cores = num_cores or count_usable_cores()
    engine = OnnxEngine(bundle, num_threads=1)
    on_cpu = engine.backend == ONNX_ON_CPU
    return LogitsEngine(
        bundle,
        engine.infer,
        backend=engine.backend,
        num_decoders=cores,
        num_infer_threads=cores if on_cpu else 2,
        max_batch_size=1 if on_cpu else GPU_BATCH_SIZE,
        stop=stop,
        isolate=isolate,
    )
