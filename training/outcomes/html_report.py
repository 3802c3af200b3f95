"""The report of an experiment as JSON for machines and as a page for whoever decides on the releases."""

import json
from collections.abc import Mapping
from pathlib import Path

from training.outcomes.report import ExperimentReport
from training.outcomes.verdict import build_experiment_verdict
from training.reporting.field_titles import format_field_title
from training.reporting.glossary import choose_terms
from training.reporting.page import render
from vision.runtime.wording import format_count

__all__ = ["render_experiment", "write_experiment"]

_TERMS = (
    "accepted",
    "accepted unseen",
    "guarantee",
    "filled in",
    "95 % interval",
    "always valid interval",
    "shadow",
    "drift",
    "chance level",
)


def render_experiment(report: ExperimentReport, provenance: Mapping[str, str]) -> str:
    """The page's text.

    Args:
        report: the figures.
        provenance: what they were computed from and when, by name.
    """
    return render(
        "experiment.html",
        title="Releases by what sellers chose",
        verdict_sentences=build_experiment_verdict(report),
        facts=_list_facts(report, provenance),
        terms=choose_terms(*_TERMS),
        report=report,
        field_title=format_field_title,
    )


def write_experiment(report: ExperimentReport, provenance: Mapping[str, str], output: Path) -> tuple[Path, ...]:
    """Write `experiment.json` and `experiment.html` into a folder, or the figures alone where `output` ends in `.json`.

    Args:
        report: the figures.
        provenance: as `render_experiment` takes it.
        output: the folder, made where it is missing, or the JSON file.
    """
    alone = output.suffix == ".json"
    figures = output if alone else output / "experiment.json"
    figures.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"provenance": dict(provenance), **report.to_dict()}, indent=1, allow_nan=False) + "\n"
    figures.write_text(text, encoding="utf-8")
    if alone:
        return (figures,)
    page = output / "experiment.html"
    page.write_text(render_experiment(report, provenance), encoding="utf-8")
    return figures, page


def _list_facts(report: ExperimentReport, provenance: Mapping[str, str]) -> list[tuple[str, object]]:
    counts = format_count(report.num_outcomes, "outcome")
    if report.num_left_out:
        counts += f"; {report.num_left_out} more without a valid suggestion id left out"
    if report.num_unjoined:
        counts += f"; {report.num_unjoined} of listings without a suggestion left out"
    releases = [(f"release {name}", format_count(num, "listing")) for name, num in report.listings_by_release.items()]
    return [*releases, ("counts", counts), *((name.replace("_", " "), value) for name, value in provenance.items())]
