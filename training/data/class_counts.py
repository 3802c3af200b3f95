"""Photos by class and split, as a table for people."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from vision.manifest import SPLITS, Manifest
from vision.runtime.wording import format_count
from vision.taxonomy import Taxonomy

__all__ = ["NO_SPLIT", "ClassCounts", "count_classes"]

NO_SPLIT = "(none)"
_NO_CATEGORY = "(no category)"
_UNKNOWN = "(not in the taxonomy)"
_MAX_NAME_CHARS = 60


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    photos: Mapping[str, Counter[str]]
    """Path of each leaf category, in the taxonomy's order, to its photos by split; then the inner categories that have
    photos of their own, and what has no category or an unknown one."""
    leaf_paths: tuple[str, ...]
    splits: tuple[str, ...]
    """Splits that a photo has, those of `SPLITS` first."""

    def count(self, path: str, split: str | None = None) -> int:
        """Return the photos of a class, of one split or of all."""
        return self.photos[path].total() if split is None else self.photos[path][split]

    def format_table(self, *, max_rows: int = 50) -> str:
        """Return the table; of more classes than `max_rows`, those with the fewest photos."""
        shown = list(self.photos)
        if len(shown) > max_rows:
            fewest = set(sorted(shown, key=self.count)[:max_rows])
            shown = [path for path in shown if path in fewest]
        rows = [("photos by class", [*self.splits, "all"])]
        for path in shown:
            rows.append((path, [str(number) for number in (*self._count_splits(path), self.count(path))]))
        if hidden := len(self.photos) - len(shown):
            rows.append((f"… and {format_count(hidden, 'class')} with more photos", []))
        totals = [sum(numbers) for numbers in zip(*map(self._count_splits, self.photos), strict=True)]
        rows.append(("all", [str(number) for number in (*totals, sum(totals))]))
        names = [_shorten(name) for name, _ in rows]
        width = max(map(_measure_width, names))
        return "\n".join(
            name + " " * (width - _measure_width(name)) + "".join(f"{number:>11}" for number in numbers)
            for name, (_, numbers) in zip(names, rows, strict=True)
        )

    def _count_splits(self, path: str) -> list[int]:
        return [self.count(path, split) for split in self.splits]


def count_classes(manifest: Manifest, taxonomy: Taxonomy) -> ClassCounts:
    """Count the photos of each class in each split."""
    leaf_paths = tuple(taxonomy.format_path(leaf) for leaf in taxonomy.leaf_ids)
    paths = [taxonomy.format_path(category.id) for category in taxonomy.categories]
    leaves = set(leaf_paths)
    photos: dict[str, Counter[str]] = {path: Counter() for path in (*leaf_paths, *paths, _NO_CATEGORY, _UNKNOWN)}
    pairs = manifest.table.select(["category", "split"]).group_by(["category", "split"])
    for entry in pairs.aggregate([([], "count_all")]).to_pylist():
        photos[_find_path(entry["category"], taxonomy)][entry["split"] or NO_SPLIT] += entry["count_all"]
    photos = {path: counts for path, counts in photos.items() if counts or path in leaves}
    found = {split for counts in photos.values() for split in counts}
    others = sorted(found - set(SPLITS), key=lambda split: (split == NO_SPLIT, split))
    return ClassCounts(
        photos=photos, leaf_paths=leaf_paths, splits=(*(split for split in SPLITS if split in found), *others)
    )


def _find_path(category: str, taxonomy: Taxonomy) -> str:
    if not category.strip():
        return _NO_CATEGORY
    try:
        return taxonomy.format_path(taxonomy.find_category(category))
    except KeyError:
        return _UNKNOWN


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"…{name[1 - _MAX_NAME_CHARS :]}"


def _measure_width(text: str) -> int:
    """Columns of a terminal: characters of East Asia take two, marks none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me") for char in text)
