"""What differs between two versions of a taxonomy, and labels carried over from one to the other."""

import csv
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from vision.errors import TaxonomyError
from vision.manifest import COLUMNS, Manifest, is_out_of_scope_label
from vision.taxonomy import OTHER_BRAND, Brand, Category, Taxonomy

__all__ = ["Change", "Migration", "MigrationMap", "diff_taxonomies", "plan_migration", "write_changes"]

Kind = Literal["category", "brand"]
What = Literal["added", "kept", "renamed", "moved", "merged", "split", "retired"]


@dataclass(frozen=True, kw_only=True)
class MigrationMap:
    """Where ids went that the new taxonomy does not have: a TOML file with the tables `categories` and `brands`."""

    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Old id to the new one, to several (the category was split), or to none (it was retired)."""
    brands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Old id to the new one, or to none."""

    @classmethod
    def load(cls, path: Path) -> "MigrationMap":
        """Read `old = "new"`, `old = ["new", "newer"]` or `old = []`.

        Raises:
            TaxonomyError: no such file, or another form.
        """
        try:
            raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TaxonomyError(f"map {path} cannot be read: {error}") from error
        if unknown := set(raw) - {"categories", "brands"}:
            raise TaxonomyError(f"map {path}: table {min(unknown)!r} is neither categories nor brands")
        return cls(
            categories=_read_targets(raw.get("categories", {}), path),
            brands=_read_targets(raw.get("brands", {}), path),
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of a category or a brand."""

    kind: Kind
    what: What
    old_id: str
    """Empty if it was added."""
    old_name: str
    """Path of a category, name of a brand."""
    new_id: str
    """Where its labels go: of a category that was split the nearest common ancestor, empty if there is none."""
    new_name: str
    parts: tuple[str, ...] = ()
    """Ids that a split category became."""

    def __str__(self) -> str:
        parts = f" ({', '.join(self.parts)})" if self.parts else ""
        if self.what == "added":
            return f"{self.kind} added: {self.new_name} [{self.new_id}]"
        target = f" → {self.new_name} [{self.new_id}]" if self.new_id else ""
        return f"{self.kind} {self.what}: {self.old_name} [{self.old_id}]{target}{parts}"


@dataclass(frozen=True, kw_only=True)
class Migration:
    old: Taxonomy
    new: Taxonomy
    changes: tuple[Change, ...]
    """A change for each category and brand of the old taxonomy, in its order, then what was added."""

    def migrate(self, manifest: Manifest) -> tuple[Manifest, dict[Change, int]]:
        """Carry a manifest's labels over; return it with the number of photos of each change that is not `kept`.

        A label without a place in the new taxonomy is not known; a retired brand is the new `other_brand`. What was out
        of scope stays so.

        Raises:
            ManifestError: labels that the old taxonomy does not know.
        """
        manifest.resolve_labels(self.old, out_of_scope=True)
        categories = {c.old_id: c for c in self.changes if c.kind == "category" and c.old_id}
        brands = {c.old_id: c for c in self.changes if c.kind == "brand" and c.old_id}

        def find_category(text: str) -> tuple[Change | None, str]:
            if is_out_of_scope_label(text):
                return None, text
            change = categories[self.old.find_category(text)]
            return change, change.new_id

        def find_brand(text: str) -> tuple[Change | None, str]:
            index = self.old.find_brand(text)
            if index in (0, OTHER_BRAND):
                return None, self.new.no_brand if index == 0 else self.new.other_brand
            change = brands[self.old.brands[index - 1].id]
            return change, change.new_name or self.new.other_brand

        counts: Counter[Change] = Counter()
        table = _replace(manifest.table, "category", find_category, counts)
        table = _replace(table, "brand", find_brand, counts)
        changed = {change: counts[change] for change in self.changes if counts[change] and change.what != "kept"}
        return Manifest(table, manifest.base_url), changed


def diff_taxonomies(old: Taxonomy, new: Taxonomy) -> list[Change]:
    """Return what differs by id; an id that the new taxonomy lacks is retired."""
    lost = MigrationMap(
        categories={category.id: () for category in old.categories if category.id not in new.by_id},
        brands={brand.id: () for brand in old.brands if brand.id not in {other.id for other in new.brands}},
    )
    return [change for change in _plan(old, new, lost) if change.what != "kept"]


def plan_migration(old: Taxonomy, new: Taxonomy, changes: MigrationMap) -> Migration:
    """Decide where each category and brand of the old taxonomy went: by its id, or by the map.

    Raises:
        TaxonomyError: ids that are in neither, an id of the map that a taxonomy lacks, or one version for both; it
            lists all of them.
    """
    if old.version == new.version:
        raise TaxonomyError(f"both taxonomies have the version {old.version!r}; give the new one another")
    new_brands = {brand.id for brand in new.brands}
    problems = [
        *_find_map_errors("category", changes.categories, old.by_id, new.by_id),
        *_find_map_errors("brand", changes.brands, {brand.id for brand in old.brands}, new_brands),
    ]
    for brand, targets in changes.brands.items():
        if len(targets) > 1:
            problems.append(f"brand {brand!r} cannot become {len(targets)}; a label does not say which")
    if problems:
        raise TaxonomyError(
            f"taxonomy {old.version!r} cannot be migrated to {new.version!r}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return Migration(old=old, new=new, changes=tuple(_plan(old, new, changes)))


def write_changes(changes: Sequence[Change], path: Path) -> None:
    """Write a CSV that stored rows can be joined with by `old_id`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "change", "old_id", "old_name", "new_id", "new_name", "parts"])
        for c in changes:
            writer.writerow([c.kind, c.what, c.old_id, c.old_name, c.new_id, c.new_name, " ".join(c.parts)])


def _read_targets(table: Any, path: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(table, dict):
        raise TaxonomyError(f"map {path}: {table!r} is no table such as [categories]")
    targets = {}
    for old_id, value in table.items():
        ids = [value] if isinstance(value, str) else value
        if not isinstance(ids, list) or not all(isinstance(id_, str) and id_ for id_ in ids):
            raise TaxonomyError(f"map {path}: {old_id} = {value!r} is not an id, a list of ids, or []")
        targets[old_id] = tuple(ids)
    return targets


def _find_map_errors(kind: Kind, targets: Mapping[str, Sequence[str]], old_ids: Any, new_ids: Any) -> list[str]:
    missing = [
        f"{kind} {id_!r} is not in the new taxonomy; say in the map where it went, or {id_!r} = []"
        for id_ in old_ids
        if id_ not in new_ids and id_ not in targets
    ]
    unknown = [f"{kind} {id_!r} of the map is not in the old taxonomy" for id_ in targets if id_ not in old_ids]
    lost = [
        f"{kind} {target!r}, which {id_!r} becomes, is not in the new taxonomy"
        for id_, several in targets.items()
        for target in several
        if target not in new_ids
    ]
    return [*missing, *unknown, *lost]


def _plan(old: Taxonomy, new: Taxonomy, changes: MigrationMap) -> list[Change]:
    found = []
    num_from = Counter(
        target for category in old.categories for target in changes.categories.get(category.id, (category.id,))
    )
    for category in old.categories:
        targets = changes.categories.get(category.id, (category.id,))
        found.append(_describe_category(category, targets, old, new, num_from=num_from))
    new_brands = {brand.id: brand for brand in new.brands}
    num_from = Counter(target for brand in old.brands for target in changes.brands.get(brand.id, (brand.id,)))
    for brand in old.brands:
        (target,) = changes.brands.get(brand.id, (brand.id,)) or ("",)
        found.append(_describe_brand(brand, new_brands.get(target), num_from=num_from))
    reached = {(c.kind, id_) for c in found for id_ in (c.new_id, *c.parts)}
    added: list[Category | Brand] = [c for c in new.categories if ("category", c.id) not in reached]
    for item in [*added, *(b for b in new.brands if ("brand", b.id) not in reached)]:
        is_category = isinstance(item, Category)
        found.append(
            Change(
                kind="category" if is_category else "brand",
                what="added",
                old_id="",
                old_name="",
                new_id=item.id,
                new_name=new.format_path(item.id) if is_category else item.name,
            )
        )
    return found


def _describe_category(
    category: Category, targets: Sequence[str], old: Taxonomy, new: Taxonomy, *, num_from: Counter[str]
) -> Change:
    if len(targets) > 1:
        what, new_id = "split", _find_common_ancestor(targets, new)
    else:
        new_id = targets[0] if targets else ""
        what = _compare_category(category, new.by_id.get(new_id), num_from=num_from)
    return Change(
        kind="category",
        what=what,  # type: ignore[arg-type]
        old_id=category.id,
        old_name=old.format_path(category.id),
        new_id=new_id,
        new_name=new.format_path(new_id) if new_id else "",
        parts=tuple(targets) if len(targets) > 1 else (),
    )


def _compare_category(category: Category, target: Category | None, *, num_from: Counter[str]) -> What:
    if target is None:
        return "retired"
    if num_from[target.id] > 1:
        return "merged"
    if target.id != category.id or dict(target.names) != dict(category.names):
        return "renamed"
    return "kept" if target.parent_id == category.parent_id else "moved"


def _describe_brand(brand: Brand, target: Brand | None, *, num_from: Counter[str]) -> Change:
    what: What = "kept"
    if target is None:
        what = "retired"
    elif num_from[target.id] > 1:
        what = "merged"
    elif (target.id, dict(target.names), target.aliases) != (brand.id, dict(brand.names), brand.aliases):
        what = "renamed"
    return Change(
        kind="brand",
        what=what,
        old_id=brand.id,
        old_name=brand.name,
        new_id=target.id if target else "",
        new_name=target.name if target else "",
    )


def _find_common_ancestor(ids: Sequence[str], taxonomy: Taxonomy) -> str:
    """The deepest category that all of them are or are below; empty if there is none."""
    common = ""
    for steps in zip(*(taxonomy.get_lineage(id_) for id_ in ids), strict=False):
        if len({step.id for step in steps}) > 1:
            break
        common = steps[0].id
    return common


def _replace(
    table: pa.Table, name: str, find: Callable[[str], tuple[Change | None, str]], counts: Counter[Change]
) -> pa.Table:
    """Replace each distinct text of a column, and count the photos of each change."""
    replaced = {}
    for entry in table.column(name).value_counts().to_pylist():
        text = entry["values"]
        change, replaced[text] = find(text) if text.strip() else (None, "")
        if change:
            counts[change] += entry["counts"]
    chunks = []
    for chunk in table.column(name).unify_dictionaries().chunks:
        values = pa.array([replaced.get(text, "") for text in chunk.dictionary.to_pylist()], pa.string())
        chunks.append(values.take(chunk.indices))
    column = pa.chunked_array(chunks, pa.string()).dictionary_encode()
    position = COLUMNS.index(name)
    return table.set_column(position, table.schema.field(position), column)
