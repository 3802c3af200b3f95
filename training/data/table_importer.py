"""A table with columns of its own names turned into a listing manifest and a taxonomy."""

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute

from training.data.folder_importer import SPLIT_FOLDERS
from training.data.importers import build_brands, build_taxonomy, compute_version
from vision.errors import ManifestError
from vision.manifest import COLUMNS, Manifest
from vision.runtime.wording import format_count
from vision.tables import TextTable, open_table
from vision.taxonomy import Taxonomy, create_slug, normalize_name

__all__ = ["ImportedTable", "import_table"]

_JOINER = "\x1f"
"""Unit separator of ASCII, between the columns of a category; no name has it."""


@dataclass(frozen=True, kw_only=True)
class ImportedTable:
    manifest: Manifest
    """Categories are ids of the taxonomy, brands are names as the table has them."""
    taxonomy: Taxonomy
    notes: tuple[str, ...]
    """What was left out or put together, with counts."""


def import_table(
    url: str,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    photos: str = "",
    separator: str = ">",
    language: str = "en",
    no_brand: str = "no brand",
    other_brand: str = "other brand",
    encoding: str = "",
) -> ImportedTable:
    """Import a CSV, JSON Lines or Parquet table of photos; `vision.tables` says how it is read.

    Args:
        url: path or fsspec URL.
        columns: manifest column to the table's; those not given have the manifest's names. `category` may be several,
            from the root down. Without `listing_id` a photo is a listing.
        photos: folder or URL that relative photos start from; default: the table's folder.
        separator: between the names of a category's path.
        language: BCP 47 tag of the names.
        no_brand: what the table writes for a product without brand.
        other_brand: what it writes for a brand that is not to be learned.
        encoding: of a CSV; default: found.

    Raises:
        ManifestError: a table that cannot be read, a column that it lacks, an unknown split, no category, or names that
            would share an id.
    """
    source = open_table(url, encoding=encoding)
    chosen = _choose_columns(source, columns or {})
    names = list(dict.fromkeys(name for several in chosen.values() for name in several))
    batches = source.read(names, paths=chosen["photo"])
    table = pa.Table.from_batches(batches, pa.schema([(name, pa.string()) for name in names]))
    notes = []
    photo = table.column(chosen["photo"][0])
    has_photo = pa.compute.not_equal(photo, "")
    if num_missing := len(table) - (pa.compute.sum(has_photo).as_py() or 0):
        notes.append(f"left out: {format_count(num_missing, 'row')} without a photo")
        table = table.filter(has_photo)
    if not len(table):
        raise ManifestError(f"{url} has no row with a photo in column {chosen['photo'][0]!r}")
    texts = {name: _join(table, several) for name, several in chosen.items()}
    unnamed = pa.compute.equal(texts.setdefault("listing_id", texts["photo"]), "")
    if num_unnamed := pa.compute.sum(unnamed).as_py():
        notes.append(f"{format_count(num_unnamed, 'row', 'has')} no listing_id; each photo of these is a listing")
        texts["listing_id"] = pa.compute.if_else(unnamed, texts["photo"], texts["listing_id"])
    paths = {text: _read_path(text, separator) for text in texts["category"].unique().to_pylist() if text}
    brands = _count_brands(texts.get("brand"), (no_brand, other_brand))
    taxonomy = _build_taxonomy(url, paths, brands, language=language, no_brand=no_brand, other_brand=other_brand)
    if merged := [f"{brand.name} = {', '.join(brand.aliases)}" for brand in taxonomy.brands if brand.aliases]:
        notes.append(f"{format_count(len(merged), 'brand', 'is')} spelled in several ways, such as {merged[0]}")
    # An id is never taken for the name of another category.
    texts["category"] = _map_values(texts["category"], lambda text: _get_id(paths[text]) if text else "")
    if "split" in texts:
        texts["split"] = _map_values(texts["split"], lambda text: _read_split(text, url))
    manifest = Manifest.from_table(pa.table(texts), photos or posixpath.dirname(url))
    return ImportedTable(manifest=manifest, taxonomy=taxonomy, notes=tuple(notes))


def _choose_columns(source: TextTable, columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The table's columns by the manifest's."""
    for name, several in columns.items():
        if name not in COLUMNS:
            raise ManifestError(f"{name!r} is no column of a manifest; take one of {', '.join(COLUMNS)}")
        if len(several) > 1 and name != "category":
            raise ManifestError(f"{name} is one column, not {len(several)}: {', '.join(several)}")
        for given in several:
            if given not in source.columns:
                raise ManifestError(
                    f"{source.url}: column {given!r}, given for {name}, is missing; it has {', '.join(source.columns)}"
                )
    chosen = {name: list(columns.get(name) or [name]) for name in COLUMNS if name in columns or name in source.columns}
    for name in ("photo", "category"):
        if name not in chosen:
            raise ManifestError(
                f"{source.url}: which column is the {name}? Give --column {name}=NAME; it has "
                f"{', '.join(source.columns)}"
            )
    return chosen


def _join(table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    """One column, or several with `_JOINER` between them."""
    columns = [table.column(name) for name in names]
    return columns[0] if len(columns) == 1 else pa.compute.binary_join_element_wise(*columns, _JOINER)


def _read_path(text: str, separator: str) -> tuple[str, ...]:
    """Names from the root down; columns of lower levels may be empty."""
    columns = [column for column in text.split(_JOINER) if column.strip()]
    return tuple(unicodedata.normalize("NFC", part.strip()) for column in columns for part in column.split(separator))


def _get_id(path: Sequence[str]) -> str:
    return "/".join(map(create_slug, path))


def _count_brands(texts: pa.ChunkedArray | None, literals: Sequence[str]) -> Counter[str]:
    """Photos of each spelling, without those that are no brand of their own."""
    counts: Counter[str] = Counter()
    for entry in texts.value_counts().to_pylist() if texts is not None else []:
        if normalize_name(entry["values"]) not in ("", *map(normalize_name, literals)):
            counts[unicodedata.normalize("NFC", entry["values"].strip())] += entry["counts"]
    return counts


def _build_taxonomy(
    url: str,
    paths: Mapping[str, tuple[str, ...]],
    brands: Counter[str],
    *,
    language: str,
    no_brand: str,
    other_brand: str,
) -> Taxonomy:
    known = sorted({path for path in paths.values() if path})
    if not known:
        raise ManifestError(f"{url}: no row has a category")
    usual_first = sorted(brands, key=lambda name: (-brands[name], name))
    built = sorted(build_brands(usual_first, language=language), key=lambda brand: brand.id)
    stem = create_slug(posixpath.basename(url).split(".")[0])
    version = compute_version(f"table-{stem}", known, [brand.id for brand in built])
    taxonomy = build_taxonomy(version, known, built, language=language)
    return Taxonomy(
        version=version,
        categories=taxonomy.categories,
        brands=taxonomy.brands,
        no_brand=no_brand,
        other_brand=other_brand,
    )


def _map_values(texts: pa.ChunkedArray, function: Callable[[str], str]) -> pa.ChunkedArray:
    """The column with each distinct value replaced."""
    encoded = texts.dictionary_encode().unify_dictionaries()
    chunks = []
    for chunk in encoded.chunks:
        values = pa.array([function(text) for text in chunk.dictionary.to_pylist()], pa.string())
        chunks.append(values.take(chunk.indices))
    return pa.chunked_array(chunks, pa.string())


def _read_split(text: str, url: str) -> str:
    name = text.strip().casefold()
    if name and name not in SPLIT_FOLDERS:
        raise ManifestError(f"{url}: split {text!r} is not one of {', '.join(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS.get(name, "")
