"""The first sentences of a report of an evaluation: what is filled in, and whether the guarantees held."""

from collections.abc import Mapping
from typing import Any

from training.reporting.page import format_percent
from vision.calibration import BRAND_FIELD, PATH_FIELD

__all__ = ["build_verdict", "format_field_title"]

Figures = Mapping[str, Any]


def build_verdict(figures: Figures) -> list[str]:
    """Sentences for whoever decides on the release, the conclusion first.

    Args:
        figures: what `evaluate` returns.
    """
    fields: Mapping[str, Figures] = figures["listing"]["fields"]
    if not fields:
        return ["This model has no certificate: it fills nothing in and only suggests. Calibrate it before a release."]
    filled = {name: field for name, field in fields.items() if field["threshold"] is not None}
    broken = [name for name, field in filled.items() if field["precision_interval"][1] < 1 - field["alpha"]]
    if broken:
        first = f"Do not release with filling in: {_join(broken)} did not keep the guarantee on these listings."
    elif not filled:
        first = "This model fills nothing in: no field is certified. It may be released to suggest only."
    elif all(field["precision_interval"][0] >= 1 - field["alpha"] for field in filled.values()):
        first = f"May be released to fill in {_join(filled)}: these listings confirm the guarantees."
    else:
        first = (
            f"May be released to fill in {_join(filled)} as certified: nothing on these listings contradicts the "
            "guarantees, but they are too few to confirm them on their own."
        )
    return [first, *(_describe_field(name, field) for name, field in fields.items())]


def format_field_title(name: str) -> str:
    """The field's name for people."""
    named = {"leaf": "Leaf category", BRAND_FIELD: "Brand", PATH_FIELD: "Category"}
    return named.get(name) or f"Category, depth {name.rpartition('_')[2]}"


def _describe_field(name: str, field: Figures) -> str:
    title = format_field_title(name)
    if field["threshold"] is None:
        return f"{title}: never filled in. {field['uncertified_sentence']}"
    filled = f"{title}: filled in for {format_percent(field['coverage'])} of the listings"
    if not field["num_judged"]:
        return f"{filled}; none of them has a label that says whether that is right."
    low, high = field["precision_interval"]
    return (
        f"{filled}; {format_percent(field['precision'])} of these are right ({format_percent(low)} to "
        f"{format_percent(high)}), at least {1 - field['alpha']:.0%} is guaranteed."
    )


def _join(names: Any) -> str:
    titles = [format_field_title(name)[0].lower() + format_field_title(name)[1:] for name in names]
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"
