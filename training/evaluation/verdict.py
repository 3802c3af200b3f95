"""The first sentences of a report of an evaluation: what is filled in, and whether the guarantees held."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from training.reporting.field_titles import format_field_title, join_field_titles
from training.reporting.page import format_percent, is_measured
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration

__all__ = ["build_verdict", "describe_certificate"]

Figures = Mapping[str, Any]


def describe_certificate(calibration: Calibration, *, split: str) -> dict[str, Any]:
    """Where the guarantees come from, and whether listings of a split can confirm them.

    Returns:
        `split`: what they were made on, empty without any; `is_independent`: whether that leaves the evaluated split
        out.
    """
    certified_on = calibration.certifies.get("split", "")
    return {"split": certified_on, "is_independent": split not in re.findall(r"\w+", certified_on)}


def build_verdict(figures: Figures) -> list[str]:
    """Sentences for whoever decides on the release, the conclusion first.

    Args:
        figures: what `evaluate` returns; with `certificate`, as `describe_certificate` returns it, listings that the
            guarantees were made on do not confirm them.
    """
    certificate = figures.get("certificate", {"is_independent": True})
    fields: Mapping[str, Figures] = figures["listing"]["fields"]
    if not fields:
        first = "This model has no certificate: it fills nothing in and only suggests. Calibrate it before a release."
        return [first, *_describe_accuracy(figures)]
    filled = {name: field for name, field in fields.items() if field["threshold"] is not None}
    broken = [name for name, field in filled.items() if field["precision_interval"][1] < 1 - field["alpha"]]
    if broken:
        first = (
            f"Do not release with filling in: {join_field_titles(broken)} did not keep the guarantee on these listings."
        )
    elif not filled:
        first = "This model fills nothing in: no field is certified. It may be released to suggest only."
    elif not certificate["is_independent"]:
        first = (
            f"May be released to fill in {join_field_titles(filled)} as certified. These listings cannot confirm the "
            f"guarantees, which were made on {certificate['split']}: evaluate on listings kept apart, such as the test "
            "split."
        )
    elif all(field["precision_interval"][0] >= 1 - field["alpha"] for field in filled.values()):
        first = f"May be released to fill in {join_field_titles(filled)}: these listings confirm the guarantees."
    else:
        first = (
            f"May be released to fill in {join_field_titles(filled)} as certified: nothing on these listings "
            "contradicts the guarantees, but they are too few to confirm them on their own."
        )
    described = (
        _describe_field(name, field, figures["listing"].get("selective", {})) for name, field in fields.items()
    )
    return [first, *described, *_describe_accuracy(figures)]


def _describe_accuracy(figures: Figures) -> Iterator[str]:
    for name in ("leaf", BRAND_FIELD):
        part = figures["listing"].get(name)
        if part and is_measured(part["top1"]):
            low, high = part["top1_interval"]
            title = join_field_titles([name])
            yield (
                f"The likeliest {title}, filled in or not, is right for {format_percent(part['top1'])} of the labelled "
                f"listings ({format_percent(low)} to {format_percent(high)})."
            )


def _describe_field(name: str, field: Figures, selective: Mapping[str, Figures]) -> str:
    title = format_field_title(name)
    if field["threshold"] is None:
        return f"{title}: never filled in. {field['uncertified_sentence']}"
    filled = f"{title}: filled in for {format_percent(field['coverage'])} of the listings"
    if name == PATH_FIELD:
        filled += _describe_depths(selective)
    if not field["num_judged"]:
        return f"{filled}; none of them has a label that says whether that is right."
    low, high = field["precision_interval"]
    return (
        f"{filled}; {format_percent(field['precision'])} of these are right ({format_percent(low)} to "
        f"{format_percent(high)}), at least {1 - field['alpha']:.0%} is guaranteed."
    )


def _describe_depths(selective: Mapping[str, Figures]) -> str:
    """How far down a path that is filled in goes."""
    certified = {name: curve["certified"] for name, curve in selective.items() if name != BRAND_FIELD}
    deeper = [
        f"{format_percent(point['coverage'])} down to depth {name.rpartition('_')[2]}"
        for name, point in certified.items()
        if point and not name.endswith("_1")
    ]
    return f" ({', '.join(deeper)})" if deeper else ""
