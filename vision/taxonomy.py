"""The versioned tree of categories and the list of brands that predictions refer to."""

import difflib
import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vision.category_tree import CategoryTree, build_category_tree
from vision.errors import TaxonomyError
from vision.runtime.files import write_atomically

__all__ = [
    "OTHER_BRAND",
    "PATH_SEPARATOR",
    "SCHEMA_VERSION",
    "Brand",
    "Category",
    "Taxonomy",
    "create_slug",
    "normalize_name",
]

SCHEMA_VERSION = 1
OTHER_BRAND = -2
"""Brand label of a brand that the taxonomy does not list."""
PATH_SEPARATOR = " > "
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f]")
"""Marks that say how an emoji is drawn; without its emoji, one would be an invisible id."""


@dataclass(frozen=True, kw_only=True)
class _Named:
    id: str
    """Stable; survives renaming and moving in the tree."""
    names: Mapping[str, str]
    """Language tag to name, at least one."""

    @property
    def name(self) -> str:
        """The English name, or else the first one."""
        return self.names.get("en") or next(iter(self.names.values()))

    def get_name(self, language: str) -> str:
        """Return the name in a language, or else `name`."""
        return self.names.get(language) or self.name


@dataclass(frozen=True, kw_only=True)
class Category(_Named):
    parent_id: str | None = None
    """None for a root of the forest."""
    catch_all: bool = False
    """A category such as 'Other …' for what fits nowhere else. It is suggested, never filled."""


@dataclass(frozen=True, kw_only=True)
class Brand(_Named):
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """A forest of categories and a list of brands.

    Label order is part of the contract of a trained model: category logit `i` belongs to
    `leaf_ids[i]`; brand logit 0 belongs to "has no brand" and `i` to `brands[i - 1]`.
    """

    version: str
    categories: tuple[Category, ...]
    brands: tuple[Brand, ...]
    no_brand: str = "no brand"
    """The literal that a manifest writes for a product that has no brand."""
    other_brand: str = "other brand"
    """The literal that a manifest writes for a product of a brand that is not listed here."""

    def __post_init__(self) -> None:
        for kind, ids in (
            ("category", [category.id for category in self.categories]),
            ("brand", [brand.id for brand in self.brands]),
        ):
            duplicates = sorted(id_ for id_, count in Counter(ids).items() if count > 1)
            if duplicates:
                raise TaxonomyError(f"taxonomy {self.version!r}: {kind} ids stand twice: {duplicates}")
        by_id = self.by_id
        for kind, named in (("category", self.categories), ("brand", self.brands)):
            for one in named:
                if not one.names:
                    raise TaxonomyError(f"{kind} {one.id!r} has no name; add one to its names, such as names.en")
        for category in self.categories:
            if category.parent_id is not None and category.parent_id not in by_id:
                raise TaxonomyError(
                    f"category {category.id!r}: parent {category.parent_id!r} is not in the "
                    f"taxonomy; nearest known id: {_find_nearest(category.parent_id, by_id)}"
                )
        for category in self.categories:
            self.get_lineage(category.id)
        if not self.leaf_ids:
            raise TaxonomyError(f"taxonomy {self.version!r} has no categories")
        for path, count in Counter(_normalize_path(self.format_path(c.id)) for c in self.categories).items():
            if count > 1:
                raise TaxonomyError(f"taxonomy {self.version!r}: {count} categories have the path {path!r}; rename one")
        if normalize_name(self.no_brand) == normalize_name(self.other_brand):
            raise TaxonomyError(
                f"taxonomy {self.version!r}: no_brand and other_brand are both {self.no_brand!r}; rename one, they "
                "mean different things"
            )
        _ = self._brand_index_by_name  # building it finds a name that stands for two brands

    @functools.cached_property
    def by_id(self) -> dict[str, Category]:
        return {category.id: category for category in self.categories}

    @functools.cached_property
    def leaf_ids(self) -> tuple[str, ...]:
        """Ids of the categories without children, in file order: the order of category logits."""
        parents = {category.parent_id for category in self.categories}
        return tuple(category.id for category in self.categories if category.id not in parents)

    @functools.cached_property
    def brand_labels(self) -> tuple[str, ...]:
        """Brand names in the order of brand logits, the no-brand literal first."""
        return (self.no_brand, *(brand.name for brand in self.brands))

    @functools.cached_property
    def node_index(self) -> dict[str, int]:
        return {category.id: i for i, category in enumerate(self.categories)}

    @functools.cached_property
    def leaves_below(self) -> npt.NDArray[np.bool_]:
        """(num_categories, num_leaves) bool: whether the leaf is the category or stands below it."""
        below = np.zeros((len(self.categories), len(self.leaf_ids)), dtype=bool)
        for column, leaf_id in enumerate(self.leaf_ids):
            for ancestor in self.get_lineage(leaf_id):
                below[self.node_index[ancestor.id], column] = True
        return below

    @functools.cached_property
    def leaf_paths(self) -> npt.NDArray[np.int64]:
        """(num_leaves, max_depth) index into `categories` of each step from root to leaf, -1 beyond a leaf's depth."""
        paths = np.full((len(self.leaf_ids), self.max_depth), -1, dtype=np.int64)
        for row, leaf_id in enumerate(self.leaf_ids):
            for depth, category in enumerate(self.get_lineage(leaf_id)):
                paths[row, depth] = self.node_index[category.id]
        return paths

    @functools.cached_property
    def tree(self) -> CategoryTree:
        return build_category_tree(self.leaf_paths, len(self.categories))

    @functools.cached_property
    def fillable(self) -> npt.NDArray[np.bool_]:
        """(num_categories,) bool: neither a catch-all nor below one."""
        return np.array([not any(a.catch_all for a in self.get_lineage(c.id)) for c in self.categories])

    @functools.cached_property
    def decides_at_depth(self) -> npt.NDArray[np.bool_]:
        """(max_depth,) bool: false from the top down while a depth has one category: naming it says nothing."""
        return np.logical_or.accumulate([depth.stop - depth.start > 1 for depth in self.tree.depths])

    @functools.cached_property
    def num_sole_depths(self) -> int:
        """Depths, from the top down, that do not decide."""
        return self.max_depth - int(self.decides_at_depth.sum())

    @functools.cached_property
    def max_depth(self) -> int:
        return max(len(self.get_lineage(leaf_id)) for leaf_id in self.leaf_ids)

    @functools.cached_property
    def language_codes(self) -> tuple[str, ...]:
        """Languages in which a category or brand has a name; first English, or else that of the first category."""
        found = {code for named in (*self.categories, *self.brands) for code in named.names}
        first = "en" if "en" in found else next(iter(self.categories[0].names))
        return (first, *sorted(found - {first}))

    def match_language(self, code: str) -> str:
        """Return the language of names to show for a BCP 47 tag.

        The tag itself, else the tag without its last subtags, as in RFC 4647, section 3.4, else the first of
        `language_codes`.
        """
        subtags = code.casefold().split("-")
        for num in range(len(subtags), 0, -1):
            if match := self._languages_by_tag.get("-".join(subtags[:num])):
                return match
        return self.language_codes[0]

    @functools.cached_property
    def _languages_by_tag(self) -> Mapping[str, str]:
        return {code.casefold(): code for code in self.language_codes}

    def get_path_names(self, category_id: str, language: str = "en") -> tuple[str, ...]:
        """Return the names from the root to the category; `Category.name` where a name is not translated."""
        names = self._path_names.get((category_id, language))
        if names is None:
            names = tuple(category.get_name(language) for category in self.get_lineage(category_id))
            self._path_names[category_id, language] = names
        return names

    @functools.cached_property
    def _path_names(self) -> dict[tuple[str, str], tuple[str, ...]]:
        return {}

    @functools.cached_property
    def _ids_by_path(self) -> dict[str, str]:
        return {_normalize_path(self.format_path(category.id)): category.id for category in self.categories}

    @functools.cached_property
    def _ids_by_any_name(self) -> dict[str, tuple[str, ...]]:
        """Categories by their paths in each language and by their names alone."""
        found: dict[str, dict[str, None]] = {}
        for category in self.categories:
            paths = (self.format_path(category.id, language) for language in self.language_codes)
            for text in (*paths, *category.names.values()):
                found.setdefault(_normalize_path(text), {})[category.id] = None
        return {text: tuple(ids) for text, ids in found.items()}

    @functools.cached_property
    def _brand_index_by_name(self) -> dict[str, int]:
        index = {normalize_name(self.no_brand): 0, normalize_name(self.other_brand): OTHER_BRAND}
        for i, brand in enumerate(self.brands, start=1):
            for name in (brand.id, *brand.names.values(), *brand.aliases):
                known = index.setdefault(normalize_name(name), i)
                if known != i:
                    other = self.other_brand if known == OTHER_BRAND else self.brand_labels[known]
                    raise TaxonomyError(f"brand name {name!r} stands for both {other!r} and {brand.name!r}; remove one")
        return index

    def get_lineage(self, category_id: str) -> tuple[Category, ...]:
        """The category's path from its root down to itself."""
        path: list[Category] = []
        at: str | None = category_id
        while at is not None:
            if any(category.id == at for category in path):
                raise TaxonomyError(f"category {at!r} is its own ancestor; break the cycle")
            path.append(self.by_id[at])
            at = path[-1].parent_id
        return tuple(reversed(path))

    def format_path(self, category_id: str, language: str = "en") -> str:
        """A path for people, such as `Fruit > Apple > Granny Smith`."""
        return PATH_SEPARATOR.join(self.get_path_names(category_id, language))

    def find_category(self, text: str) -> str:
        """The id of a category given by id, by path in any language, or by a name that no other category has.

        Raises:
            KeyError: unknown, or a name of several; its message names the nearest known category, or the several.
        """
        if text in self.by_id:
            return text
        key = _normalize_path(text)
        if key in self._ids_by_path:
            return self._ids_by_path[key]
        ids = self._ids_by_any_name.get(key, ())
        if len(ids) == 1:
            return ids[0]
        if ids:
            paths = ", ".join(repr(self.format_path(id_)) for id_ in ids)
            raise KeyError(f"category {text!r} stands for {len(ids)}: {paths}; write the path")
        known = {self.format_path(c.id): c.id for c in self.categories} | {i: i for i in self.by_id}
        raise KeyError(f"unknown category {text!r}; nearest known: {_find_nearest(text, known)}")

    def find_brand(self, text: str) -> int:
        """The brand logit index of a brand given by id, name or alias; 0 for the no-brand literal, `OTHER_BRAND` for
        the literal that stands for a brand not listed.

        Raises:
            KeyError: unknown; its message names the nearest known brand.
        """
        try:
            return self._brand_index_by_name[normalize_name(text)]
        except KeyError:
            nearest = _find_nearest(text, dict.fromkeys(self.brand_labels))
            raise KeyError(f"unknown brand {text!r}; nearest known: {nearest}") from None

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, ensure_ascii=False)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_atomically(path, self.to_json() + "\n")

    @classmethod
    def from_json(cls, text: str, *, source: str = "taxonomy") -> "Taxonomy":
        """Read what `to_json` wrote.

        Raises:
            TaxonomyError: not JSON, another schema version, a missing or contradictory value.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            schema_version = raw.pop("schema_version", None)
            if schema_version != SCHEMA_VERSION:
                raise TaxonomyError(
                    f"{source}: schema_version {schema_version!r} is not {SCHEMA_VERSION}, the one this version reads"
                )
            categories = tuple(Category(**category) for category in raw.pop("categories"))
            brands = tuple(Brand(**{**brand, "aliases": tuple(brand["aliases"])}) for brand in raw.pop("brands"))
            return cls(categories=categories, brands=brands, **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TaxonomyError(f"{source} is not a taxonomy: {error}") from error

    @classmethod
    def load(cls, path: Path) -> "Taxonomy":
        if not path.is_file():
            raise TaxonomyError(f"no taxonomy at {path}; `listing-vision data import` writes one")
        return cls.from_json(path.read_text(encoding="utf-8"), source=str(path))


def _find_nearest(text: str, known: Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(text, list(known), n=1, cutoff=0.0)
    return repr(matches[0]) if matches else "none"


def normalize_name(text: str) -> str:
    """Return a name as it is compared: NFC, without case and without space around it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).strip()


def _normalize_path(text: str) -> str:
    return PATH_SEPARATOR.join(normalize_name(part) for part in text.split(">"))


def create_slug(text: str) -> str:
    """Return an id for a name: letters, marks and digits of any script in NFC and lower case, the rest as dashes.

    A name that has none of these, such as an emoji, becomes its code points (`u1f45f`).
    """
    name = _VARIATION_SELECTORS.sub("", normalize_name(text))
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in name)
    return "-".join(kept.split()) or "-".join(f"u{ord(char):04x}" for char in name)
