"""Create or resume a backfill job, classify its shards, and publish the result; retry the listings that failed."""

import datetime
import hashlib
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import prometheus_client
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from serving.backfill.error_budget import ErrorBudget
from serving.backfill.job import JOB_PATH, LOCK_PATH, SCHEMA_VERSION, Job, read_job
from serving.backfill.ledger import LEDGER_FOLDER, Entry, File, Ledger
from serving.backfill.local_engine import BackfillEngine, ShardResult
from serving.backfill.output import ShardTables, merge_tables, to_parquet
from serving.backfill.plan import ShardPhotos, ShardReader, hash_manifest, list_manifest_files, write_plan
from serving.backfill.progress import Progress
from serving.backfill.shutdown import HOW_TO_RESUME, GracefulShutdown, Interrupted
from serving.errors import BackfillError
from serving.storage import Store
from vision.runtime.wording import format_count

__all__ = [
    "SUCCESS_PATH",
    "BackfillRequest",
    "commit_shard",
    "open_or_create_job",
    "retry",
    "run",
    "write_success_file",
]

SUCCESS_PATH = "_SUCCESS.json"


@dataclass(frozen=True, kw_only=True)
class BackfillRequest:
    """The options of a run that, with the model's versions, identify a job."""

    manifest: str
    listings_per_shard: int
    top_k: int
    embedding: bool
    overwrite: bool


def open_or_create_job(
    store: Store, request: BackfillRequest, engine: BackfillEngine, notify: Callable[[str], None]
) -> Job:
    """Return the job to resume, or a new one with its plan. The caller holds the store's lock.

    Raises:
        BackfillError: the store holds the output of another job.
        ManifestError: the manifest cannot be used.
    """
    urls = list_manifest_files(request.manifest)
    found: dict[str, Any] = {
        "manifest_sha256": hash_manifest(urls),
        "base_url": _find_base_url(urls),  # empty: files in several folders, whose photos must be absolute
        "model": engine.versions,
        "listings_per_shard": request.listings_per_shard,
        "top_k": request.top_k,
        "embedding": request.embedding,
    }
    if store.exists(JOB_PATH):
        if not request.overwrite:
            job = read_job(store)
            job.require_match(found)
            return job
    elif not request.overwrite and store.list_files(LEDGER_FOLDER):
        raise BackfillError(f"{store.url} has a ledger and no {JOB_PATH}; --overwrite deletes what is there")
    _require_no_foreign_files(store)

    def delete_previous_output() -> None:
        # Called once the new plan is made, so that an unusable manifest deletes nothing. The job file goes first: a run
        # that is killed between two files must not resume the old job with half of its output.
        store.remove(JOB_PATH)
        for path in store.list_files(""):
            if path != LOCK_PATH:
                store.remove(path)

    plan = write_plan(
        urls,
        store,
        listings_per_shard=request.listings_per_shard,
        absolute_photos=not found["base_url"],
        notify=notify,
        before_write=delete_previous_output,
    )
    job = Job(
        manifest=request.manifest,
        num_listings=plan.num_listings,
        num_photos=plan.num_photos,
        num_shards=plan.num_shards,
        **found,
    )
    job.save(store)
    return job


def _find_base_url(urls: Sequence[str]) -> str:
    """The folder of the files; empty if they are in several."""
    folders = {posixpath.dirname(url) for url in urls}
    return folders.pop() if len(folders) == 1 else ""


def run(
    store: Store,
    job: Job,
    engine: BackfillEngine,
    *,
    max_error_share: float,
    shutdown: GracefulShutdown,
    notify: Callable[[str], None] = lambda _: None,
    registry: prometheus_client.CollectorRegistry | None = None,
) -> Progress:
    """Classify the shards that are not committed, and write the success file.

    Args:
        registry: where metrics are registered; None: nowhere.

    Raises:
        BackfillError: too many photos cannot be used, or the model is unavailable; committed shards stay.
        Interrupted: a stop was requested.
    """
    ledger = Ledger(store)
    if removed := ledger.recover():
        notify(f"removed {format_count(removed, 'file')} of an interrupted run")
    done = {entry.shard for entry in ledger.complete_entries()}
    shards = ShardReader(store)
    remaining = [number for number in range(job.num_shards) if number not in done]
    if done and remaining:
        notify(f"resuming: {len(done)} of {format_count(job.num_shards, 'shard', 'is')} done")
    progress = Progress(
        num_photos=job.num_photos,
        num_photos_done_before=job.num_photos - shards.num_photos(remaining),
        wait_times=engine.wait_times.seconds,
        registry=registry,
    )
    error_budget = ErrorBudget(max_error_share, job.num_photos)
    wanted = shutdown.take_until_stopped(map(shards.read, remaining))
    try:
        for result in shutdown.raise_interrupted(engine.classify(job, wanted)):
            error_budget.check(result.rows, len(result.shard.photos))
            began_s = time.monotonic()
            entry = commit_shard(store, ledger, result)
            progress.record_shard(entry, write_s=time.monotonic() - began_s)
    finally:
        progress.close()
    if shutdown.stop_requested.is_set():
        raise Interrupted(f"{progress}; {HOW_TO_RESUME}")
    write_success_file(store, job)
    return progress


def retry(
    store: Store,
    job: Job,
    engine: BackfillEngine,
    *,
    reasons: Sequence[str],
    max_error_share: float,
    shutdown: GracefulShutdown,
) -> Mapping[str, int]:
    """Classify again the listings that have dead letters; return counts of listings and photos.

    Args:
        reasons: which dead letters; empty: all.

    Raises:
        BackfillError, Interrupted: as `run`.
    """
    ledger = Ledger(store)
    ledger.recover()
    entries = {entry.shard: entry for entry in ledger.entries() if _has_any_reason(entry.errors, reasons)}
    shards = ShardReader(store)
    counted: Counter[str] = Counter()

    def read_failed_listings() -> Iterator[ShardPhotos]:
        for number, entry in entries.items():
            assert entry.dead_letters
            dead_letters = _read_table(store, entry.dead_letters)
            if reasons:
                dead_letters = dead_letters.filter(pa.compute.is_in(dead_letters["reason"], pa.array(list(reasons))))
            yield shards.read(number).select_listings(set(dead_letters["listing_id"].to_pylist()))

    error_budget = ErrorBudget(max_error_share, job.num_photos)
    # Its checksums are those of files that are about to be replaced.
    store.remove(SUCCESS_PATH)
    wanted = shutdown.take_until_stopped(read_failed_listings())
    for result in shutdown.raise_interrupted(engine.classify(job, wanted)):
        error_budget.check(result.rows, len(result.shard.photos))
        old = entries[result.shard.number]
        counted["listings"] += len(result.shard.listing_ids)
        assert old.dead_letters
        before = ShardTables(
            suggestions=_read_table(store, old.suggestions), dead_letters=_read_table(store, old.dead_letters)
        )
        rows = merge_tables(before, result.rows, shards.read(result.shard.number))
        counted["photos_recovered"] += old.num_failed_photos - sum(rows.errors.values())
        entry, files = _build_entry(result, rows, num_photos=old.num_photos)
        ledger.replace(old, entry, files)
    if shutdown.stop_requested.is_set():
        raise Interrupted(HOW_TO_RESUME)
    if len(list(ledger.entries())) == job.num_shards:
        write_success_file(store, job)
    counted["photos_unusable"] = sum(entry.num_failed_photos for entry in ledger.entries())
    return counted


def commit_shard(store: Store, ledger: Ledger, result: ShardResult) -> Entry:
    """Write a shard's files and its ledger entry."""
    entry, files = _build_entry(result, result.rows, num_photos=len(result.shard.photos))
    ledger.commit(entry, files)
    return entry


def write_success_file(store: Store, job: Job) -> None:
    """Publish that the output is complete, with the checksum of each file."""
    files = [
        {"path": file.path, "sha256": file.sha256, "num_rows": file.num_rows}
        for entry in Ledger(store).entries()
        for file in (entry.suggestions, entry.dead_letters)
        if file
    ]
    model = {"model_version": job.model.version, "calibration_version": job.model.calibration}
    store.write_json(
        SUCCESS_PATH, {"schema_version": SCHEMA_VERSION, **model, "num_listings": job.num_listings, "files": files}
    )


def _build_entry(result: ShardResult, rows: ShardTables, *, num_photos: int) -> tuple[Entry, dict[str, bytes]]:
    files: dict[str, bytes] = {}
    number = result.shard.number
    place = f"shard_group={number // 1000:04d}/shard-{number:07d}.parquet"

    def file(folder: str, table: pa.Table) -> File:
        data = to_parquet(table)
        files[f"{folder}/{place}"] = data
        return File(
            path=f"{folder}/{place}",
            sha256=hashlib.sha256(data).hexdigest(),
            num_rows=table.num_rows,
            num_bytes=len(data),
        )

    entry = Entry(
        shard=number,
        num_listings=rows.suggestions.num_rows,
        num_photos=num_photos,
        suggestions=file("suggestions", rows.suggestions),
        dead_letters=file("dead_letters", rows.dead_letters) if rows.dead_letters.num_rows else None,
        results=rows.results,
        errors=rows.errors,
        seconds=result.seconds,
        finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return entry, files


def _read_table(store: Store, file: File) -> pa.Table:
    with store.open(file.path) as opened:
        return pyarrow.parquet.read_table(opened)


def _has_any_reason(errors: Mapping[str, int], reasons: Sequence[str]) -> bool:
    return any(number and (not reasons or reason in reasons) for reason, number in errors.items())


def _require_no_foreign_files(store: Store) -> None:
    """Raise BackfillError where the folder has files that no backfill writes: they must not be deleted by mistake."""
    ours = ("_job/", "suggestions/", "dead_letters/", SUCCESS_PATH)
    foreign = next((path for path in store.list_files("") if not path.startswith(ours)), None)
    if foreign:
        raise BackfillError(f"--output {store.url} holds other files, such as {foreign}; give an empty folder")
