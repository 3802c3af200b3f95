"""Columns of text from tables as people and programs write them: CSV, JSON Lines and Parquet, at any fsspec URL.

Training, backfill and importers read tables by this module alone, so that a file means the same to all of them:

- missing values and NaN are empty text, also as text (`NaN`, `nan`: what pandas writes);
- whole floats are integers (17.0 is `17`), also as text: pandas turns integers to floats where some are missing;
- CSV may be separated by commas, semicolons or tabs, in UTF-8 with or without a byte order mark, in UTF-16, or in
  cp932 as Japanese Excel writes it.
"""

import codecs
import csv
import io
import json
import logging
import posixpath
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from vision.errors import ManifestError

__all__ = ["TABLE_ENDINGS", "TextTable", "get_table_format", "open_table"]

TABLE_ENDINGS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
"""Endings of files that are read, in any case."""

_log = logging.getLogger(__name__)

_PREFIX_BYTES = 1 << 20
"""Bytes by which encoding and separator of a CSV are recognised."""
_BLOCK_BYTES = 8 << 20
"""Largest row of a CSV."""
_PARQUET_ROWS = 1 << 16
_JSON_ROWS = 1 << 16
_JSON_ROWS_FOR_COLUMNS = 1000
"""Lines of JSON by which its columns are known: a line may leave out what it does not know."""
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NO_TEXT_IN_CP932 = frozenset("\x80\xa0\uf8f1\uf8f2\uf8f3")
"""What Python's cp932 makes of single bytes that no Japanese character has; other encodings of Windows use them."""
_SEPARATORS = (",", ";", "\t")
_NAN_TEXTS = ("NaN", "nan")
_LARGEST_INTEGER = 2.0**63
_READ_ERRORS = (OSError, EOFError, UnicodeError, zlib.error, csv.Error, pa.ArrowException)


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table whose columns are known and whose rows are read when they are asked for."""

    url: str
    columns: tuple[str, ...]
    read_batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]

    def read(self, names: Sequence[str], *, paths: Collection[str] = ()) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some columns, as strings without nulls.

        Args:
            names: columns in the order of the result; only these are read.
            paths: columns of paths, whose text is never a number.

        Raises:
            ManifestError: the table cannot be read, or a value is no text, number, time or truth value.
        """
        with _name_errors(self.url):
            for batch in self.read_batches(names):
                columns = [_to_text(batch.column(name), name, is_path=name in paths) for name in names]
                yield pa.RecordBatch.from_arrays(columns, list(names))


def get_table_format(url: str) -> str | None:
    """Return `parquet`, `csv` or `jsonl` by the ending of a path or URL, or None."""
    name = posixpath.basename(url).lower()
    ending = next((ending for ending in TABLE_ENDINGS if name.endswith(ending)), None)
    return ending and ending.split(".")[1]


def open_table(url: str, *, encoding: str = "") -> TextTable:
    """Open a table and read the names of its columns.

    Args:
        url: path or fsspec URL.
        encoding: of a CSV, by Python's name; empty: found by the first megabyte.

    Raises:
        ManifestError: unknown ending or encoding, missing or unreadable file.
    """
    format_ = get_table_format(url)
    if format_ is None:
        raise ManifestError(f"{url}: its ending is not one of {', '.join(TABLE_ENDINGS)}")
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise ManifestError(f"encoding {encoding!r} is not known; give one such as cp1252") from error
    with _name_errors(url):
        if format_ == "parquet":
            return _open_parquet(url)
        return _open_csv(url, encoding) if format_ == "csv" else _open_jsonl(url)


@contextmanager
def _name_errors(url: str) -> Iterator[None]:
    """Turn what the readers raise into ManifestError."""
    try:
        yield
    except UnicodeError as error:
        raise ManifestError(
            f"{url} cannot be read: {error}; save it as UTF-8 (in Excel: 'CSV UTF-8'), or give its encoding"
        ) from error
    except _READ_ERRORS as error:
        raise ManifestError(f"{url} cannot be read: {error}") from error


@contextmanager
def _open_file(url: str) -> Iterator[IO[bytes]]:
    with fsspec.open(url, "rb", compression="gzip" if url.lower().endswith(".gz") else None) as file:
        yield cast(IO[bytes], file)


def _open_parquet(url: str) -> TextTable:
    with _open_file(url) as file:
        schema = pyarrow.parquet.read_schema(file)

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with _open_file(url) as file, pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_PARQUET_ROWS, columns=list(names)):
                batch.validate(full=True)  # Parquet's writers need not write UTF-8 where they say so
                yield batch

    return TextTable(url=url, columns=tuple(schema.names), read_batches=read)


def _open_csv(url: str, encoding: str) -> TextTable:
    with _open_file(url) as file:
        prefix = file.read(_PREFIX_BYTES)
    encoding = encoding or _detect_encoding(prefix, url)
    text = codecs.getincrementaldecoder(encoding)().decode(prefix)
    separator, header = _read_header(text.removeprefix("\ufeff"))  # pyarrow skips a byte order mark too
    if not any(header):
        raise ManifestError(f"{url} has no row with the names of its columns")

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if twice := [name for name in names if header.count(name) > 1]:
            raise ManifestError(f"{url}: column {twice[0]!r} stands twice; rename one")
        with _open_file(url) as file:
            yield from pyarrow.csv.open_csv(
                file,
                pyarrow.csv.ReadOptions(encoding=encoding, block_size=_BLOCK_BYTES),
                pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=list(names)),
            )

    return TextTable(url=url, columns=tuple(header), read_batches=read)


def _detect_encoding(prefix: bytes, url: str) -> str:
    if prefix.startswith(_UTF16_MARKS):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(prefix)
    except UnicodeDecodeError as error:
        if _NO_TEXT_IN_CP932.intersection(codecs.getincrementaldecoder("cp932")().decode(prefix)):
            raise
        _log.warning("%s is not in UTF-8 (%s); it is read as cp932, Japanese Excel's", url, error)
        return "cp932"
    return "utf-8"


def _read_header(text: str) -> tuple[str, list[str]]:
    """The separator that gives the most columns, and the names."""
    found = []
    for separator in _SEPARATORS:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        found.append((separator, header))
    return max(found, key=lambda each: len(each[1]))


def _open_jsonl(url: str) -> TextTable:
    with _open_file(url) as file:
        columns: dict[str, None] = {}
        for row in islice(_iterate_json(file, url), _JSON_ROWS_FOR_COLUMNS):
            columns.update(dict.fromkeys(row))

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with _open_file(url) as file:
            rows = _iterate_json(file, url)
            while some := list(islice(rows, _JSON_ROWS)):
                columns = [[_json_to_text(row.get(name), url, name) for row in some] for name in names]
                yield pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in columns], list(names))

    return TextTable(url=url, columns=tuple(columns), read_batches=read)


def _iterate_json(file: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{url}: line {number} is not JSON in UTF-8: {error}") from error
        if not isinstance(row, dict):
            raise ManifestError(f'{url}: line {number} is not an object such as {{"listing_id": "17"}}')
        yield row


def _json_to_text(value: Any, url: str, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if _is_whole(value) else repr(value)
    raise ManifestError(f"{url}: column {name!r} has {json.dumps(value)[:80]}, which is no text or number")


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < _LARGEST_INTEGER


def _to_text(column: pa.Array, name: str, *, is_path: bool) -> pa.Array:
    """The values as strings, empty where not known."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type):
        raise ManifestError(f"column {name!r} holds {column.type}; give text or numbers")
    if pa.types.is_floating(column.type):
        return _floats_to_text(column)
    text = pa.compute.fill_null(column.cast(pa.string()), "")
    if pa.types.is_decimal(column.type):
        return pa.compute.replace_substring_regex(text, r"\.0+$", "")
    return _normalize_text(text, is_path=is_path)


def _floats_to_text(column: pa.Array) -> pa.Array:
    values = column.cast(pa.float64())
    whole = pa.compute.and_(
        pa.compute.equal(values, pa.compute.floor(values)), pa.compute.less(pa.compute.abs(values), _LARGEST_INTEGER)
    )
    integers = pa.compute.if_else(whole, values, 0.0).cast(pa.int64()).cast(pa.string())
    text = pa.compute.if_else(whole, integers, column.cast(pa.string()))
    known = pa.compute.and_(values.is_valid(), pa.compute.invert(pa.compute.is_nan(values)))
    return pa.compute.if_else(pa.compute.fill_null(known, False), text, "")


def _normalize_text(text: pa.Array, *, is_path: bool) -> pa.Array:
    # Most columns have neither, and looking is cheaper than replacing.
    missing = pa.compute.is_in(text, pa.array(_NAN_TEXTS))
    if pa.compute.any(missing).as_py():
        text = pa.compute.if_else(missing, "", text)
    if not is_path and pa.compute.any(pa.compute.ends_with(text, ".0")).as_py():
        text = pa.compute.replace_substring_regex(text, r"^(-?[0-9]+)\.0$", r"\1")
    return text
