"""The first sentences of a report of an experiment: what to switch off, which release is better, what has drifted."""

from training.outcomes.report import Comparison, ExperimentReport
from training.reporting.field_titles import join_field_titles
from training.reporting.page import format_percent, format_signed

__all__ = ["build_experiment_verdict"]


def build_experiment_verdict(report: ExperimentReport) -> list[str]:
    """Sentences for whoever decides on the releases, the conclusion first."""
    sentences = [
        f"Switch off {join_field_titles([one.field])} of {one.release}: sellers kept "
        f"{format_percent(one.recent_precision)} of the last {one.num_recent} that were filled in, and "
        f"{format_percent(one.guaranteed)} is guaranteed."
        for one in report.fields_to_switch_off
    ]
    if not sentences:
        checked = [one for one in report.fields if one.guaranteed is not None and one.num_recent]
        sentences.append(
            "Nothing to switch off: every field that was filled in of late may still be as precise as guaranteed."
            if checked
            else "No guarantee could be checked: no field with one was filled in of late and has an outcome."
        )
    if report.is_assigned_as_planned is False:
        sentences.append(
            "Trust no comparison before its cause is found: the releases did not get the shares of the listings that "
            f"they were assigned (p {report.sample_ratio_p_value:.2g})."
        )
    for treatment in dict.fromkeys(one.treatment for one in report.comparisons):
        sentences.append(_describe_comparison([one for one in report.comparisons if one.treatment == treatment]))
    return [*sentences, *_describe_drift(report)]


def _describe_comparison(fields: list[Comparison]) -> str:
    named = f"{fields[0].treatment} compared with {fields[0].control}"
    parts = [
        f"{one.verdict} for {join_field_titles([one.field])} ({format_signed(one.difference)} points, "
        f"{format_signed(one.interval.low)} to {format_signed(one.interval.high)})"
        for one in fields
        if one.interval.low > 0 or one.interval.high < 0
    ]
    if not parts:
        return f"{named}: no difference found yet."
    others = [one.field for one in fields if one.interval.low <= 0 <= one.interval.high]
    if others:
        parts.append(f"no difference found yet for {join_field_titles(others)}")
    return f"{named}: {'; '.join(parts)}."


def _describe_drift(report: ExperimentReport) -> list[str]:
    if not report.drift:
        return ["Drift was not measured: there are too few days, and no bundle says what it was calibrated on."]
    found = [one for one in report.drift if one.grade in ("moderate", "large")]
    if not found:
        return ["Listings and confidences have not drifted noticeably."]
    names = ", ".join(dict.fromkeys(f"{one.statistic.replace('_', ' ')} ({one.grade})" for one in found))
    return [f"Drifted: {names}. Guarantees hold on listings like those they were certified on: certify again."]
