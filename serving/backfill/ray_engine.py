"""Classify shards on a Ray cluster: on all cores, or with GPUs, decoded on the cores and computed on the GPUs.

Ray places and restarts the workers. Shards are submitted one by one and their tables return to this process, which
commits them. A shard whose worker dies is retried by another worker, at most three times.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.backfill.job import Job, ModelVersions
from serving.backfill.local_engine import GPU_BATCH_SIZE, ShardResult, create_decoder, create_local_engine
from serving.backfill.output import ShardTables, decide_shard
from serving.backfill.pipeline import NO_LOGITS, READERS_PER_DECODER, WaitTimes, decode_with_retry
from serving.backfill.plan import ShardPhotos
from serving.errors import BackfillError
from vision.bundle import ONNX_ON_CPU, load_bundle
from vision.engine import Logits, OnnxEngine
from vision.feeders.photo_reader import PhotoFailure, PhotoReader
from vision.images import Photo
from vision.photo_files import PHOTO_TIMEOUT_S
from vision.runtime.cpus import count_usable_cores

__all__ = ["RayEngine", "create_ray_engine"]

_log = logging.getLogger(__name__)

SHARDS_PER_WORKER = 2
"""One that the worker classifies and one that waits."""
MAX_TASK_RETRIES = 3
"""Retries of one shard. Ray's default is unlimited, so a shard that kills its worker would be retried for ever."""
_POLL_INTERVAL_S = 1.0
_OBJECT_STORE_BYTES = 512 << 20
"""Object store of a Ray that is started on this machine for the job."""


class _DecodedShard(NamedTuple):
    photos_nhwc: np.ndarray[Any, np.dtype[np.uint8]]
    """(P, S, S, 3) pixels of the photos without failure."""
    failures: dict[int, PhotoFailure]
    """Failures by photo."""


class _Worker:
    """Reads, decodes and classifies whole shards on one core."""

    def __init__(self, bundle: str, public_key: Path | None, isolate: bool, photo_timeout_s: float) -> None:
        self._stop = threading.Event()
        self._photo_timeout_s = photo_timeout_s
        loaded = load_bundle(bundle, public_key=public_key)
        self._engine = create_local_engine(loaded, stop=self._stop, num_cores=1, isolate=isolate)

    def classify(self, job: Job, shard: ShardPhotos) -> tuple[ShardTables, float]:
        _require_same_model(job, self._engine.versions)
        reader = PhotoReader(job.base_url, stop=self._stop, timeout_s=self._photo_timeout_s)
        [result] = self._engine.classify(job, [shard], reader)
        return result.rows, result.seconds


class _DecodeWorker:
    """Reads and decodes whole shards on one core, for a worker with a GPU."""

    def __init__(self, bundle: str, public_key: Path | None, isolate: bool, photo_timeout_s: float) -> None:
        loaded = load_bundle(bundle, public_key=public_key)
        self._photo_timeout_s = photo_timeout_s
        self._side_px = loaded.info.preprocessing.input_px
        self._decoder = create_decoder(loaded, isolate=isolate)
        self._readers = ThreadPoolExecutor(READERS_PER_DECODER)

    def decode(self, job: Job, shard: ShardPhotos) -> _DecodedShard:
        reader = PhotoReader(job.base_url, stop=threading.Event(), timeout_s=self._photo_timeout_s)
        photos: list[Photo] = []
        failures: dict[int, PhotoFailure] = {}
        for begin in range(0, len(shard.photos), 2 * READERS_PER_DECODER):
            some = shard.photos[begin : begin + 2 * READERS_PER_DECODER]
            for photo, data in enumerate(self._readers.map(reader.read, some), begin):
                found = data if isinstance(data, PhotoFailure) else decode_with_retry(self._decoder, data)
                if isinstance(found, PhotoFailure):
                    failures[photo] = found
                else:
                    photos.append(found)
        side_px = self._side_px
        return _DecodedShard(np.stack(photos) if photos else np.zeros((0, side_px, side_px, 3), np.uint8), failures)


class _ModelWorker:
    """Classifies shards that decode workers have decoded."""

    def __init__(self, bundle: str, public_key: Path | None) -> None:
        loaded = load_bundle(bundle, public_key=public_key)
        self._engine = OnnxEngine(loaded)
        self._bundle = loaded.for_backend(self._engine.backend)
        self._versions = ModelVersions.from_bundle(loaded, self._engine.backend)

    def backend(self) -> str:
        return self._engine.backend

    def classify(self, job: Job, shard: ShardPhotos, decoded: _DecodedShard) -> tuple[ShardTables, float]:
        _require_same_model(job, self._versions)
        began_s = time.monotonic()
        photos = decoded.photos_nhwc
        batches = [self._engine.infer(photos[at : at + GPU_BATCH_SIZE]) for at in range(0, len(photos), GPU_BATCH_SIZE)]
        logits = Logits(*map(np.concatenate, zip(*batches, strict=True))) if batches else NO_LOGITS
        return decide_shard(job, self._bundle, shard, logits, decoded.failures), time.monotonic() - began_s


def _require_same_model(job: Job, versions: ModelVersions) -> None:
    """Raise BackfillError where a node has another bundle under the path, or a bundle that was replaced meanwhile."""
    if versions != job.model:
        raise BackfillError(f"a worker has another model than the job: {versions} instead of {job.model}")


class RayEngine:
    """Runs one worker per core or, with GPUs, one model worker per GPU and decode workers on the cores."""

    def __init__(
        self,
        bundle: Path,
        *,
        isolate: bool,
        stop: threading.Event,
        photo_timeout_s: float = PHOTO_TIMEOUT_S,
        public_key: Path | None = None,
        separate_decoding: bool | None = None,
        shut_down_ray: bool = True,
    ) -> None:
        """Args:
        bundle: the same path on every node.
        photo_timeout_s: how long a server may take for a photo.
        public_key: PEM file, the same path on every node, of the key that must have signed the bundle; None: it need
            not be signed.
        separate_decoding: whether decoding and the model have workers of their own; None: where the cluster has GPUs.
        shut_down_ray: whether `close` leaves the cluster; otherwise it only ends the workers.
        """
        import ray

        self.wait_times = WaitTimes()
        self._ray = ray
        self._shut_down_ray = shut_down_ray
        self._stop = stop
        resources = ray.cluster_resources()
        num_cores, num_gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        folder = str(bundle.resolve())
        backend = ONNX_ON_CPU
        if separate_decoding if separate_decoding is not None else num_gpus > 0:
            model_resources: dict[str, Any] = {"num_gpus": 1} if num_gpus else {"num_cpus": 1}
            num_models = num_gpus or 1
            num_decoders = max(1, num_cores - (0 if num_gpus else num_models))
            models = [
                self._create_actor(_ModelWorker, model_resources).remote(folder, public_key) for _ in range(num_models)
            ]
            decoders = [
                self._create_actor(_DecodeWorker).remote(folder, public_key, isolate, photo_timeout_s)
                for _ in range(num_decoders)
            ]
            backend = ray.get(models[0].backend.remote())
            self._submit_slots = [
                _chain_decode_and_model(decoders[number % num_decoders], models[number % num_models])
                for number in range(max(num_decoders, num_models))
            ]
            self._actors = [*decoders, *models]
        else:
            self._actors = [
                self._create_actor(_Worker).remote(folder, public_key, isolate, photo_timeout_s)
                for _ in range(num_cores)
            ]
            self._submit_slots = [actor.classify.remote for actor in self._actors]
        _log.info("Ray: %d cores, %d GPUs, %d workers", num_cores, num_gpus, len(self._actors))
        self.versions = ModelVersions.from_bundle(load_bundle(bundle, public_key=public_key), backend)

    def classify(self, job: Job, shards: Iterable[ShardPhotos], reader: PhotoReader) -> Iterator[ShardResult]:
        """Yield each shard once it is classified; the workers read the photos, not `reader`."""
        ray = self._ray
        job_ref = ray.put(job)
        source = iter(shards)
        free = self._submit_slots * SHARDS_PER_WORKER
        running: dict[Any, tuple[ShardPhotos, Callable[..., Any]]] = {}
        while not self._stop.is_set():
            while free and (shard := next(source, None)) is not None:
                submit = free.pop()
                running[submit(job_ref, shard)] = shard, submit
            if not running:
                return
            ready, _ = ray.wait(list(running), timeout=_POLL_INTERVAL_S)
            for reference in ready:
                shard, submit = running.pop(reference)
                free.append(submit)
                try:
                    rows, seconds = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise BackfillError(
                        f"shard {shard.number} cannot be classified: {error}; rerun the same command to resume"
                    ) from error
                yield ShardResult(shard, rows, seconds)

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._shut_down_ray:
            self._ray.shutdown()

    def _create_actor(self, kind: type, resources: dict[str, Any] | None = None) -> Any:
        return self._ray.remote(max_restarts=-1, max_task_retries=MAX_TASK_RETRIES, **(resources or {"num_cpus": 1}))(
            kind
        )


def _chain_decode_and_model(decoder: Any, model: Any) -> Callable[..., Any]:
    def submit(job: Any, shard: ShardPhotos) -> Any:
        # Decoded photos go from worker to worker, not through this process.
        return model.classify.remote(job, shard, decoder.decode.remote(job, shard))

    return submit


def create_ray_engine(
    bundle: Path,
    *,
    address: str | None,
    isolate: bool,
    stop: threading.Event,
    photo_timeout_s: float,
    public_key: Path | None = None,
) -> RayEngine:
    """Return an engine on the cluster at `address`, or on a Ray that is started on this machine for the job.

    Raises:
        BackfillError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        import ray
    except ModuleNotFoundError:
        raise BackfillError("--ray needs Ray: pip install 'listing-vision[ray]'") from None
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(
                num_cpus=count_usable_cores(),
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackfillError(f"--ray-address {address}: {error}") from error
    finally:
        # Ray installs a handler that exits at once.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        return RayEngine(bundle, isolate=isolate, stop=stop, photo_timeout_s=photo_timeout_s, public_key=public_key)
    except BaseException:
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise
