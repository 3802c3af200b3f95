"""The listing manifest: a table with one row per photo, held as Arrow, read from any fsspec URL."""

import contextlib
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from vision.errors import ManifestError
from vision.photo_files import resolve_photo_url
from vision.tables import open_table
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = [
    "COLUMNS",
    "PLANNED_SPLIT",
    "SPLITS",
    "Labels",
    "Manifest",
    "is_out_of_scope_label",
    "open_for_replacement",
]

COLUMNS = ("listing_id", "photo", "category", "brand", "split", "seller_id", "listed_at")
REQUIRED_COLUMNS = ("listing_id", "photo")
SPLITS = ("train", "val", "calibrate", "test")
PLANNED_SPLIT = "planned"
"""Listings that were drawn among those that a threshold fills: evidence for that threshold alone."""
UNLABELLED = -1
OUT_OF_SCOPE = -2
OUT_OF_SCOPE_LABEL = "out of scope"
"""As the category of a listing that the taxonomy does not cover."""

# Ten million rows of one column are more bytes than 32-bit offsets reach, and joining chunks must not overflow;
# columns of few values take four bytes a row as dictionaries.
_DICTIONARY_COLUMNS = ("category", "brand", "split")
_SCHEMA = pa.schema(
    [
        (name, pa.dictionary(pa.int32(), pa.string()) if name in _DICTIONARY_COLUMNS else pa.large_string())
        for name in COLUMNS
    ]
)
_SLICE_ROWS = 1 << 20


def is_out_of_scope_label(text: str) -> bool:
    return text.strip().casefold() == OUT_OF_SCOPE_LABEL


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of a manifest's rows as indices into a taxonomy; -1 where the label is not known."""

    category_nodes: npt.NDArray[np.int64]
    """(num_photos,) index into `taxonomy.categories`; an inner node where the seller knew no better; `OUT_OF_SCOPE`
    where the taxonomy does not cover the product."""
    brands: npt.NDArray[np.int64]
    """(num_photos,) brand logit index; 0 is 'has no brand', `OTHER_BRAND` a brand that the taxonomy lacks."""


@dataclass(frozen=True)
class Manifest:
    """Photos of listings with their labels.

    `table` has exactly `COLUMNS`, text, empty where not known: large strings, or dictionaries of strings where few
    values repeat, the same dictionary in every chunk.
    """

    table: pa.Table
    base_url: str
    """Where relative photo paths start: the folder of the manifest."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def load(cls, url: str) -> "Manifest":
        """Read a manifest from Parquet, CSV or JSON Lines, by its ending; `vision.tables` says how.

        Raises:
            ManifestError: missing or unreadable file, unknown ending, missing column or value.
        """
        source = open_table(url)
        missing = [name for name in REQUIRED_COLUMNS if name not in source.columns]
        if missing:
            raise ManifestError(f"manifest {url}: column {missing[0]!r} is missing; it has {', '.join(source.columns)}")
        batches = source.read([name for name in COLUMNS if name in source.columns], paths=("photo",))
        pieces = [_complete_columns(pa.Table.from_batches([batch])) for batch in batches]
        table = pa.concat_tables([_SCHEMA.empty_table(), *pieces]).unify_dictionaries()
        _check_required(table, url)
        return cls(table, posixpath.dirname(url))

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, str]], base_url: str) -> "Manifest":
        """Build a manifest from dicts; a missing key means not known."""
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        return cls(_complete_columns(pa.Table.from_pylist([dict(row) for row in rows], schema=schema)), base_url)

    @classmethod
    def from_table(cls, table: pa.Table, base_url: str) -> "Manifest":
        """Build a manifest from columns of text by the names of `COLUMNS`; missing ones are not known."""
        return cls(_complete_columns(table), base_url)

    def save(self, path: str) -> None:
        """Write as Parquet, CSV or JSON Lines, by the ending of `path`, atomically.

        Raises:
            ManifestError: unknown ending.
        """
        writers = {".parquet": _write_parquet, ".csv": pyarrow.csv.write_csv, ".jsonl": _write_jsonl}
        writer = writers.get(_get_ending(path))
        if writer is None:
            raise ManifestError(f"manifest {path}: ending {_get_ending(path)!r} is not one of {', '.join(writers)}")
        with open_for_replacement(path) as file:
            writer(self.table, file)

    def compute_digest(self) -> str:
        """sha256 of all values in order, the same however the table is chunked and encoded."""
        hashed = hashlib.sha256()
        for name in COLUMNS:
            lengths, values = hashlib.sha256(), hashlib.sha256()
            for piece in _iter_slices(self.column(name)):
                offsets, data = _get_text_buffers(piece)
                lengths.update(np.diff(offsets).astype("<i4").data)
                values.update(data)
            hashed.update(name.encode() + b"\0" + lengths.digest() + values.digest())
        return hashed.hexdigest()

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name)

    def select_split(self, split: str) -> "Manifest":
        """The rows of one split.

        Raises:
            ManifestError: no row carries that split.
        """
        chosen = self.table.filter(pa.compute.equal(self.column("split"), split))
        if chosen.num_rows == 0:
            known = sorted(filter(None, self.column("split").unique().to_pylist()))
            there = ", ".join(known) if known else "none, `listing-vision data split` makes them"
            raise ManifestError(f"no row of the manifest has split {split!r}; it has: {there}")
        return Manifest(chosen, self.base_url)

    def take(self, rows: npt.NDArray[np.int64]) -> "Manifest":
        return Manifest(self.table.take(pa.array(rows)), self.base_url)

    def get_photo_url(self, row: int) -> str:
        return resolve_photo_url(self.base_url, str(self.column("photo")[row].as_py()))

    def rebase(self, base_url: str) -> "Manifest":
        """Return the same rows and photos for a manifest in another folder."""
        source_folder, target_folder = (
            folder if "://" in folder else os.path.realpath(folder) for folder in (self.base_url, base_url)
        )
        if source_folder == target_folder:
            return Manifest(self.table, base_url)
        position = COLUMNS.index("photo")
        folder, slash = (pa.scalar(text, pa.large_string()) for text in (source_folder.rstrip("/"), "/"))
        pieces = []
        for piece in _iter_slices(self.column("photo")):
            absolute = pa.compute.match_substring_regex(piece, "^/|://")
            joined = pa.compute.binary_join_element_wise(folder, piece, slash)
            pieces.append(pa.compute.if_else(absolute, piece, joined))
        photos = pa.chunked_array(pieces, pa.large_string())
        return Manifest(self.table.set_column(position, _SCHEMA.field(position), photos), base_url)

    def number_listings(self) -> npt.NDArray[np.int64]:
        """(num_photos,) group number of each row's listing, numbered by first appearance."""
        return _read_codes(self.column("listing_id").dictionary_encode()).astype(np.int64)

    def resolve_labels(self, taxonomy: Taxonomy, *, other_brands: bool = False, out_of_scope: bool = False) -> Labels:
        """Category and brand names resolved against a taxonomy.

        Args:
            other_brands: whether a brand that the taxonomy does not know is `OTHER_BRAND` instead of an error.
            out_of_scope: whether a listing may be labelled as one that the taxonomy does not cover: to be evaluated and
                calibrated on, never to be trained on.

        Raises:
            ManifestError: every unknown value once, with its first row and the nearest known name.
        """
        problems: list[str] = []

        def find_node(text: str) -> int:
            if is_out_of_scope_label(text):
                if out_of_scope:
                    return OUT_OF_SCOPE
                raise KeyError(
                    f"{OUT_OF_SCOPE_LABEL!r} is no category to train on; keep such listings in the splits val, "
                    "calibrate and test, or train with an outlier_exposure_weight"
                )
            return taxonomy.node_index[taxonomy.find_category(text)]

        def find_brand(text: str) -> int:
            try:
                return taxonomy.find_brand(text)
            except KeyError:
                if other_brands:
                    return OTHER_BRAND
                raise

        categories = self._resolve("category", find_node, problems)
        brands = self._resolve("brand", find_brand, problems)
        if problems:
            raise ManifestError(f"labels unknown to taxonomy {taxonomy.version!r}:", problems)
        return Labels(category_nodes=categories, brands=brands)

    def _resolve(self, name: str, find: Callable[[str], int], problems: list[str]) -> npt.NDArray[np.int64]:
        column = self.column(name)
        codes = _read_codes(column)
        values = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
        num_rows = np.bincount(codes, minlength=len(values))
        resolved = np.full(len(values), UNLABELLED, dtype=np.int64)
        unknown: list[tuple[int, str]] = []
        for code, text in enumerate(values):
            # A filtered table keeps the values of the rows that it dropped.
            if not num_rows[code] or not text.strip():
                continue
            try:
                resolved[code] = find(text)
            except KeyError as error:
                first = int(np.argmax(codes == code))
                unknown.append((first, f"row {first + 1} ({num_rows[code]} in all): {error.args[0]}"))
        problems += [problem for _, problem in sorted(unknown)]
        return resolved[codes]


@contextlib.contextmanager
def open_for_replacement(url: str) -> Iterator[IO[bytes]]:
    """Open a file that gets its name only when it is complete; any fsspec URL."""
    fs, path = fsspec.core.url_to_fs(url)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with fs.open(temporary, "wb") as opened:
            yield cast(IO[bytes], opened)
        fs.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(temporary)
        raise


def _get_ending(url: str) -> str:
    return posixpath.splitext(url)[1].lower()


def _write_parquet(table: pa.Table, file: IO[bytes]) -> None:
    # Without Arrow's own schema every reader sees plain strings.
    pyarrow.parquet.write_table(table, file, store_schema=False)


def _write_jsonl(table: pa.Table, file: IO[bytes]) -> None:
    for batch in table.to_batches(max_chunksize=65_536):
        for row in batch.to_pylist():
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _complete_columns(table: pa.Table) -> pa.Table:
    """`table` with the columns and types of `_SCHEMA`."""
    columns = []
    for field in _SCHEMA:
        pieces = []
        missing = field.name not in table.column_names
        for piece in _iter_slices(pa.chunked_array([pa.nulls(len(table))]) if missing else table.column(field.name)):
            text = pa.compute.fill_null(piece.cast(pa.large_string()), "")
            encoded = pa.types.is_dictionary(field.type)
            pieces.append(text.cast(pa.string()).dictionary_encode() if encoded else text)
        columns.append(pa.chunked_array(pieces, field.type).unify_dictionaries())
    return pa.table(columns, schema=_SCHEMA)


def _check_required(table: pa.Table, url: str) -> None:
    problems = []
    for name in REQUIRED_COLUMNS:
        empty = pa.compute.indices_nonzero(pa.compute.equal(table.column(name), ""))
        problems += [f"row {row + 1}: {name} is empty" for row in empty.to_pylist()]
    if table.num_rows == 0:
        problems.append("it has no rows")
    if problems:
        raise ManifestError(f"manifest {url}:", problems)


def _iter_slices(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """The column in arrays of bounded length, so that no temporary copy holds all of it."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), _SLICE_ROWS):
            yield chunk.slice(start, _SLICE_ROWS)


def _read_codes(encoded: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """(num_rows,) index into the dictionary that all chunks share."""
    chunks = [np.asarray(chunk.indices, dtype=np.int32) for chunk in encoded.chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int32)


def _get_text_buffers(piece: pa.Array) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Where each value begins and the last ends, and the UTF-8 bytes of all values one after another."""
    text = piece.cast(pa.large_string())
    _, starts, data = text.buffers()
    offsets = np.frombuffer(starts, np.int64)[text.offset : text.offset + len(text) + 1]
    return offsets, memoryview(data or b"")[offsets[0] : offsets[-1]]
