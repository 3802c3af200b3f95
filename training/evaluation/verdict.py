"""The first sentences of a report of an evaluation: what is filled in, and whether the guarantees held."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.reporting.field_titles import format_field_title, join_field_titles
from training.reporting.page import format_percent, is_measured
from vision.calibration import BRAND_FIELD

__all__ = ["build_verdict"]

Figures = Mapping[str, Any]


def build_verdict(figures: Figures) -> list[str]:
    """Sentences for whoever decides on the release, the conclusion first.

    Args:
        figures: what `evaluate` returns.
    """
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
    elif all(field["precision_interval"][0] >= 1 - field["alpha"] for field in filled.values()):
        first = f"May be released to fill in {join_field_titles(filled)}: these listings confirm the guarantees."
    else:
        first = (
            f"May be released to fill in {join_field_titles(filled)} as certified: nothing on these listings "
            "contradicts the guarantees, but they are too few to confirm them on their own."
        )
    return [first, *(_describe_field(name, field) for name, field in fields.items()), *_describe_accuracy(figures)]


def _describe_accuracy(figures: Figures) -> Iterator[str]:
    for name in ("leaf", BRAND_FIELD):
        part = figures["listing"][name]
        if is_measured(part["top1"]):
            low, high = part["top1_interval"]
            title = join_field_titles([name])
            yield (
                f"The likeliest {title}, filled in or not, is right for {format_percent(part['top1'])} of the labelled "
                f"listings ({format_percent(low)} to {format_percent(high)})."
            )


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
