"""The listing manifest: a table with a row a photo, held as Arrow, read from any fsspec URL."""

import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from vision.errors import ManifestError
from vision.taxonomy import Taxonomy

__all__ = ["COLUMNS", "SPLITS", "Labels", "Manifest", "photo_bytes"]

COLUMNS = ("listing_id", "photo", "category", "brand", "split")
REQUIRED_COLUMNS = ("listing_id", "photo")
SPLITS = ("train", "val", "test")
UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of a manifest's rows as indices into a taxonomy; -1 where the label is not known."""

    category_nodes: npt.NDArray[np.int64]
    """(num_photos,) index into `taxonomy.categories`; an inner node where the seller knew no better."""
    brands: npt.NDArray[np.int64]
    """(num_photos,) brand logit index; 0 is 'has no brand'."""


@dataclass(frozen=True)
class Manifest:
    """Photos of listings with what is known of them. `table` has exactly `COLUMNS`, strings, empty where not known."""

    table: pa.Table
    base_url: str
    """Where relative photo paths start: the folder of the manifest."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def load(cls, url: str) -> "Manifest":
        """Read a manifest from Parquet, CSV or JSON Lines, by its ending.

        Raises:
            ManifestError: missing or unreadable file, unknown ending, missing column or value.
        """
        readers = {
            ".parquet": pyarrow.parquet.read_table,
            ".csv": lambda f: pyarrow.csv.read_csv(
                f, convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
            ),
            ".jsonl": lambda f: pyarrow.json.read_json(
                f,
                # Inferred types would read an id that looks like a date as one.
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=pa.schema([(name, pa.string()) for name in COLUMNS]),
                    unexpected_field_behavior="ignore",
                ),
            ),
        }
        ending = posixpath.splitext(url)[1].lower()
        if ending not in readers:
            raise ManifestError(f"manifest {url}: ending {ending!r} is not one of {', '.join(readers)}")
        try:
            with fsspec.open(url, "rb") as file:
                table = readers[ending](cast(IO[bytes], file))
        except (OSError, pa.ArrowInvalid) as error:
            raise ManifestError(f"manifest {url} cannot be read: {error}") from error
        return cls(_with_all_columns(table, url), posixpath.dirname(url))

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, str]], base_url: str) -> "Manifest":
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        return cls(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), base_url)

    def save(self, path: str) -> None:
        """Write as Parquet, CSV or JSON Lines, by the ending of `path`."""
        ending = posixpath.splitext(path)[1].lower()
        with fsspec.open(path, "wb") as opened:
            file = cast(IO[bytes], opened)
            if ending == ".parquet":
                pyarrow.parquet.write_table(self.table, file)
            elif ending == ".csv":
                pyarrow.csv.write_csv(self.table, file)
            elif ending == ".jsonl":
                import json

                for row in self.table.to_pylist():
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            else:
                raise ManifestError(f"manifest {path}: ending {ending!r} is not .parquet, .csv or .jsonl")

    def digest(self) -> str:
        """sha256 of all rows in order."""
        hashed = hashlib.sha256()
        for batch in self.table.to_batches(max_chunksize=65_536):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                hashed.update(repr(row).encode())
        return hashed.hexdigest()

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name)

    def where_split(self, split: str) -> "Manifest":
        """The rows of one split.

        Raises:
            ManifestError: no row carries that split.
        """
        chosen = self.table.filter(pa.compute.equal(self.column("split"), split))
        if chosen.num_rows == 0:
            known = sorted({str(value) for value in self.column("split").unique().to_pylist()})
            raise ManifestError(f"no row of the manifest has split {split!r}; it has: {', '.join(known)}")
        return Manifest(chosen, self.base_url)

    def take(self, rows: npt.NDArray[np.int64]) -> "Manifest":
        return Manifest(self.table.take(pa.array(rows)), self.base_url)

    def photo_url(self, row: int) -> str:
        photo = str(self.column("photo")[row].as_py())
        if "://" in photo or photo.startswith("/"):
            return photo
        return posixpath.join(self.base_url, photo)

    def listing_groups(self) -> npt.NDArray[np.int64]:
        """(num_photos,) group number of each row's listing, numbered by first appearance."""
        encoded = self.column("listing_id").combine_chunks().dictionary_encode()
        return np.asarray(encoded.indices, dtype=np.int64)

    def labels(self, taxonomy: Taxonomy) -> Labels:
        """Category and brand names resolved against a taxonomy.

        Raises:
            ManifestError: every unknown value once, with its first row and the nearest known name.
        """
        problems: list[str] = []

        def find_node(text: str) -> int:
            return taxonomy.node_index[taxonomy.find_category(text)]

        categories = self._resolve("category", find_node, problems)
        brands = self._resolve("brand", taxonomy.find_brand, problems)
        if problems:
            raise ManifestError(f"labels unknown to taxonomy {taxonomy.version!r}:", problems)
        return Labels(category_nodes=categories, brands=brands)

    def _resolve(self, name: str, find: Callable[[str], int], problems: list[str]) -> npt.NDArray[np.int64]:
        encoded = self.column(name).combine_chunks().dictionary_encode()
        codes = np.asarray(encoded.indices, dtype=np.int64)
        resolved = np.full(len(encoded.dictionary), UNLABELLED, dtype=np.int64)
        for code, text in enumerate(encoded.dictionary.to_pylist()):
            if not text.strip():
                continue
            try:
                resolved[code] = find(text)
            except KeyError as error:
                rows = np.flatnonzero(codes == code)
                problems.append(f"row {rows[0] + 1} ({len(rows)} in all): {error.args[0]}")
        return resolved[codes]


def photo_bytes(url: str) -> bytes:
    """The stored bytes of one photo by path or fsspec URL.

    Raises:
        OSError: it cannot be read.
    """
    if "://" not in url:
        with open(url, "rb") as file:
            return file.read()
    try:
        with fsspec.open(url, "rb") as opened:
            return cast(IO[bytes], opened).read()
    except OSError:
        raise
    # Each file system behind fsspec raises its own types, and a missing driver an ImportError.
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _with_all_columns(table: pa.Table, url: str) -> pa.Table:
    problems = []
    missing = [name for name in REQUIRED_COLUMNS if name not in table.column_names]
    if missing:
        raise ManifestError(f"manifest {url}: column {missing[0]!r} is missing; it has {', '.join(table.column_names)}")
    columns = []
    for name in COLUMNS:
        if name in table.column_names:
            columns.append(pa.compute.fill_null(table.column(name).cast(pa.string()), ""))
        else:
            columns.append(pa.chunked_array([pa.array([""] * table.num_rows, pa.string())]))
    completed = pa.table(columns, names=list(COLUMNS))
    for name in REQUIRED_COLUMNS:
        empty = np.flatnonzero(np.asarray(pa.compute.equal(completed.column(name), "")))
        problems += [f"row {row + 1}: {name} is empty" for row in empty]
    if completed.num_rows == 0:
        problems.append("it has no rows")
    if problems:
        raise ManifestError(f"manifest {url}:", problems)
    return completed
