"""The interface of engines, which classify the shards of a backfill, and the engine of this process."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from serving.backfill.job import Job, ModelVersions
from serving.backfill.output import ShardTables, decide_shard
from serving.backfill.pipeline import Pipeline, Task, WaitTimes
from serving.backfill.plan import ShardPhotos
from serving.errors import BackfillError
from vision.bundle import ONNX_ON_CPU, Bundle, name_rendition_backend
from vision.engine import Logits, OnnxEngine
from vision.errors import EngineError, FeederError
from vision.feeders.pool import FeederPool, plan_feeders
from vision.photo_files import PHOTO_TIMEOUT_S
from vision.runtime.cpus import count_usable_cores

__all__ = ["BackfillEngine", "EngineOptions", "LogitsEngine", "ShardResult", "create_local_engine"]

GPU_BATCH_SIZE = 128
MIN_SLAB_PHOTOS = 8
"""Photos that go from a feeder to the model together, where the model's batches are smaller."""


class ShardResult(NamedTuple):
    shard: ShardPhotos
    rows: ShardTables
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What every engine is told."""

    stop: threading.Event = field(default_factory=threading.Event)
    """When set, the engine ends as soon as it can; open shards are lost."""
    isolate: bool = True
    """Whether photos are decoded in processes of their own, which a photo may crash."""
    photo_timeout_s: float = PHOTO_TIMEOUT_S
    """How long a server may take for a photo, all attempts together."""
    rendition_px: int | None = None
    """Short side of the photos if they are renditions; a guarantee must then be certified for them, and a photo with a
    longer one cannot be used."""


class BackfillEngine(Protocol):
    versions: ModelVersions
    wait_times: WaitTimes

    def classify(self, job: Job, shards: Iterable[ShardPhotos]) -> Iterator[ShardResult]:
        """Yield each shard once it is classified, in any order.

        Raises:
            BackfillError: the engine cannot classify any more.
        """
        ...

    def close(self) -> None: ...


class LogitsEngine:
    """Has photos decoded by feeders and decides in this process; a function computes the logits."""

    def __init__(
        self,
        bundle: Bundle,
        infer: Callable[[npt.NDArray[np.uint8]], Logits],
        options: EngineOptions,
        *,
        backend: str,
        num_decoders: int,
        num_infer_threads: int,
        max_batch_size: int,
        verify_model: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        verify_model: raises EngineError where the model was replaced; called before a shard is yielded.
        """
        backend = name_rendition_backend(backend, options.rendition_px)
        self.versions = ModelVersions.from_bundle(bundle, backend)
        self.wait_times = WaitTimes()
        self._bundle = bundle.for_backend(backend)
        self._verify_model = verify_model
        self._close = close
        slab_photos = max(max_batch_size, MIN_SLAB_PHOTOS)
        self._feeders: FeederPool[Task] = FeederPool(
            plan_feeders(
                bundle.info.preprocessing,
                num_decoders=num_decoders,
                slab_photos=slab_photos,
                num_taken=num_infer_threads,
                isolate=options.isolate,
                photo_timeout_s=options.photo_timeout_s,
                rendition_px=options.rendition_px,
            )
        )
        self._pipeline = Pipeline(
            self._feeders,
            infer,
            num_infer_threads=num_infer_threads,
            slab_photos=slab_photos,
            max_batch_size=max_batch_size,
            stop=options.stop,
            wait_times=self.wait_times,
        )

    def classify(self, job: Job, shards: Iterable[ShardPhotos]) -> Iterator[ShardResult]:
        """Yield each shard once it is classified, in any order; safe to call from many threads.

        Raises:
            BackfillError: the model fails, or photos cannot be decoded.
        """
        try:
            for done in self._pipeline.run(shards, base_url=job.base_url):
                self._verify_model()
                rows = decide_shard(job, self._bundle, done.shard, done.logits, done.failures)
                yield ShardResult(done.shard, rows, done.seconds)
        except EngineError as error:
            raise BackfillError(f"the model fails: {error}; rerun the same command to resume") from error
        except FeederError as error:
            raise BackfillError(f"photos cannot be decoded: {error}; rerun the same command to resume") from error

    def close(self) -> None:
        self._pipeline.close()
        self._feeders.close()
        self._close()


def create_local_engine(bundle: Bundle, options: EngineOptions, *, num_cores: int | None = None) -> LogitsEngine:
    """Return an engine with ONNX Runtime in this process: batches on a GPU, else one photo and one thread per core.

    On a CPU a batch is slower per photo than single photos, since its activations leave the cache.
    """
    cores = num_cores or count_usable_cores()
    engine = OnnxEngine(bundle, num_threads=1)
    on_cpu = engine.backend == ONNX_ON_CPU
    return LogitsEngine(
        bundle,
        engine.infer,
        options,
        backend=engine.backend,
        num_decoders=cores,
        num_infer_threads=cores if on_cpu else 2,
        max_batch_size=1 if on_cpu else GPU_BATCH_SIZE,
    )
