"""Inspect the output of a backfill: status, verification, distribution, and the difference from another output.

The output is as large as the marketplace; DuckDB queries it in bounded memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serving.backfill.job import LOCK_PATH, Job, read_job
from serving.backfill.ledger import Ledger, Totals
from serving.backfill.output import CLASSIFIED
from serving.backfill.plan import DUCKDB_MEMORY_LIMIT, ROWS_PATH
from serving.errors import BackfillError
from serving.storage import Store

__all__ = ["BackfillDiff", "Status", "Verification", "describe_distribution", "diff", "status", "verify"]


_NEWER_COLUMNS = "SELECT NULL::BOOL AS out_of_scope, NULL::BOOL AS photos_disagree WHERE FALSE"
"""SQL of no row with the columns that files of earlier versions lack."""


@dataclass(frozen=True, kw_only=True)
class Status:
    job: Job
    totals: Totals
    is_running: bool
    """Whether a process of this machine runs the job; False for a job of another machine."""

    def __str__(self) -> str:
        job, totals = self.job, self.totals
        state = "done" if totals.num_shards == job.num_shards else "running" if self.is_running else "not running"
        return "\n".join(
            [
                f"{job.manifest}: {state}; last shard finished {totals.last_finished_at or 'never'}",
                f"model {job.model.name} {job.model.version} ({job.model.backend}), taxonomy {job.model.taxonomy}, "
                f"calibration {job.model.calibration}",
                f"{'shards':<28}{totals.num_shards:>12} of {job.num_shards}",
                f"{'listings':<28}{totals.num_listings:>12} of {job.num_listings}",
                f"{'photos':<28}{totals.num_photos:>12} of {job.num_photos}",
                *(f"  {result:<26}{number:>12}" for result, number in sorted(totals.results.items())),
                *(f"  {reason:<26}{number:>12} photos" for reason, number in sorted(totals.errors.items())),
            ]
        )


def status(store: Store) -> Status:
    """Return how far the backfill is. Raises BackfillError: there is none."""
    job = read_job(store)
    return Status(job=job, totals=Ledger(store).totals(), is_running=store.is_locked(LOCK_PATH))


@dataclass(frozen=True, kw_only=True)
class Verification:
    num_listings: int
    """Listings of the manifest."""
    num_suggestions: int
    num_missing: int
    num_duplicated: int
    num_unexpected: int
    """Suggestions for listings that the manifest lacks."""
    results: Mapping[str, int]
    problems: Sequence[str]

    @property
    def is_valid(self) -> bool:
        return not (self.problems or self.num_missing or self.num_duplicated or self.num_unexpected)

    def __str__(self) -> str:
        lines = [
            f"{'listings of the manifest':<28}{self.num_listings:>12}",
            f"{'suggestions':<28}{self.num_suggestions:>12}",
            f"{'  missing':<28}{self.num_missing:>12}",
            f"{'  doubled':<28}{self.num_duplicated:>12}",
            f"{'  of no listing':<28}{self.num_unexpected:>12}",
            *(f"  {result:<26}{number:>12}" for result, number in sorted(self.results.items())),
            *(f"problem: {problem}" for problem in self.problems[:20]),
        ]
        return "\n".join([*lines, "valid" if self.is_valid else "NOT valid"])


def verify(store: Store) -> Verification:
    """Check that every listing has one suggestion and that every file matches the ledger.

    Raises:
        BackfillError: there is no backfill.
    """
    read_job(store)
    problems = []
    files = []
    for entry in Ledger(store).entries():
        if entry.pending_replacement:
            problems.append(f"shard {entry.shard} is being replaced; rerun the same command")
        for file in (entry.suggestions, entry.dead_letters):
            if file is None:
                continue
            if not store.exists(file.path):
                problems.append(f"{file.path} is missing")
            elif store.sha256(file.path) != file.sha256:
                problems.append(f"{file.path}: its checksum differs from the ledger")
            elif file is entry.suggestions:
                files.append(file.path)
    known = {path for entry in Ledger(store).entries() for path in _list_paths(entry.suggestions, entry.dead_letters)}
    found = [path for folder in ("suggestions", "dead_letters") for path in store.list_files(folder)]
    problems += [f"{path} is in no ledger entry; rerun the same command" for path in found if path not in known]
    with _connect(store) as connection:
        connection.execute("CREATE TABLE suggestions (listing_id VARCHAR, result VARCHAR)")
        for some in _split_batches(files):
            connection.execute(f"INSERT INTO suggestions SELECT listing_id, result FROM {_parquet_sql(store, some)}")
        listings = f"(SELECT DISTINCT listing_id FROM {_parquet_sql(store, [ROWS_PATH])})"
        row = _fetch_row(
            connection,
            f"""
            SELECT
                (SELECT count(*) FROM {listings}),
                (SELECT count(*) FROM suggestions),
                (SELECT count(*) FROM {listings} WHERE listing_id NOT IN (SELECT listing_id FROM suggestions)),
                (SELECT count(*) FROM (SELECT 1 FROM suggestions GROUP BY listing_id HAVING count(*) > 1)),
                (SELECT count(*) FROM suggestions WHERE listing_id NOT IN (SELECT listing_id FROM {listings}))
            """,
        )
        results = dict(connection.execute("SELECT result, count(*) FROM suggestions GROUP BY result").fetchall())
    return Verification(
        num_listings=row[0],
        num_suggestions=row[1],
        num_missing=row[2],
        num_duplicated=row[3],
        num_unexpected=row[4],
        results=results,
        problems=problems,
    )


def describe_distribution(store: Store) -> str:
    """Return tables for people: prefilled shares and scores by top category, brands, and what the gates stop."""
    with _connect(store) as connection:
        source = _suggestions_sql(store)
        rows = connection.execute(
            f"""
            SELECT category_path[1].name AS name, count(*) AS number,
                avg(CAST(filled_category_id IS NOT NULL AS INT)), avg(CAST(brand.filled AS INT)),
                avg(category_path[-1].probability)
            FROM {source} WHERE result = '{CLASSIFIED}' GROUP BY name ORDER BY number DESC, name LIMIT 20
            """
        ).fetchall()
        brands = connection.execute(
            f"""
            SELECT brand.kind, count(*), avg(CAST(brand.filled AS INT)) FROM {source}
            WHERE result = '{CLASSIFIED}' AND brand IS NOT NULL
            GROUP BY 1 ORDER BY 2 DESC
            """
        ).fetchall()
        gates = connection.execute(
            f"""
            SELECT sum(out_of_scope::INT), avg(out_of_scope::INT), sum(photos_disagree::INT), avg(photos_disagree::INT)
            FROM (SELECT * FROM {source} UNION ALL BY NAME {_NEWER_COLUMNS}) WHERE result = '{CLASSIFIED}'
            """
        ).fetchone()
    lines = [f"{'top category':<32}{'listings':>10}{'filled':>9}{'brand filled':>14}{'leaf score':>12}"]
    for name, num, filled, brand, score in rows:
        brand_filled = "" if brand is None else f"{brand:.1%}"
        lines.append(f"{name:<32}{num:>10}{filled:>9.1%}{brand_filled:>14}{score:>12.3f}")
    lines += [f"brand: {kind:<25}{number:>10}{'':>9}{filled:>14.1%}" for kind, number, filled in brands]
    lines += [
        f"{name:<32}{num:>10}{share:>9.1%}"
        for name, num, share in (("out of scope: nothing filled", *gates[:2]), ("photos disagree", *gates[2:]))
        if num is not None  # an earlier version did not tell
    ]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class BackfillDiff:
    """Counts of listings; changes are those of listings that both backfills classified."""

    num_in_both: int
    num_only_old: int
    num_only_new: int
    num_category_changed: int
    """Listings with another likeliest leaf."""
    num_top_category_changed: int
    num_brand_changed: int
    num_filled_changed: int
    """Listings whose prefilled category differs, or is prefilled in one of the two only."""
    pairs: Sequence[tuple[str, str, int]]
    """(leaf before, leaf after, count) of the most frequent changes."""
    examples: Sequence[tuple[str, str, float, str, float]]
    """(listing, leaf before, its score, leaf after, its score), by descending score after."""

    def __str__(self) -> str:
        def format_share(number: int) -> str:
            return f"{number:>12}  {number / max(self.num_in_both, 1):7.2%}"

        return "\n".join(
            [
                f"{'listings in both':<36}{self.num_in_both:>12}",
                f"{'  another category':<36}{format_share(self.num_category_changed)}",
                f"{'  another top category':<36}{format_share(self.num_top_category_changed)}",
                f"{'  another brand':<36}{format_share(self.num_brand_changed)}",
                f"{'  another prefilled category':<36}{format_share(self.num_filled_changed)}",
                f"{'only in the old':<36}{self.num_only_old:>12}",
                f"{'only in the new':<36}{self.num_only_new:>12}",
                *(f"{number:>8}  {before} → {after}" for before, after, number in self.pairs),
                *(
                    f"{listing}: {before} {score_before:.3f} → {after} {score_after:.3f}"
                    for listing, before, score_before, after, score_after in self.examples
                ),
            ]
        )


def diff(old: Store, new: Store, *, num_examples: int = 10) -> BackfillDiff:
    """Compare the suggestions of two backfills.

    Raises:
        BackfillError: one of them holds no backfill.
    """
    read_job(old)
    read_job(new)
    columns = (
        "listing_id, category_id, category_path[1].id AS top, category_path[-1].probability AS score, "
        "coalesce(filled_category_id, '') AS filled, coalesce(brand.id, brand.kind) AS brand"
    )
    with _connect(old, new) as connection:
        for name, store in (("old", old), ("new", new)):
            connection.execute(
                f"CREATE TABLE {name} AS SELECT {columns} FROM {_suggestions_sql(store)} WHERE result = '{CLASSIFIED}'"
            )
        both = "old JOIN new USING (listing_id)"
        row = _fetch_row(
            connection,
            f"""
            SELECT count(*),
                count(*) FILTER (old.category_id <> new.category_id), count(*) FILTER (old.top <> new.top),
                count(*) FILTER (old.brand IS DISTINCT FROM new.brand), count(*) FILTER (old.filled <> new.filled)
            FROM {both}
            """,
        )
        alone = _fetch_row(
            connection,
            """
            SELECT (SELECT count(*) FROM old ANTI JOIN new USING (listing_id)),
                (SELECT count(*) FROM new ANTI JOIN old USING (listing_id))
            """,
        )
        changed = f"FROM {both} WHERE old.category_id <> new.category_id"
        pairs = connection.execute(
            f"SELECT old.category_id, new.category_id, count(*) {changed} GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT 10"
        ).fetchall()
        examples = connection.execute(
            f"""
            SELECT listing_id, old.category_id, old.score, new.category_id, new.score {changed}
            ORDER BY new.score DESC, listing_id LIMIT {int(num_examples)}
            """
        ).fetchall()
    return BackfillDiff(
        num_in_both=row[0],
        num_category_changed=row[1],
        num_top_category_changed=row[2],
        num_brand_changed=row[3],
        num_filled_changed=row[4],
        num_only_old=alone[0],
        num_only_new=alone[1],
        pairs=pairs,
        examples=examples,
    )


@contextmanager
def _connect(*stores: Store) -> Iterator[Any]:
    import tempfile

    import duckdb

    with tempfile.TemporaryDirectory(prefix="listing-vision-duckdb-") as folder:
        config: dict[str, Any] = {"memory_limit": DUCKDB_MEMORY_LIMIT, "temp_directory": folder}
        with duckdb.connect(f"{folder}/questions.duckdb", config=config) as connection:
            for fs in {store.fs.protocol: store.fs for store in stores if not store.is_local}.values():
                connection.register_filesystem(fs)
            yield connection


def _suggestions_sql(store: Store) -> str:
    """Return the source of all suggestions. Raises BackfillError: no shard is committed yet."""
    files = [entry.suggestions.path for entry in Ledger(store).entries()]
    if not files:
        raise BackfillError(f"{store.url}: no shard is committed yet")
    return _parquet_sql(store, files)


def _parquet_sql(store: Store, paths: Sequence[str]) -> str:
    quoted = ", ".join("'" + store.full_path(path).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{quoted}], hive_partitioning = false)"


def _split_batches(paths: Sequence[str], size: int = 1000) -> Iterator[Sequence[str]]:
    for begin in range(0, len(paths), size):
        yield paths[begin : begin + size]


def _list_paths(*files: Any) -> Iterator[str]:
    return (file.path for file in files if file)


def _fetch_row(connection: Any, query: str) -> tuple[Any, ...]:
    found: tuple[Any, ...] = connection.execute(query).fetchone()
    return found
