"""Split a manifest of any size into shards of whole listings, once, before anything is classified.

DuckDB groups the rows by listing and keeps the listings in the order of their first rows, so that photos which are
stored together are read together; it spills to disk what exceeds its memory. The plan is one Parquet file of rows, and
one with the first row and the number of rows of each shard.
"""

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

from serving.storage import Store
from vision.errors import ManifestError

__all__ = ["Plan", "ShardPhotos", "ShardReader", "hash_manifest", "list_manifest_files", "write_plan"]

ROWS_PATH = "_job/rows.parquet"
SHARDS_PATH = "_job/shards.parquet"
MANIFEST_EXTENSIONS = (".parquet", ".csv", ".jsonl")
DUCKDB_MEMORY_LIMIT = "1500MB"
_ROW_GROUP_ROWS = 16_384
_CHUNK_BYTES = 1 << 20


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
    """Return the sorted files of a manifest: a file, the files of a folder, or those that match a pattern.

    Raises:
        ManifestError: there is no file, or the files' endings differ or are unknown.
    """
    fs, path = fsspec.core.url_to_fs(url)
    if "*" in path:
        found = sorted(fs.glob(path))
    elif fs.isdir(path):
        found = sorted(name for name in fs.find(path) if name.endswith(MANIFEST_EXTENSIONS))
    else:
        found = [path] if fs.exists(path) else []
    if not found:
        raise ManifestError(
            f"manifest {url}: there is no such file, nor any ending in {', '.join(MANIFEST_EXTENSIONS)}"
        )
    endings = {posixpath.splitext(name)[1].lower() for name in found}
    if len(endings) > 1 or not endings <= set(MANIFEST_EXTENSIONS):
        raise ManifestError(
            f"manifest {url}: files end in {', '.join(sorted(endings))}; use one of {', '.join(MANIFEST_EXTENSIONS)}"
        )
    return found if isinstance(fs, LocalFileSystem) else [fs.unstrip_protocol(name) for name in found]


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
    notify: Callable[[str], None] = lambda _: None,
    before_write: Callable[[], None] = lambda: None,
) -> Plan:
    """Split a manifest into shards and write the plan to the store.

    Args:
        before_write: called once the plan is made, before anything is written to the store.

    Raises:
        ManifestError: the manifest cannot be read, or a row has no listing or no photo.
    """
    with tempfile.TemporaryDirectory(prefix="listing-vision-backfill-") as folder:
        rows = Path(folder) / "rows.parquet"
        notify(f"reading {len(urls)} manifest files" if len(urls) > 1 else f"reading {urls[0]}")
        _group_rows_by_listing(urls, rows, folder)
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


def _group_rows_by_listing(urls: Sequence[str], output: Path, temporary: str) -> None:
    import duckdb

    with duckdb.connect(
        config={"memory_limit": DUCKDB_MEMORY_LIMIT, "temp_directory": f"{temporary}/spilled"}
    ) as connection:
        fs = fsspec.core.url_to_fs(urls[0])[0]
        if not isinstance(fs, LocalFileSystem):
            connection.register_filesystem(fs)
        source = _source_sql(urls)
        try:
            found = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
            for name in ("listing_id", "photo"):
                if name not in found:
                    raise ManifestError(f"manifest {urls[0]}: column {name!r} is missing; it has {', '.join(found)}")
            connection.execute(
                f"""
                COPY (
                    WITH numbered AS (
                        SELECT coalesce(listing_id::VARCHAR, '') AS listing_id, coalesce(photo::VARCHAR, '') AS photo,
                            row_number() OVER () AS row
                        FROM {source}
                    ),
                    placed AS (SELECT *, min(row) OVER (PARTITION BY listing_id) AS first FROM numbered)
                    SELECT listing_id, photo, row FROM placed ORDER BY first, row
                ) TO '{output}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP_ROWS})
                """
            )
            empty = connection.execute(
                f"""
                SELECT row, listing_id = '', count(*) OVER () FROM '{output}' WHERE listing_id = '' OR photo = ''
                ORDER BY row LIMIT 20
                """
            ).fetchall()
        except duckdb.Error as error:
            raise ManifestError(f"manifest {urls[0]} cannot be read: {error}") from error
    if empty:
        problems = [f"row {row}: {'listing_id' if no_id else 'photo'} is empty" for row, no_id, _ in empty]
        raise ManifestError(f"manifest {urls[0]}: {empty[0][2]} rows cannot be used:", problems)


def _source_sql(urls: Sequence[str]) -> str:
    """Return SQL that reads the files; text columns stay text, since an id may look like a date."""
    listed = "[" + ", ".join("'" + url.replace("'", "''") + "'" for url in urls) + "]"
    ending = posixpath.splitext(urls[0])[1].lower()
    if ending == ".parquet":
        return f"read_parquet({listed})"
    if ending == ".csv":
        # No sniffing: an id may begin with a comment character.
        form = "delim = ',', quote = '\"', escape = '\"', comment = '', skip = 0"
        return f"read_csv({listed}, all_varchar = true, header = true, {form})"
    return f"read_json({listed}, format = 'newline_delimited', columns = {{listing_id: 'VARCHAR', photo: 'VARCHAR'}})"


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
