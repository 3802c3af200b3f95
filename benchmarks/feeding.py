"""A backfill's feeders and pipeline, for benchmarks that bring their own model."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from serving.backfill.pipeline import Pipeline, Task, WaitTimes
from serving.backfill.plan import ShardPhotos
from vision.engine import Logits
from vision.feeders.pool import FeederPool, plan_feeders
from vision.images import Preprocessing

__all__ = ["cut_shards", "open_pipeline"]


@contextmanager
def open_pipeline(
    preprocessing: Preprocessing,
    infer: Callable[[npt.NDArray[np.uint8]], Logits],
    *,
    num_decoders: int,
    batch_size: int,
    num_infer_threads: int = 2,
    python: Sequence[str] = (sys.executable,),
) -> Iterator[tuple[Pipeline, FeederPool[Task]]]:
    """Yield a pipeline with batches as on a GPU, and its feeders; `python` runs these and their decode workers."""
    feeders: FeederPool[Task] = FeederPool(
        plan_feeders(
            preprocessing,
            num_decoders=num_decoders,
            slab_photos=batch_size,
            num_taken=num_infer_threads,
            python=python,
        )
    )
    pipeline = Pipeline(
        feeders,
        infer,
        num_infer_threads=num_infer_threads,
        slab_photos=batch_size,
        max_batch_size=batch_size,
        stop=threading.Event(),
        wait_times=WaitTimes(),
    )
    try:
        yield pipeline, feeders
    finally:
        pipeline.close()
        feeders.close()


def cut_shards(photos: Sequence[str], photos_per_shard: int) -> Iterator[ShardPhotos]:
    """Return shards that are numbered by their first photo; the photos of one are one listing."""
    for first in range(0, len(photos), photos_per_shard):
        some = list(photos[first : first + photos_per_shard])
        yield ShardPhotos(number=first, listing_ids=["x"], photos=some, groups=np.zeros(len(some), np.int64))
