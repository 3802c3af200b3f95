"""Stored suggestions and outcomes, of gateways and backfills, carried over to another version of the taxonomy."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet

from training.data.taxonomy_changes import Migration
from vision.errors import TaxonomyError
from vision.manifest import open_for_replacement

__all__ = ["RowMigration", "migrate_files"]

_CONVERTED = (
    "taxonomy_version",
    *("category_ids", "category_probabilities", "num_filled"),
    *("category_id", "category_path", "filled_category_id", "alternatives"),
    *("brand_id", "brand_kind", "brand_name", "brand_filled", "brand"),
)
"""Columns that change; the others, such as embeddings, are never looked at."""


class RowMigration:
    """Carries over the rows that name the old taxonomy's version; others stay as they are."""

    def __init__(self, migration: Migration) -> None:
        self._old, self._new = migration.old, migration.new
        self._categories = _find_places(migration)
        self._lineages = {id_: [step.id for step in migration.new.get_lineage(id_)] for id_ in migration.new.by_id}
        self._brands = {c.old_id: c.new_id for c in migration.changes if c.kind == "brand" and c.old_id}
        self._brand_names = {brand.id: brand.name for brand in migration.new.brands}
        self._convert: dict[str, Callable[[dict[str, Any]], None]] = {
            "category_ids": self._convert_ids,
            "category_path": self._convert_path,
            "category_id": self._convert_id,
            "alternatives": self._convert_alternatives,
            "brand_id": self._convert_brand,
            "brand": self._convert_brand_struct,
        }

    def convert(self, table: pa.Table) -> tuple[pa.Table, int]:
        """Return the table with the ids of the new taxonomy, and how many of its rows were carried over.

        A category becomes its new one, its nearest ancestor's where it was retired, and null where there is none. A
        path is that of the new tree; a step keeps the largest probability of the old steps at or below it, a lower
        bound, and is filled if one of those was. A retired brand is a brand that the taxonomy lacks.

        Raises:
            TaxonomyError: an id that the old taxonomy does not have.
        """
        if "taxonomy_version" not in table.column_names:
            return table, 0
        part = table.select([name for name in _CONVERTED if name in table.column_names])
        rows = part.to_pylist()
        num_converted = 0
        for row in rows:
            if row["taxonomy_version"] != self._old.version:
                continue
            for column, convert in self._convert.items():
                if row.get(column) is not None:
                    convert(row)
            row["taxonomy_version"] = self._new.version
            num_converted += 1
        if num_converted:
            converted = pa.Table.from_pylist(rows, part.schema)
            for name in part.column_names:
                at = table.column_names.index(name)
                table = table.set_column(at, table.schema.field(at), converted.column(name))
        return table, num_converted

    def _find_category(self, old_id: str) -> str | None:
        if old_id not in self._categories:
            raise TaxonomyError(f"category {old_id!r} is not in taxonomy {self._old.version!r}, which its row names")
        return self._categories[old_id]

    def _convert_steps(self, steps: Sequence[tuple[str, float, bool]]) -> Iterator[tuple[str, float, bool]]:
        """Id, probability and whether it is filled, of each step from the root."""
        moved = [(self._find_category(old_id), probability, filled) for old_id, probability, filled in steps]
        deepest = moved[-1][0] if moved else None
        if deepest is None:
            return
        for node_id in self._lineages[deepest]:
            below = [
                (probability, filled)
                for new_id, probability, filled in moved
                if new_id is not None and node_id in self._lineages[new_id]
            ]
            yield node_id, max(p for p, _ in below), any(filled for _, filled in below)

    def _convert_ids(self, row: dict[str, Any]) -> None:
        old = zip(row["category_ids"], row["category_probabilities"], strict=True)
        steps = list(self._convert_steps([(id_, p, depth < row["num_filled"]) for depth, (id_, p) in enumerate(old)]))
        row["category_ids"] = [id_ for id_, _, _ in steps]
        row["category_probabilities"] = [probability for _, probability, _ in steps]
        row["num_filled"] = sum(filled for _, _, filled in steps)

    def _convert_path(self, row: dict[str, Any]) -> None:
        old = [(step["id"], step["probability"], step["filled"]) for step in row["category_path"]]
        row["category_path"] = [
            {"id": id_, "name": self._new.by_id[id_].name, "probability": probability, "filled": filled}
            for id_, probability, filled in self._convert_steps(old)
        ]
        # Not the new id of the old one: where a leaf has moved to another branch, that is no step of its path.
        if "filled_category_id" in row:
            filled_ids = [step["id"] for step in row["category_path"] if step["filled"]]
            row["filled_category_id"] = filled_ids[-1] if filled_ids else None

    def _convert_id(self, row: dict[str, Any]) -> None:
        row["category_id"] = self._find_category(row["category_id"])

    def _convert_alternatives(self, row: dict[str, Any]) -> None:
        total: dict[str, float] = {}
        for one in row["alternatives"]:
            if new_id := self._find_category(one["id"]):
                total[new_id] = total.get(new_id, 0.0) + one["probability"]
        row["alternatives"] = [{"id": id_, "probability": p} for id_, p in sorted(total.items(), key=lambda i: -i[1])]

    def _find_brand(self, old_id: str) -> str:
        if old_id not in self._brands:
            raise TaxonomyError(f"brand {old_id!r} is not in taxonomy {self._old.version!r}, which its row names")
        return self._brands[old_id]

    def _convert_brand(self, row: dict[str, Any]) -> None:
        old_id = row["brand_id"]
        row["brand_id"] = self._find_brand(old_id) or None
        if row["brand_id"]:
            return
        row["brand_kind"] = "OTHER"
        if "brand_name" in row:
            row["brand_name"] = next(brand.name for brand in self._old.brands if brand.id == old_id)
        if "brand_filled" in row:
            row["brand_filled"] = False

    def _convert_brand_struct(self, row: dict[str, Any]) -> None:
        brand = row["brand"]
        if brand["id"] is None:
            return
        new_id = self._find_brand(brand["id"])
        if new_id:
            brand |= {"id": new_id, "name": self._brand_names[new_id]}
        else:
            brand |= {"kind": "unknown", "id": None, "name": None, "filled": False}


def _find_places(migration: Migration) -> dict[str, str | None]:
    """The new category of each old one, or of its nearest ancestor that has one."""
    targets = {c.old_id: c.new_id for c in migration.changes if c.kind == "category" and c.old_id}
    return {
        old_id: next((targets[c.id] for c in reversed(migration.old.get_lineage(old_id)) if targets[c.id]), None)
        for old_id in targets
    }


def migrate_files(source: str, target: str, migration: Migration) -> Counter[str]:
    """Copy every Parquet file of a folder with its rows carried over; return the numbers of rows by what was done.

    Args:
        source: folder of outcomes, or the output of a backfill; a path or fsspec URL.
        target: another folder; files already there are replaced, so that an interrupted call is repeated.
        migration: from the taxonomy that the rows name.

    Raises:
        TaxonomyError: no Parquet file, `target` is `source` or lies in it, or an id that the old taxonomy does not
            have; it names the file.
    """
    files, root = fsspec.core.url_to_fs(source)
    written, new_root = fsspec.core.url_to_fs(target)
    paths = sorted(files.glob(posixpath.join(root, "**/*.parquet")))
    if not paths:
        raise TaxonomyError(f"{source} has no Parquet file; give the folder of outcomes or of a backfill")
    if type(files) is type(written) and f"{new_root.rstrip('/')}/".startswith(f"{root.rstrip('/')}/"):
        raise TaxonomyError(f"{target} is the folder of the rows themselves, or in it; give another --output")
    converter, counts = RowMigration(migration), Counter[str]()
    for path in paths:
        with files.open(path, "rb") as file:
            table = pyarrow.parquet.read_table(file)
        try:
            table, num_converted = converter.convert(table)
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from None
        counts["carried over"] += num_converted
        counts["left as they are"] += len(table) - num_converted
        new_path = posixpath.join(new_root, posixpath.relpath(path, root))
        written.makedirs(posixpath.dirname(new_path), exist_ok=True)
        with open_for_replacement(written.unstrip_protocol(new_path)) as file:
            pyarrow.parquet.write_table(table, file, compression="zstd")
    return counts
