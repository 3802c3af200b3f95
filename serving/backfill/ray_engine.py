"""Classify shards on a Ray cluster: on all cores, or on all GPUs, each fed by the cores of its node.

Ray places and restarts the workers. Shards are submitted one by one and their tables return to this process, which
commits them. A shard whose worker dies is retried by another worker, at most three times.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.backfill.job import Job, ModelVersions
from serving.backfill.local_engine import EngineOptions, ShardResult, create_local_engine
from serving.backfill.output import ShardTables
from serving.backfill.pipeline import WaitTimes
from serving.backfill.plan import ShardPhotos
from serving.errors import BackfillError
from vision.bundle import load_bundle
from vision.runtime.cpus import count_usable_cores

__all__ = ["RayEngine", "create_ray_engine", "plan_workers"]

_log = logging.getLogger(__name__)

SHARDS_PER_WORKER = 2
"""One whose last photos are classified, and the next one."""
MAX_TASK_RETRIES = 3
"""Retries of one shard. Ray's default is unlimited, so a shard that kills its worker would be retried for ever."""
_POLL_INTERVAL_S = 1.0
_OBJECT_STORE_BYTES = 512 << 20
"""Object store of a Ray that is started on this machine for the job."""


class _Worker:
    """Classifies whole shards, with feeders on its cores and the model on its GPU or on its cores."""

    def __init__(self, bundle: str, public_key: Path | None, options: Mapping[str, Any], num_cores: int) -> None:
        """Args: options: those of `EngineOptions` that can be sent."""
        loaded = load_bundle(bundle, public_key=public_key)
        self._engine = create_local_engine(loaded, EngineOptions(**options), num_cores=num_cores)

    def versions(self) -> ModelVersions:
        return self._engine.versions

    def classify(self, job: Job, shard: ShardPhotos) -> tuple[ShardTables, float]:
        _require_same_model(job, self._engine.versions)
        [result] = self._engine.classify(job, [shard])
        return result.rows, result.seconds


def _require_same_model(job: Job, versions: ModelVersions) -> None:
    """Raise BackfillError where a node has another bundle under the path, or a bundle that was replaced meanwhile."""
    if versions != job.model:
        raise BackfillError(f"a worker has another model than the job: {versions} instead of {job.model}")


def plan_workers(nodes: Sequence[Mapping[str, float]]) -> list[tuple[int, int]]:
    """Return the number of cores and of GPUs of each worker.

    Without GPUs, one core per worker. With GPUs, one GPU per worker and a share of its node's cores; nodes without GPUs
    are not used, since all workers must compute with the same backend.

    Args:
        nodes: resources of each node, as Ray names them.
    """
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    if not any(num_gpus for _, num_gpus in sizes):
        return [(1, 0) for num_cores, _ in sizes for _ in range(num_cores)]
    if unused := sum(num_cores for num_cores, num_gpus in sizes if not num_gpus):
        _log.warning("%d cores of nodes without GPUs are not used", unused)
    return [(num_cores // num_gpus, 1) for num_cores, num_gpus in sizes for _ in range(num_gpus)]


class RayEngine:
    """Runs one worker per core or, with GPUs, per GPU."""

    def __init__(
        self,
        bundle: Path,
        options: EngineOptions,
        *,
        public_key: Path | None = None,
        shut_down_ray: bool = True,
    ) -> None:
        """Args:
        bundle: the same path on every node.
        public_key: PEM file, the same path on every node, of the key that must have signed the bundle; None: it need
            not be signed.
        shut_down_ray: whether `close` leaves the cluster; otherwise it only ends the workers.
        """
        import ray

        self.wait_times = WaitTimes()
        self._ray = ray
        self._shut_down_ray = shut_down_ray
        self._stop = options.stop
        workers = plan_workers([node["Resources"] for node in ray.nodes() if node["Alive"]])
        if not workers:
            raise BackfillError("the Ray cluster has no cores; start its nodes with --num-cpus")
        sent = {name: value for name, value in vars(options).items() if name != "stop"}
        self._actors = [
            self._create_actor(num_cores, num_gpus).remote(str(bundle.resolve()), public_key, sent, max(1, num_cores))
            for num_cores, num_gpus in workers
        ]
        _log.info("Ray: %d workers", len(self._actors))
        self.versions: ModelVersions = ray.get(self._actors[0].versions.remote())

    def classify(self, job: Job, shards: Iterable[ShardPhotos]) -> Iterator[ShardResult]:
        """Yield each shard once it is classified, in any order.

        Raises:
            BackfillError: a worker has another model than the job, or a shard cannot be classified.
        """
        ray = self._ray
        job_ref = ray.put(job)
        source = iter(shards)
        free = self._actors * SHARDS_PER_WORKER
        running: dict[Any, tuple[ShardPhotos, Any]] = {}
        while not self._stop.is_set():
            while free and (shard := next(source, None)) is not None:
                actor = free.pop()
                running[actor.classify.remote(job_ref, shard)] = shard, actor
            if not running:
                return
            ready, _ = ray.wait(list(running), timeout=_POLL_INTERVAL_S)
            for reference in ready:
                shard, actor = running.pop(reference)
                free.append(actor)
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

    def _create_actor(self, num_cores: int, num_gpus: int) -> Any:
        remote: Any = self._ray.remote
        return remote(
            num_cpus=num_cores,
            num_gpus=num_gpus,
            max_restarts=-1,
            max_task_retries=MAX_TASK_RETRIES,
            max_concurrency=SHARDS_PER_WORKER,
        )(_Worker)


def create_ray_engine(
    bundle: Path, options: EngineOptions, *, address: str | None, public_key: Path | None = None
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
        return RayEngine(bundle, options, public_key=public_key)
    except BaseException:
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise
