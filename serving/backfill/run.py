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
from serving.backfill.local_engine import Answered, BackfillEngine
from serving.backfill.output import Rows, encoded
from serving.backfill.photo_reader import Reader
from serving.backfill.plan import PhotosOfShard, ShardReader, manifest_sha256, manifest_urls, write_plan
from serving.backfill.progress import Progress
from serving.errors import BackfillError
from serving.storage import Store
from vision.runtime.cli import EXIT_INTERRUPTED

__all__ = ["Asked", "Interrupted", "Stopper", "commit", "open_job", "publish", "retry", "run"]

_log = logging.getLogger(__name__)

FINISH_S = 8.0
"""After SIGTERM: how long shards that have been begun may take to end; then they are abandoned …"""
EXIT_S = 18.0
"""… and then the process ends, whatever hangs: at no moment is anything half written."""
SUCCESS_PATH = "_SUCCESS.json"
WINDOW_PHOTOS = 1000
"""The error share is that of the last so many photos, so that a store that goes away is noticed soon in a long job."""


class Interrupted(Exception):
    """It was asked to stop and has; the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person asks for; with a model's versions it makes a job."""

    manifest: str
    output: str
    listings_per_shard: int
    top_k: int
    embedding: bool
    anew: bool


class Stopper:
    """SIGTERM and Ctrl-C: first no new shards are begun, soon after what was begun is abandoned."""

    def __init__(self, *, finish_s: float = FINISH_S, exit_s: float = EXIT_S) -> None:
        self.asked = threading.Event()
        self.abandon = threading.Event()
        self._finish_s, self._exit_s = finish_s, exit_s

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals while the block runs; main thread only."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, lambda *_: self.stop()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def stop(self) -> None:
        if not self.asked.is_set():
            self.asked.set()
            _log.info("stopping: shards that are begun may end within %g s", self._finish_s)
            threading.Thread(target=self._end, daemon=True).start()

    def until_asked(self, shards: Iterable[PhotosOfShard]) -> Iterator[PhotosOfShard]:
        for shard in shards:
            if self.asked.is_set():
                return
            yield shard

    def _end(self) -> None:
        time.sleep(self._finish_s)
        self.abandon.set()
        time.sleep(self._exit_s - self._finish_s)
        _log.error("something hangs; it is left, and so are the shards that were begun")
        os._exit(EXIT_INTERRUPTED)


def open_job(store: Store, asked: Asked, engine: BackfillEngine, say: Callable[[str], None]) -> Job:
    """The job to go on with, or a new one with its plan. Hold the store's lock.

    Raises:
        BackfillError: another job's output lies there.
        ManifestError: the manifest cannot be used.
    """
    urls = manifest_urls(asked.manifest)
    found: dict[str, Any] = {
        "manifest_sha256": manifest_sha256(urls),
        "base_url": _only_folder(urls),
        "model": engine.versions,
        "listings_per_shard": asked.listings_per_shard,
        "top_k": asked.top_k,
        "embedding": asked.embedding,
    }
    if store.exists(JOB_PATH):
        if not asked.anew:
            job = read_job(store)
            job.refuse_other(found)
            return job
    elif not asked.anew and store.paths(LEDGER_FOLDER):
        raise BackfillError(f"{store.url} has a ledger and no {JOB_PATH}; --anew drops what is there")
    _refuse_foreign(store)

    def drop() -> None:
        # Only once the new plan is made: a manifest that cannot be used costs nothing. The job goes first, for without
        # it what is left is nobody's.
        store.remove(JOB_PATH)
        for path in store.paths(""):
            if path != LOCK_PATH:
                store.remove(path)

    plan = write_plan(urls, store, listings_per_shard=asked.listings_per_shard, say=say, before=drop)
    job = Job(
        manifest=asked.manifest,
        num_listings=plan.num_listings,
        num_photos=plan.num_photos,
        num_shards=plan.num_shards,
        **found,
    )
    job.save(store)
    return job


def _only_folder(urls: Sequence[str]) -> str:
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
    stopper: Stopper,
    say: Callable[[str], None] = lambda _: None,
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
    if removed := ledger.mend():
        say(f"{removed} files that a killed run had left were removed")
    done = {entry.shard for entry in ledger.whole()}
    shards = ShardReader(store)
    left = [number for number in range(job.num_shards) if number not in done]
    if done and left:
        say(f"going on: {len(done)} of {job.num_shards} shards are done")
    progress = Progress(
        num_photos=job.num_photos,
        num_done_before=job.num_photos - shards.num_photos(left),
        waits=engine.waits.seconds,
        registry=registry,
    )
    watch = _ErrorShare(max_error_share, job.num_photos)
    reader = Reader(job.base_url, stop=stopper.abandon)
    wanted = stopper.until_asked(map(shards.read, left))
    try:
        for answered in _or_interrupted(engine.answer(job, wanted, reader), stopper):
            watch.check(answered.rows, len(answered.shard.photos))
            began_s = time.monotonic()
            entry = commit(store, ledger, answered)
            progress.done(entry, write_s=time.monotonic() - began_s)
    finally:
        progress.close()
    if stopper.asked.is_set():
        raise Interrupted(f"{progress}; the same command, without --anew, goes on from here")
    publish(store, job)
    return progress


def retry(
    store: Store,
    job: Job,
    engine: BackfillEngine,
    *,
    reasons: Sequence[str],
    max_error_share: float,
    stopper: Stopper,
) -> Mapping[str, int]:
    """Answer the listings again that have photos among the dead letters; what became of them, counted.

    Args:
        reasons: of dead letters; empty: all.

    Raises:
        BackfillError, Interrupted: as `run`.
    """
    ledger = Ledger(store)
    ledger.mend()
    entries = {entry.shard: entry for entry in ledger.entries() if _chosen(entry.errors, reasons)}
    shards = ShardReader(store)
    reader = Reader(job.base_url, stop=stopper.abandon)
    counted: Counter[str] = Counter()

    def again() -> Iterator[PhotosOfShard]:
        for number, entry in entries.items():
            assert entry.dead_letters
            letters = _read_table(store, entry.dead_letters.path)
            if reasons:
                letters = letters.filter(pa.compute.is_in(letters["reason"], pa.array(list(reasons))))
            yield shards.read(number).only(set(letters["listing_id"].to_pylist()))

    watch = _ErrorShare(max_error_share, job.num_photos)
    # It speaks of files that are about to be replaced.
    store.remove(SUCCESS_PATH)
    for answered in _or_interrupted(engine.answer(job, stopper.until_asked(again()), reader), stopper):
        watch.check(answered.rows, len(answered.shard.photos))
        old = entries[answered.shard.number]
        counted["listings"] += len(answered.shard.listing_ids)
        rows = _merged(store, old, answered.rows, shards.read(answered.shard.number))
        counted["photos_mended"] += old.num_failed_photos - sum(rows.errors.values())
        entry, files = _entry(answered, rows, num_photos=old.num_photos)
        ledger.replace(old, entry, files)
    if stopper.asked.is_set():
        raise Interrupted("the same command, without --anew, goes on from here")
    if len(list(ledger.entries())) == job.num_shards:
        publish(store, job)
    counted["photos_left"] = sum(entry.num_failed_photos for entry in ledger.entries())
    return counted


def _or_interrupted(answered: Iterator[Answered], stopper: Stopper) -> Iterator[Answered]:
    """The same, where a failure that comes of being asked to stop is told as that."""
    try:
        yield from answered
    except BackfillError as error:
        if stopper.abandon.is_set():
            raise Interrupted("the same command, without --anew, goes on from here") from error
        raise


def commit(store: Store, ledger: Ledger, answered: Answered) -> Entry:
    """Make a shard done."""
    entry, files = _entry(answered, answered.rows, num_photos=len(answered.shard.photos))
    ledger.commit(entry, files)
    return entry


def publish(store: Store, job: Job) -> None:
    """Say that all is there, and which files it is."""
    files = [
        {"path": file.path, "sha256": file.sha256, "num_rows": file.num_rows}
        for entry in Ledger(store).entries()
        for file in (entry.answers, entry.dead_letters)
        if file
    ]
    model = {"model_version": job.model.version, "calibration_version": job.model.calibration}
    store.write_json(
        SUCCESS_PATH, {"schema_version": SCHEMA_VERSION, **model, "num_listings": job.num_listings, "files": files}
    )


class _ErrorShare:
    """Stops a job that fails more than its owner wants to look away from."""

    def __init__(self, most: float, num_photos: int) -> None:
        """Args: num_photos: of the whole job; a handful of photos is no share of anything."""
        self._most = most
        self._least_photos = min(WINDOW_PHOTOS, num_photos)
        self._lately: deque[tuple[int, Mapping[str, int]]] = deque()

    def check(self, rows: Rows, num_photos: int) -> None:
        """Raise BackfillError where the last photos fail too often, these included."""
        self._lately.append((num_photos, rows.errors))
        while len(self._lately) > 1 and sum(number for number, _ in self._lately) - self._lately[0][0] >= WINDOW_PHOTOS:
            self._lately.popleft()
        num_lately = sum(number for number, _ in self._lately)
        errors: Counter[str] = Counter()
        for _, found in self._lately:
            errors.update(found)
        share = errors.total() / max(num_lately, self._least_photos)
        if share <= self._most:
            return
        shown = ", ".join(f"{reason} {number}" for reason, number in errors.most_common())
        example = rows.dead_letters.slice(0, 1).to_pylist()
        raise BackfillError(
            f"{errors.total()} of the last {num_lately} photos cannot be used ({share:.1%}, --max-error-share "
            f"{self._most:g}): {shown}"
            + "".join(f"\n  such as {row['photo']}: {row['message']}" for row in example)
            + "\nmend the cause, or allow more, and start the same command again: what is done stands, and these "
            "photos are read again"
        )


def _entry(answered: Answered, rows: Rows, *, num_photos: int) -> tuple[Entry, dict[str, bytes]]:
    files: dict[str, bytes] = {}
    number = answered.shard.number
    place = f"shard_group={number // 1000:04d}/shard-{number:07d}.parquet"

    def file(folder: str, table: pa.Table) -> File:
        data = encoded(table)
        files[f"{folder}/{place}"] = data
        return File(
            path=f"{folder}/{place}",
            sha256=hashlib.sha256(data).hexdigest(),
            num_rows=table.num_rows,
            num_bytes=len(data),
        )

    entry = Entry(
        shard=number,
        num_listings=rows.answers.num_rows,
        num_photos=num_photos,
        answers=file("answers", rows.answers),
        dead_letters=file("dead_letters", rows.dead_letters) if rows.dead_letters.num_rows else None,
        outcomes=rows.outcomes,
        errors=rows.errors,
        seconds=answered.seconds,
        finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return entry, files


def _merged(store: Store, old: Entry, new: Rows, shard: PhotosOfShard) -> Rows:
    """A shard's rows with those of some listings replaced, in the same order.

    A listing of which more photos fail than before, in the middle of an outage, keeps its old answer.
    """
    answers = _read_table(store, old.answers.path)
    failed_before = dict(zip(answers["listing_id"].to_pylist(), _num_errors(answers), strict=True))
    row_of = {
        listing_id: row
        for row, (listing_id, failed) in enumerate(
            zip(new.answers["listing_id"].to_pylist(), _num_errors(new.answers), strict=True)
        )
        if failed <= failed_before[listing_id]
    }
    both = pa.concat_tables([answers, new.answers])
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
    return Rows(
        answers=both.take(pa.array(np.array(taken, dtype=np.int64))),
        dead_letters=pa.Table.from_pylist(found, schema=new.dead_letters.schema),
    )


def _num_errors(answers: pa.Table) -> list[int]:
    return [len(errors) for errors in answers["photo_errors"].to_pylist()]


def _read_table(store: Store, path: str) -> pa.Table:
    with store.opened(path) as file:
        return pyarrow.parquet.read_table(file)


def _chosen(errors: Mapping[str, int], reasons: Sequence[str]) -> bool:
    return any(number and (not reasons or reason in reasons) for reason, number in errors.items())


def _refuse_foreign(store: Store) -> None:
    """Whoever gives a folder of something else by mistake must not lose it."""
    ours = ("_job/", "answers/", "dead_letters/", SUCCESS_PATH)
    foreign = next((path for path in store.paths("") if not path.startswith(ours)), None)
    if foreign:
        raise BackfillError(f"--output {store.url} holds other files, such as {foreign}; give an empty folder")
