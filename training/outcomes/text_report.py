"""The report of an experiment as text for a terminal, and its guarantees for Prometheus."""

from training.outcomes.report import Drift, ExperimentReport, FieldReport
from training.outcomes.verdict import build_experiment_verdict
from training.reporting.field_titles import format_field_title
from vision.runtime.wording import format_count

__all__ = ["GUARANTEE_METRICS", "format_metrics", "format_report"]

GUARANTEE_METRICS = {
    "listing_vision_guarantee_met": "Whether prefilled fields of the last days may still be as precise as guaranteed.",
    "listing_vision_guarantee_recent_precision": "Share of the prefilled fields of the last days that sellers kept.",
    "listing_vision_guarantee_recent_listings": "Prefilled fields of the last days with an outcome.",
}


def format_report(report: ExperimentReport) -> str:
    """The report as text."""
    header = f"{'field':<18} {'release':<20} {'outcomes':>9} {'accepted':>9} {'95 %':>15}  {'unseen':>7}  guarantee"
    lines = [*build_experiment_verdict(report), "", header]
    for one in report.fields:
        low, high = one.accepted_interval
        unseen = "-" if one.accepted_unseen is None else f"{one.accepted_unseen:.1%}"
        lines.append(
            f"{format_field_title(one.field):<18} {one.release:<20} {one.num_outcomes:>9} {one.accepted:>9.1%} "
            f"{low:>7.1%}…{high:<7.1%} {unseen:>7}  {_format_guarantee(one)}"
        )
    for other in report.comparisons:
        low, high = other.interval
        lines.append(
            f"{format_field_title(other.field)}: {other.treatment} compared with {other.control} "
            f"{other.difference:+.1%} ({low:+.1%}…{high:+.1%}, always valid): {other.verdict}"
        )
    for release, (count, same) in report.shadow_agreement.items():
        lines.append(f"shadow {release}: {same:.1%} of {count} suggestions equal what the caller got")
    for shadow in report.shadows:
        low, high = shadow.interval
        kind = "unseen" if shadow.unseen else "outcomes"
        lines.append(
            f"{format_field_title(shadow.field)}: shadow {shadow.release} {shadow.accepted:.1%}, "
            f"shown {shadow.shown_accepted:.1%}, {shadow.num_outcomes} {kind} ({low:+.1%}…{high:+.1%}, always valid)"
        )
    if report.sample_ratio_p_value is not None:
        broken = "not as assigned: trust no comparison before the cause is found"
        verdict = "as assigned" if report.is_assigned_as_planned else broken
        lines.append(f"sample ratio: {verdict} (p = {report.sample_ratio_p_value:.2g})")
    lines += [_format_drift(one, report.drift_days) for one in report.drift]
    if report.num_left_out:
        num = format_count(report.num_left_out, "outcome")
        lines.append(f"{num} without a valid suggestion_id left out (--include-unverified)")
    if report.num_unjoined:
        lines.append(f"{format_count(report.num_unjoined, 'outcome')} of listings without a suggestion left out")
    return "\n".join(lines)


def format_metrics(report: ExperimentReport) -> str:
    """The guarantees in Prometheus' text format, for a file that a node exporter reads."""
    guaranteed = [one for one in report.fields if one.guaranteed is not None and one.recent_precision is not None]
    lines = []
    for name, description in GUARANTEE_METRICS.items():
        lines += [f"# HELP {name} {description}", f"# TYPE {name} gauge"]
        for one in guaranteed:
            value = {
                "listing_vision_guarantee_met": int(one.meets_guarantee is not False),
                "listing_vision_guarantee_recent_precision": one.recent_precision,
                "listing_vision_guarantee_recent_listings": one.num_recent,
            }[name]
            lines.append(f'{name}{{field="{one.field}",model_release="{one.release}"}} {value}')
    return "\n".join(lines) + "\n"


def _format_drift(drift: Drift, days: int | None) -> str:
    compared = (
        f"{drift.release} recently compared with its bundle"
        if drift.release
        else f"last {days} days compared with the first"
    )
    grade: str = drift.grade
    if grade == "none":
        grade += f" beyond chance, which reaches {drift.chance:.3f} with so many listings"
    return f"drift of {drift.statistic.replace('_', ' ')}, {compared}: {drift.stability:.3f} ({grade})"


def _format_guarantee(one: FieldReport) -> str:
    if one.guaranteed is None:
        return "-"
    if one.recent_precision is None:
        return f"{one.guaranteed:.0%}, not filled in recently"
    verdict = "met" if one.meets_guarantee else "BROKEN"
    return f"{one.guaranteed:.0%}, {one.recent_precision:.1%} of {one.num_recent} recently: {verdict}"
