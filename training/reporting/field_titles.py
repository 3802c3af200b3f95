"""Names for people of the fields that a model answers."""

from collections.abc import Iterable

from vision.calibration import BRAND_FIELD, PATH_FIELD

__all__ = ["format_field_title", "join_field_titles"]

_TITLES = {"leaf": "Leaf category", BRAND_FIELD: "Brand", PATH_FIELD: "Category"}


def format_field_title(name: str) -> str:
    """The title of a field by its name in figures: `brand`, `leaf`, `category_path`, `depth_2`, `category_depth_2`."""
    return _TITLES.get(name) or f"Category, depth {name.rpartition('_')[2]}"


def join_field_titles(names: Iterable[str]) -> str:
    """The titles of at least one field within a sentence."""
    *others, last = (title[0].lower() + title[1:] for title in map(format_field_title, names))
    return f"{', '.join(others)} and {last}" if others else last
