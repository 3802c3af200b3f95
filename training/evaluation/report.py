"""The report of an evaluation: `metrics.json`, and a page with the same figures as plots, tables and photos."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.confusion_blocks import MAX_MATRIX, build_confusion_blocks, choose_sample_errors
from training.evaluation.evaluate import replace_nan
from training.evaluation.verdict import build_verdict
from training.reporting.field_titles import format_field_title
from training.reporting.glossary import choose_terms
from training.reporting.page import create_thumbnails, format_points, is_measured, render
from training.reporting.plots import plot_reliability, plot_risk_coverage, plot_shares
from vision.calibration import BRAND_FIELD
from vision.runtime.wording import format_count

if TYPE_CHECKING:
    from training.evaluation.gradcam import GradcamExample

__all__ = ["render_report", "write_report"]

_PHOTO_PX = 200
_MAX_BARS = 40
"""Shares in one plot, the largest slices; the table beside it has all."""

Figures = Mapping[str, Any]


_TERMS = (
    "filled in",
    "right when filled in",
    "guarantee",
    "threshold",
    "95 % interval",
    "top-1, top-5",
    "macro",
    "precision",
    "recall",
    "coverage",
    "ECE",
    "temperature",
    "hierarchical precision, recall and F1",
    "tune listings",
)


def render_report(figures: Figures, examples: "Sequence[GradcamExample]" = ()) -> str:
    """The page's text, its photos read from where `figures` says they are.

    Args:
        figures: what `evaluate` returns, with `model` and `split`.
        examples: heat maps to show; without any there is no such section.
    """
    pairs = figures["listing"]["confusions"]
    sample_errors = choose_sample_errors(figures["listing"]["categories"])
    return render(
        "evaluation.html",
        title=f"Evaluation of {figures['model']} on {figures['split']}",
        figures=figures,
        views=["listing"] if figures["listing"]["num"] == figures["photo"]["num"] else ["listing", "photo"],
        examples=examples,
        verdict_sentences=build_verdict(figures),
        facts=_list_facts(figures),
        terms=choose_terms(*_TERMS),
        sample_errors=sample_errors,
        confusion_blocks=build_confusion_blocks,
        max_matrix=MAX_MATRIX,
        thumbnails=create_thumbnails(
            itertools.chain(
                (url for pair in pairs for url in (*pair["photos"], *pair["photos_of_answer"])),
                (error["photo"] for one in sample_errors for error in one["errors"]),
            ),
            max_px=_PHOTO_PX,
        ),
        sliders=_build_sliders(figures),
        levels=_iterate_levels,
        field_title=format_field_title,
        risk_coverage_curves=_build_risk_coverage_curves,
        reliability_diagrams=_build_reliability_diagrams,
        shares_svg=_plot_column,
        slice_name=lambda row: row["name"],
        is_shown=lambda key, view: {"selective": view == "listing", "brand": "brand" in figures[view]}.get(key, True),
        mistake_name=lambda row: "never" if row["depth"] is None else f"at depth {row['depth']}",
    )


def write_report(
    figures: Figures, output: Path, examples: "Callable[[], Sequence[GradcamExample]]" = tuple
) -> tuple[Path, ...]:
    """Write `metrics.json` and `report.html` into a folder, or the figures alone where `output` ends in `.json`.

    Args:
        figures: what `evaluate` returns, with `model` and `split`.
        output: the folder, made where it is missing, or the JSON file.
        examples: computes the heat maps to show; called for a page only.
    """
    alone = output.suffix == ".json"
    metrics = output if alone else output / "metrics.json"
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(replace_nan(figures), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if alone:
        return (metrics,)
    report = output / "report.html"
    report.write_text(render_report(figures, examples()), encoding="utf-8")
    return metrics, report


def _list_facts(figures: Figures) -> list[tuple[str, object]]:
    counts = f"{format_count(figures['listing']['num'], 'listing')}, {format_count(figures['photo']['num'], 'photo')}"
    if figures["num_unusable_photos"]:
        counts += f"; {format_count(figures['num_unusable_photos'], 'photo')} could not be used"
    provenance = [(name.replace("_", " "), value) for name, value in figures.get("provenance", {}).items()]
    return [("model", figures["model"]), ("split", figures["split"]), ("counts", counts), *provenance]


def _build_risk_coverage_curves(part: Figures, view: str) -> Sequence[Figures]:
    curves: list[Figures] = []
    for name, selective in part["selective"].items():
        if not selective["points"]:
            continue
        title, certified, last = format_field_title(name), selective["certified"], selective["points"][-1]
        summary = f"never filled in: {selective['uncertified_reason']}"
        points = [(f"from {point['threshold']:.3f}", point) for point in _thin_out(selective["points"])]
        if certified:
            summary = (
                f"the certified threshold {certified['threshold']:.3f} fills in {format_points(certified['coverage'])} "
                f"%, {format_points(certified['precision'])} % of them right"
            )
            points.append((f"certified: from {certified['threshold']:.3f}", certified))
        label = (
            f"{title} per {view}: precision against coverage; {format_points(last['precision'])} % precise where "
            f"{format_points(last['coverage'])} % are filled in; {summary}."
        )
        svg = plot_risk_coverage(selective, key=f"{view}-selective-{name}", label=label)
        curves.append({"title": title, "summary": summary, "num": selective["num"], "points": points, "svg": svg})
    return curves


def _build_sliders(figures: Figures) -> Sequence[Figures]:
    """The fields whose threshold moves on the tune listings, the strictest threshold first."""
    selective: Figures = figures["exploration"]["selective"] if "exploration" in figures else {}
    sliders = []
    for name, curve in selective.items():
        if curve["points"]:
            certified = curve["certified"]
            sliders.append(
                {
                    "title": format_field_title(name),
                    "summary": f"the certified threshold is {certified['threshold']:.3f} and fills in "
                    f"{format_points(certified['coverage'])} % of these listings"
                    if certified
                    else "there is no certified threshold",
                    "start": _find_start(curve["points"], certified),
                    "points": [(f"from {point['threshold']:.3f}", point) for point in curve["points"]],
                }
            )
    return sliders


def _find_start(points: Sequence[Figures], certified: Figures | None) -> int:
    """The loosest of the points that is at least as strict as the certified one; without one the strictest."""
    if certified is None:
        return 0
    strict_enough = [at for at, point in enumerate(points) if point["threshold"] >= certified["threshold"]]
    return strict_enough[-1] if strict_enough else 0


def _thin_out(points: Sequence[Figures], *, num: int = 10) -> Sequence[Figures]:
    """The first point of each further tenth, and the last one."""
    chosen, wanted = [], 1 / num
    for point in points:
        if point["coverage"] >= wanted - 1e-9 or point is points[-1]:
            chosen.append(point)
            wanted = (int(point["coverage"] * num + 1e-9) + 1) / num
    return chosen


def _build_reliability_diagrams(part: Figures, view: str) -> Sequence[Figures]:
    diagrams: list[Figures] = []
    brand = [(BRAND_FIELD, part["brand"])] if "brand" in part else []
    for name, level in (*_iterate_levels(part), *brand):
        before, after = level["reliability_uncalibrated"], level["reliability"]
        if not after:
            continue
        title, errors = format_field_title(name), [format_points(level[key]) for key in ("ece_uncalibrated", "ece")]
        summary = f"calibration error {errors[0]} % before, {errors[1]} % after"
        if before == after:
            before, summary = [], f"calibration error {errors[1]} %, the same with and without calibration"
        label = f"{title} per {view}: right over confidence; {summary}."
        svg = plot_reliability(before, after, key=f"{view}-reliability-{name}", label=label)
        points = [("before", row) for row in before] + [("after", row) for row in after]
        diagrams.append({"title": title, "summary": summary, "points": points, "svg": svg})
    return diagrams


def _plot_column(rows: Sequence[Figures], name: Callable[[Figures], str], column: str, *, key: str, label: str) -> str:
    """The plot of one share of each row that has it; empty where none has."""
    largest = sorted(rows, key=lambda row: -row["num"])[:_MAX_BARS]
    known = [row for row in rows if row in largest and is_measured(row[column])]
    if not known:
        return ""
    names, shares = [name(row) for row in known], [row[column] for row in known]
    values = ", ".join(f"{name} {format_points(share)} %" for name, share in zip(names, shares, strict=True))
    return plot_shares(
        names, shares, [row[f"{column}_interval"] for row in known], key=key, label=f"{label}: {values}."
    )


def _iterate_levels(part: Figures) -> Iterator[tuple[str, Figures]]:
    depths = sorted((key for key in part if re.fullmatch(r"depth_\d+", key)), key=lambda key: int(key[6:]))
    for name in ("leaf", *depths):
        yield name, part[name]
