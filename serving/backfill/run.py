"""The job itself: begun or gone on with, shard after shard until all are done, or until it is asked to stop."""

import datetime
import hashlib
import logging
import os
import posixpath
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import prometheus_client
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from serving.backfill.job import JOB_PATH, LOCK_PATH, SCHEMA_VERSION, Job, read_job
from serving.backfill.ledger import LEDGER_FOLDER, Entry, File, Ledger
from serving.backfill.local_engine import BackfillEngine, ShardResult
from serving.backfill.output import ShardTables, to_parquet
from serving.backfill.photo_reader import PhotoReader
from serving.backfill.plan import ShardPhotos, ShardReader, hash_manifest, list_manifest_files, write_plan
from serving.backfill.progress import Progress
from serving.errors import BackfillError
from serving.storage import Store
from vision.runtime.cli import EXIT_INTERRUPTED

__all__ = [
    "BackfillRequest",
    "GracefulShutdown",
    "Interrupted",
    "commit_shard",
    "open_or_create_job",
    "retry",
    "run",
    "write_success_file",
]

_log = logging.getLogger(__name__)

GRACE_PERIOD_S = 8.0
"""After SIGTERM: how long shards that have been begun may take to end; then they are abandoned …"""
EXIT_DEADLINE_S = 18.0
"""… and then the process ends, whatever hangs: at no moment is anything half written."""
SUCCESS_PATH = "_SUCCESS.json"
ERROR_WINDOW_PHOTOS = 1000
"""The error share is that of the last so many photos, so that a store that goes away is noticed soon in a long job."""


class Interrupted(Exception):
    """It was asked to stop and has; the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class BackfillRequest:
    """What a person asks for; with a model's versions it makes a job."""

    manifest: str
    output: str
    listings_per_shard: int
    top_k: int
    embedding: bool
    overwrite: bool


class GracefulShutdown:
    """SIGTERM and Ctrl-C: first no new shards are begun, soon after what was begun is abandoned."""

    def __init__(self, *, grace_period_s: float = GRACE_PERIOD_S, exit_deadline_s: float = EXIT_DEADLINE_S) -> None:
        self.stop_requested = threading.Event()
        self.abort = threading.Event()
        self._grace_period_s, self._exit_deadline_s = grace_period_s, exit_deadline_s

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Listen to the signals while the block runs; main thread only."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, lambda *_: self.stop()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def stop(self) -> None:
        if not self.stop_requested.is_set():
            self.stop_requested.set()
            _log.info("stopping: shards that are begun may end within %g s", self._grace_period_s)
            threading.Thread(target=self._abort_and_exit, daemon=True).start()

    def take_until_stopped(self, shards: Iterable[ShardPhotos]) -> Iterator[ShardPhotos]:
        for shard in shards:
            if self.stop_requested.is_set():
                return
            yield shard

    def _abort_and_exit(self) -> None:
        time.sleep(self._grace_period_s)
        self.abort.set()
        time.sleep(self._exit_deadline_s - self._grace_period_s)
        _log.error("something hangs; it is left, and so are the shards that were begun")
        os._exit(EXIT_INTERRUPTED)


def open_or_create_job(
    store: Store, request: BackfillRequest, engine: BackfillEngine, notify: Callable[[str], None]
) -> Job:
    """The job to go on with, or a new one with its plan. Hold the store's lock.

    Raises:
        BackfillError: another job's output lies there.
        ManifestError: the manifest cannot be used.
    """
    urls = list_manifest_files(request.manifest)
    found: dict[str, Any] = {
        "manifest_sha256": hash_manifest(urls),
        "base_url": _find_base_url(urls),
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
        raise BackfillError(f"{store.url} has a ledger and no {JOB_PATH}; --overwrite drops what is there")
    _require_no_foreign_files(store)

    def delete_previous_output() -> None:
        # Only once the new plan is made: a manifest that cannot be used costs nothing. The job goes first, for without
        # it what is left is nobody's.
        store.remove(JOB_PATH)
        for path in store.list_files(""):
            if path != LOCK_PATH:
                store.remove(path)

    plan = write_plan(
        urls, store, listings_per_shard=request.listings_per_shard, notify=notify, before_write=delete_previous_output
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
    folders = sorted({posixpath.dirname(url) for url in urls})
    if len(folders) > 1:
        raise BackfillError(
            f"the manifest's files lie in {len(folders)} folders, such as {folders[0]} and {folders[1]}, and their "
            "relative photos could be of either; give files of one folder"
        )
    return folders[0]


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
    """Do the shards that are not done, and publish.

    Args:
        registry: where metrics go; None: nowhere.

    Raises:
        BackfillError: too many photos cannot be used, or the model does not answer; what is done stands.
        Interrupted: it was asked to stop.
    """
    ledger = Ledger(store)
    if removed := ledger.recover():
        notify(f"{removed} files that a killed run had left were removed")
    done = {entry.shard for entry in ledger.complete_entries()}
    shards = ShardReader(store)
    left = [number for number in range(job.num_shards) if number not in done]
    if done and left:
        notify(f"going on: {len(done)} of {job.num_shards} shards are done")
    progress = Progress(
        num_photos=job.num_photos,
        num_photos_done_before=job.num_photos - shards.num_photos(left),
        wait_times=engine.wait_times.seconds,
        registry=registry,
    )
    error_budget = ErrorBudget(max_error_share, job.num_photos)
    reader = PhotoReader(job.base_url, stop=shutdown.abort)
    wanted = shutdown.take_until_stopped(map(shards.read, left))
    try:
        for result in _convert_to_interrupted(engine.classify(job, wanted, reader), shutdown):
            error_budget.check(result.rows, len(result.shard.photos))
            began_s = time.monotonic()
            entry = commit_shard(store, ledger, result)
            progress.record_shard(entry, write_s=time.monotonic() - began_s)
    finally:
        progress.close()
    if shutdown.stop_requested.is_set():
        raise Interrupted(f"{progress}; the same command, without --overwrite, goes on from here")
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
    """Answer the listings again that have photos among the dead letters; what became of them, counted.

    Args:
        reasons: of dead letters; empty: all.

    Raises:
        BackfillError, Interrupted: as `run`.
    """
    ledger = Ledger(store)
    ledger.recover()
    entries = {entry.shard: entry for entry in ledger.entries() if _has_any_reason(entry.errors, reasons)}
    shards = ShardReader(store)
    reader = PhotoReader(job.base_url, stop=shutdown.abort)
    counted: Counter[str] = Counter()

    def read_failed_listings() -> Iterator[ShardPhotos]:
        for number, entry in entries.items():
            assert entry.dead_letters
            letters = _read_table(store, entry.dead_letters.path)
            if reasons:
                letters = letters.filter(pa.compute.is_in(letters["reason"], pa.array(list(reasons))))
            yield shards.read(number).select_listings(set(letters["listing_id"].to_pylist()))

    error_budget = ErrorBudget(max_error_share, job.num_photos)
    # It speaks of files that are about to be replaced.
    store.remove(SUCCESS_PATH)
    for result in _convert_to_interrupted(
        engine.classify(job, shutdown.take_until_stopped(read_failed_listings()), reader), shutdown
    ):
        error_budget.check(result.rows, len(result.shard.photos))
        old = entries[result.shard.number]
        counted["listings"] += len(result.shard.listing_ids)
        rows = _merge_rows(store, old, result.rows, shards.read(result.shard.number))
        counted["photos_recovered"] += old.num_failed_photos - sum(rows.errors.values())
        entry, files = _build_entry(result, rows, num_photos=old.num_photos)
        ledger.replace(old, entry, files)
    if shutdown.stop_requested.is_set():
        raise Interrupted("the same command, without --overwrite, goes on from here")
    if len(list(ledger.entries())) == job.num_shards:
        write_success_file(store, job)
    counted["photos_unusable"] = sum(entry.num_failed_photos for entry in ledger.entries())
    return counted


def _convert_to_interrupted(result: Iterator[ShardResult], shutdown: GracefulShutdown) -> Iterator[ShardResult]:
    """The same, where a failure that comes of being asked to stop is told as that."""
    try:
        yield from result
    except BackfillError as error:
        if shutdown.abort.is_set():
            raise Interrupted("the same command, without --overwrite, goes on from here") from error
        raise


def commit_shard(store: Store, ledger: Ledger, result: ShardResult) -> Entry:
    """Make a shard done."""
    entry, files = _build_entry(result, result.rows, num_photos=len(result.shard.photos))
    ledger.commit(entry, files)
    return entry


def write_success_file(store: Store, job: Job) -> None:
    """Say that all is there, and which files it is."""
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


class ErrorBudget:
    """Stops a job that fails more than its owner wants to look away from."""

    def __init__(self, max_share: float, num_photos: int) -> None:
        """Args: num_photos: of the whole job; a handful of photos is no share of anything."""
        self._max_share = max_share
        self._min_photos = min(ERROR_WINDOW_PHOTOS, num_photos)
        self._recent: deque[tuple[int, Mapping[str, int]]] = deque()

    def check(self, rows: ShardTables, num_photos: int) -> None:
        """Raise BackfillError where the last photos fail too often, these included."""
        self._recent.append((num_photos, rows.errors))
        while (
            len(self._recent) > 1
            and sum(number for number, _ in self._recent) - self._recent[0][0] >= ERROR_WINDOW_PHOTOS
        ):
            self._recent.popleft()
        num_recent = sum(number for number, _ in self._recent)
        errors: Counter[str] = Counter()
        for _, found in self._recent:
            errors.update(found)
        share = errors.total() / max(num_recent, self._min_photos)
        if share <= self._max_share:
            return
        shown = ", ".join(f"{reason} {number}" for reason, number in errors.most_common())
        example = rows.dead_letters.slice(0, 1).to_pylist()
        raise BackfillError(
            f"{errors.total()} of the last {num_recent} photos cannot be used ({share:.1%}, --max-error-share "
            f"{self._max_share:g}): {shown}"
            + "".join(f"\n  such as {row['photo']}: {row['message']}" for row in example)
            + "\nmend the cause, or allow more, and start the same command again: what is done stands, and these "
            "photos are read again"
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


def _merge_rows(store: Store, old: Entry, new: ShardTables, shard: ShardPhotos) -> ShardTables:
    """A shard's rows with those of some listings replaced, in the same order.

    A listing of which more photos fail than before, in the middle of an outage, keeps its old answer.
    """
    answers = _read_table(store, old.suggestions.path)
    failed_before = dict(zip(answers["listing_id"].to_pylist(), _count_photo_errors(answers), strict=True))
    row_of = {
        listing_id: row
        for row, (listing_id, failed) in enumerate(
            zip(new.suggestions["listing_id"].to_pylist(), _count_photo_errors(new.suggestions), strict=True)
        )
        if failed <= failed_before[listing_id]
    }
    both = pa.concat_tables([answers, new.suggestions])
    taken = [
        row if listing_id not in row_of else answers.num_rows + row_of[listing_id]
        for row, listing_id in enumerate(answers["listing_id"].to_pylist())
    ]
    assert old.dead_letters
    letters = _read_table(store, old.dead_letters.path).to_pylist()
    found = [letter for letter in letters if letter["listing_id"] not in row_of]
    found += [letter for letter in new.dead_letters.to_pylist() if letter["listing_id"] in row_of]
    # In the shard's order, so that the same failures give the same file.
    rows = zip(shard.groups.tolist(), shard.photos, strict=True)
    place = {(shard.listing_ids[group], photo): at for at, (group, photo) in enumerate(rows)}
    found.sort(key=lambda letter: place[letter["listing_id"], letter["photo"]])
    return ShardTables(
        suggestions=both.take(pa.array(np.array(taken, dtype=np.int64))),
        dead_letters=pa.Table.from_pylist(found, schema=new.dead_letters.schema),
    )


def _count_photo_errors(answers: pa.Table) -> list[int]:
    return [len(errors) for errors in answers["photo_errors"].to_pylist()]


def _read_table(store: Store, path: str) -> pa.Table:
    with store.open(path) as file:
        return pyarrow.parquet.read_table(file)


def _has_any_reason(errors: Mapping[str, int], reasons: Sequence[str]) -> bool:
    return any(number and (not reasons or reason in reasons) for reason, number in errors.items())


def _require_no_foreign_files(store: Store) -> None:
    """Whoever gives a folder of something else by mistake must not lose it."""
    ours = ("_job/", "suggestions/", "dead_letters/", SUCCESS_PATH)
    foreign = next((path for path in store.list_files("") if not path.startswith(ours)), None)
    if foreign:
        raise BackfillError(f"--output {store.url} holds other files, such as {foreign}; give an empty folder")
