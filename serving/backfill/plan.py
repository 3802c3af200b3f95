"""Split a manifest of any size into shards of whole listings, once, before anything is classified.

DuckDB groups the rows by listing and keeps the listings in the order of their first rows, so that photos which are
stored together are read together; it spills to disk what exceeds its memory. The plan is one Parquet file of rows, and
one with the first row and the number of rows of each shard.
"""

import bisect
import hashlib
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from serving.errors import BackfillError
from serving.storage import Store
from vision.errors import ManifestError
from vision.runtime.wording import format_count
from vision.tables import TABLE_ENDINGS, get_table_format, open_table

__all__ = ["Plan", "ShardPhotos", "ShardReader", "hash_manifest", "list_manifest_files", "write_plan"]

ROWS_PATH = "_job/rows.parquet"
SHARDS_PATH = "_job/shards.parquet"
DUCKDB_MEMORY_LIMIT = "1500MB"
_ROW_GROUP_ROWS = 16_384
_CHUNK_BYTES = 1 << 20
_COLUMNS = ("listing_id", "photo")
_MAX_NAMED_ROWS = 20
_ENDINGS = ", ".join(TABLE_ENDINGS)


@dataclass(frozen=True, kw_only=True)
class ShardPhotos:
    """Photos of whole listings, grouped by listing."""

    number: int
    listing_ids: Sequence[str]
    """(L,), in the manifest's order."""
    photos: Sequence[str]
    """(P,) paths or URLs as the manifest has them."""
    groups: npt.NDArray[np.int64]
    """(P,) index into `listing_ids`, ascending."""

    def select_listings(self, listing_ids: set[str]) -> "ShardPhotos":
        """Return the photos of some of the listings."""
        kept = [number for number, listing_id in enumerate(self.listing_ids) if listing_id in listing_ids]
        rows = np.flatnonzero(np.isin(self.groups, kept))
        return ShardPhotos(
            number=self.number,
            listing_ids=[self.listing_ids[number] for number in kept],
            photos=[self.photos[row] for row in rows.tolist()],
            groups=np.unique(self.groups[rows], return_inverse=True)[1].astype(np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    num_listings: int
    num_photos: int
    num_shards: int


def list_manifest_files(url: str) -> list[str]:
    """Return the sorted files of a manifest: a file, all files below a folder, or those that match a pattern.

    Names in the folder that begin with `.` or `_` are skipped, as Spark and Hive do.

    Raises:
        ManifestError: there is no file, or one that cannot be read.
    """
    fs, path = fsspec.core.url_to_fs(url)
    if "*" in path:
        found = [name for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
        found = [name for name in found if not posixpath.basename(name).startswith(("_", "."))]
    elif fs.isdir(path):
        below = len(path.rstrip("/")) + 1
        found = [name for name in fs.find(path) if not _is_skipped(name[below:])]
    else:
        found = [path] if fs.exists(path) else []
    if not found:
        raise ManifestError(f"manifest {url}: there is no such file, nor any that is read; give {_ENDINGS}")
    if foreign := [name for name in sorted(found) if get_table_format(name) is None]:
        raise ManifestError(
            f"manifest {url}: {len(foreign)} of {len(found)} files cannot be read, as they end in none of {_ENDINGS}; "
            "move them, begin their names with _, or give a pattern such as '*.parquet':",
            foreign,
        )
    return sorted(found if isinstance(fs, LocalFileSystem) else [fs.unstrip_protocol(name) for name in found])


def _is_skipped(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def hash_manifest(urls: Sequence[str]) -> str:
    """Return the SHA-256 of the contents of all files, in their order."""
    hashed = hashlib.sha256()
    for url in urls:
        with fsspec.open(url, "rb") as opened:
            file = cast(IO[bytes], opened)
            while piece := file.read(_CHUNK_BYTES):
                hashed.update(piece)
        hashed.update(b"\0")
    return hashed.hexdigest()


def write_plan(
    urls: Sequence[str],
    store: Store,
    *,
    listings_per_shard: int,
    absolute_photos: bool = False,
    notify: Callable[[str], None] = lambda _: None,
    before_write: Callable[[], None] = lambda: None,
) -> Plan:
    """Split a manifest into shards and write the plan to the store.

    Args:
        absolute_photos: whether relative paths of photos are refused.
        before_write: called once the plan is made, before anything is written to the store.

    Raises:
        ManifestError: the manifest cannot be read, or a row has no listing, no photo, or a relative path that is
            refused.
        BackfillError: the temporary files cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="listing-vision-backfill-") as folder:
        collected, rows = Path(folder) / "collected.parquet", Path(folder) / "rows.parquet"
        notify(f"reading {len(urls)} manifest files" if len(urls) > 1 else f"reading {urls[0]}")
        first_rows = _collect_rows(urls, collected)
        _check_rows(collected, urls, first_rows, absolute_photos=absolute_photos)
        _group_rows_by_listing(collected, rows, folder)
        plan, shards = _split_into_shards(rows, listings_per_shard)
        before_write()
        store.upload(ROWS_PATH, rows)
        cut = Path(folder) / "shards.parquet"
        pyarrow.parquet.write_table(shards, cut)
        # Written last, since its presence means that the plan is complete.
        store.upload(SHARDS_PATH, cut)
    return plan


class ShardReader:
    """Reads shards of a plan; use it from one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.open(SHARDS_PATH) as file:
            shards = pyarrow.parquet.read_table(file)
        self._first_rows: npt.NDArray[np.int64] = shards["first_row"].to_numpy()
        self._num_rows: npt.NDArray[np.int64] = shards["num_photos"].to_numpy()
        self._file: pyarrow.parquet.ParquetFile | None = None
        self._group_starts: npt.NDArray[np.int64] = np.zeros(1, np.int64)
        self._cached_row_group: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return len(self._first_rows)

    def num_photos(self, numbers: Sequence[int]) -> int:
        return int(self._num_rows[list(numbers)].sum())

    def read(self, number: int) -> ShardPhotos:
        first, num_rows = int(self._first_rows[number]), int(self._num_rows[number])
        pieces = list(self._read_rows(first, first + num_rows))
        table = pa.concat_tables(pieces).combine_chunks()
        ids = table["listing_id"].combine_chunks()
        changes = np.flatnonzero(_differs_from_previous(ids))
        groups = np.zeros(num_rows, np.int64)
        groups[changes] = 1
        return ShardPhotos(
            number=number,
            listing_ids=ids.take(pa.array(changes)).to_pylist(),
            photos=table["photo"].to_pylist(),
            groups=np.cumsum(groups) - 1,
        )

    def _read_rows(self, begin: int, end: int) -> Iterator[pa.Table]:
        if self._file is None:
            opened = fsspec.open(self._store.full_path(ROWS_PATH), "rb").open()
            self._file = pyarrow.parquet.ParquetFile(opened)
            sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            self._group_starts = np.concatenate([[0], np.cumsum(sizes)])
        group = int(np.searchsorted(self._group_starts, begin, side="right")) - 1
        while begin < end:
            start, stop = int(self._group_starts[group]), int(self._group_starts[group + 1])
            # The next shard usually begins in the same group.
            if self._cached_row_group is None or self._cached_row_group[0] != group:
                self._cached_row_group = group, self._file.read_row_group(group)
            yield self._cached_row_group[1].slice(begin - start, min(end, stop) - begin)
            begin, group = min(end, stop), group + 1


def _collect_rows(urls: Sequence[str], output: Path) -> list[int]:
    """Write the needed columns of all files, with the row's number from 0; return the first row of each file."""
    first_rows, num_rows = [], 0
    schema = pa.schema([*((name, pa.string()) for name in _COLUMNS), ("row", pa.int64())])
    with pyarrow.parquet.ParquetWriter(output, schema) as writer:
        for url in urls:
            first_rows.append(num_rows)
            table = open_table(url)
            for name in _COLUMNS:
                if name not in table.columns:
                    raise ManifestError(
                        f"manifest {url}: column {name!r} is missing; it has {', '.join(table.columns)}"
                    )
            for batch in table.read(_COLUMNS, paths=("photo",)):
                rows = pa.array(np.arange(num_rows, num_rows + len(batch)))
                writer.write_batch(pa.RecordBatch.from_arrays([*batch.columns, rows], schema=schema))
                num_rows += len(batch)
    return first_rows


def _group_rows_by_listing(collected: Path, output: Path, temporary: str) -> None:
    import duckdb

    with duckdb.connect(
        config={"memory_limit": DUCKDB_MEMORY_LIMIT, "temp_directory": f"{temporary}/spilled"}
    ) as connection:
        try:
            connection.execute(
                f"""
                COPY (
                    WITH placed AS (SELECT *, min(row) OVER (PARTITION BY listing_id) AS first FROM '{collected}')
                    SELECT listing_id, photo FROM placed ORDER BY first, row
                ) TO '{output}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP_ROWS})
                """
            )
        except duckdb.Error as error:
            raise BackfillError(f"the manifest's rows cannot be grouped in {temporary}: {error}") from error


def _check_rows(collected: Path, urls: Sequence[str], first_rows: Sequence[int], *, absolute_photos: bool) -> None:
    """Raise ManifestError where a row cannot be used, with the number of such rows and the first ones."""
    problems: list[str] = []
    num_problems = 0
    for batch in pyarrow.parquet.ParquetFile(collected).iter_batches():
        ids, photos = batch["listing_id"], batch["photo"]
        no_id, no_photo = pa.compute.equal(ids, ""), pa.compute.equal(photos, "")
        bad = pa.compute.or_(no_id, no_photo)
        if absolute_photos:
            bad = pa.compute.or_(bad, pa.compute.invert(pa.compute.match_substring_regex(photos, "^/|://")))
        num_problems += pa.compute.sum(bad).as_py() or 0
        for at in pa.compute.indices_nonzero(bad)[: _MAX_NAMED_ROWS - len(problems)].to_pylist():
            row = batch["row"][at].as_py()
            file = bisect.bisect_right(first_rows, row) - 1
            if no_id[at].as_py() or no_photo[at].as_py():
                what = f"{'listing_id' if no_id[at].as_py() else 'photo'} is empty"
            else:
                what = f"photo {photos[at]} is relative, and the files are in several folders; write the whole path"
            problems.append(f"{urls[file]} row {row - first_rows[file] + 1}: {what}")
    if problems:
        raise ManifestError(f"{format_count(num_problems, 'row')} of the manifest cannot be used:", problems)


def _split_into_shards(rows: Path, listings_per_shard: int) -> tuple[Plan, pa.Table]:
    """Split the rows into shards of so many whole listings; the last may have fewer."""
    firsts: list[npt.NDArray[np.int64]] = []
    num_rows = num_listings = 0
    last: Any = None
    for batch in pyarrow.parquet.ParquetFile(rows).iter_batches(65_536, columns=["listing_id"]):
        ids = batch.column(0)
        begins = np.flatnonzero(_differs_from_previous(ids, last))
        numbers = num_listings + np.arange(len(begins))
        firsts.append(num_rows + begins[numbers % listings_per_shard == 0])
        num_rows += len(ids)
        num_listings += len(begins)
        last = ids[-1]
    if not num_rows:
        raise ManifestError("the manifest has no rows")
    first_rows = np.concatenate(firsts).astype(np.int64)
    sizes = np.diff(np.append(first_rows, num_rows))
    table = pa.table({"first_row": first_rows, "num_photos": sizes})
    return Plan(num_listings=num_listings, num_photos=num_rows, num_shards=len(first_rows)), table


def _differs_from_previous(ids: pa.Array, last: Any = None) -> npt.NDArray[np.bool_]:
    """Return (N,) whether each id differs from the one before it; the first is compared with `last`."""
    changed = np.ones(len(ids), dtype=bool)
    changed[1:] = pa.compute.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
    if last is not None:
        changed[0] = ids[0] != last
    return changed
