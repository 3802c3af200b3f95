"""Report of an experiment: acceptance, comparisons, guarantees and drift from outcomes, as text and as JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.outcomes.tables import FieldOutcomes, OutcomeTables, ShadowOutcomes
from training.statistics.drift import (
    BRAND_PROBABILITY,
    BYTES_PER_PHOTO,
    LEAF_PROBABILITY,
    PHOTOS_PER_LISTING,
    PSI_LARGE,
    PSI_MODERATE,
    build_histogram,
    compute_chance_level,
    compute_population_stability,
)
from training.statistics.sequential import (
    SAMPLE_RATIO_ALPHA,
    Interval,
    bound_difference,
    bound_paired_difference,
    compute_sample_ratio_p_value,
    is_guarantee_plausible,
)
from vision.calibration import PATH_FIELD, Calibration, Histogram
from vision.errors import ListingVisionError
from vision.metrics import compute_wilson_interval

__all__ = ["GUARANTEE_METRICS", "ExperimentReport", "build_report", "format_metrics", "format_report"]

DRIFT_COLUMNS = {
    LEAF_PROBABILITY: "category_probabilities[-1]",
    BRAND_PROBABILITY: "brand_probability",
    PHOTOS_PER_LISTING: "num_photos",
    BYTES_PER_PHOTO: "photo_bytes / greatest(num_photos, 1)",
    "unusable_share": "num_unusable / greatest(num_photos, 1)",
}
"""Name to SQL on the columns of a suggestion."""
GUARANTEE_METRICS = {
    "listing_vision_guarantee_met": "Whether prefilled fields of the last days may still be as precise as guaranteed.",
    "listing_vision_guarantee_recent_precision": "Share of the prefilled fields of the last days that sellers kept.",
    "listing_vision_guarantee_recent_listings": "Prefilled fields of the last days with an outcome.",
}
_DAY_US = 86_400_000_000


@dataclass(frozen=True, kw_only=True)
class FieldReport:
    field: str
    release: str
    num_outcomes: int
    accepted: float
    """Share of all outcomes; sellers also accept wrong suggestions that they see."""
    accepted_interval: Interval
    num_hidden: int
    accepted_unseen: float | None
    """Share where nothing was shown: the unbiased accuracy of the suggestions."""
    num_recent: int
    recent_precision: float | None
    guaranteed: float | None
    """Guaranteed precision. None: the bundle does not prefill this field, or is another release."""
    meets_guarantee: bool | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    field: str
    control: str
    treatment: str
    difference: float
    """Difference of the accepted shares, treatment minus control."""
    interval: Interval
    """Valid however often it is looked at."""

    @property
    def verdict(self) -> str:
        if self.interval.low > 0:
            return "better"
        return "worse" if self.interval.high < 0 else "no difference found yet"


@dataclass(frozen=True, kw_only=True)
class ShadowReport:
    field: str
    release: str
    """The shadow's release."""
    num_outcomes: int
    accepted: float
    """Share of the shadow's suggestions that sellers chose."""
    shown_accepted: float
    """The same share of the suggestions that were shown for these listings."""
    interval: Interval
    """Interval of the difference of the two; valid however often it is looked at."""
    unseen: bool
    """Whether only listings count whose sellers saw no suggestion: otherwise the one that they saw has an advantage."""


@dataclass(frozen=True, kw_only=True)
class ExperimentReport:
    fields: list[FieldReport]
    comparisons: list[Comparison]
    shadow_agreement: Mapping[str, tuple[int, float]]
    """By release of the shadow: its suggestions, and the share equal to what the caller got."""
    shadows: list[ShadowReport]
    listings_by_release: Mapping[str, int]
    sample_ratio_p_value: float | None
    num_unjoined: int
    num_left_out: int
    """Outcomes without a valid suggestion id."""
    drift: Mapping[str, float]
    """Population stability index of the last days compared with the first."""
    drift_chance: Mapping[str, float]
    """The index that chance alone exceeds once in a hundred, for as many listings."""
    drift_days: int | None
    """None: the time span is too short."""
    drift_from_bundle: Mapping[str, Mapping[str, float]]
    """By release: the same for its suggestions of the last days, compared with its bundle's calibration listings."""
    drift_from_bundle_chance: Mapping[str, Mapping[str, float]]
    """By release: what chance alone exceeds once in a hundred."""

    @property
    def fields_to_switch_off(self) -> list[str]:
        """Fields that no longer meet their guarantee."""
        return [f"{one.field} of {one.release}" for one in self.fields if one.meets_guarantee is False]

    def to_dict(self) -> dict[str, Any]:
        comparisons = [asdict(one) | {"verdict": one.verdict} for one in self.comparisons]
        return asdict(self) | {"comparisons": comparisons, "fields_to_switch_off": self.fields_to_switch_off}


def build_report(
    tables: OutcomeTables,
    *,
    calibrations: Mapping[str, Calibration],
    control: str | None = None,
    shares: Mapping[str, float] | None = None,
    days: int = 7,
) -> ExperimentReport:
    """Compute the report.

    Args:
        tables: the suggestions and outcomes.
        calibrations: by release.
        control: release that the others are compared with; default: the one with most listings.
        shares: assigned shares of listings by release.
        days: length of the windows for guarantees and drift.

    Raises:
        ListingVisionError: a release of `control` or `shares` has no suggestions.
    """
    counts = tables.count_listings()
    for option, names in (("--control", [control] if control else []), ("--share", shares or {})):
        for name in names:
            if name not in counts:
                raise ListingVisionError(
                    f"{option} {name}: this release has no suggestions; those that have are {', '.join(counts)}"
                )
    base = control or max(counts, key=lambda release: counts[release])
    # Without comparisons: the listings that have an outcome of the path differ from release to release.
    fields = _report_releases(tables.load_outcomes(PATH_FIELD), calibrations, days)
    comparisons, shadows = [], []
    for name in tables.list_fields():
        outcomes = tables.load_outcomes(name)
        fields += _report_releases(outcomes, calibrations, days)
        comparisons += _compare_releases(outcomes, base)
        shadows += _report_shadows(name, tables.load_shadows(name))
    drift_days = days if tables.measure_span_days() >= 2 * days else None
    drift = {
        name: _measure_drift(
            build_histogram(tables.load_statistic(sql, days=days, from_end=False)),
            tables.load_statistic(sql, days=days, from_end=True),
        )
        for name, sql in (DRIFT_COLUMNS.items() if drift_days else ())
    }
    from_bundle = _measure_drift_from_bundles(tables, counts, calibrations, days)
    return ExperimentReport(
        fields=fields,
        comparisons=comparisons,
        shadow_agreement=tables.measure_shadow_agreement(),
        shadows=shadows,
        listings_by_release=counts,
        sample_ratio_p_value=compute_sample_ratio_p_value(counts, shares) if shares else None,
        num_unjoined=tables.count_unjoined(),
        num_left_out=tables.num_left_out,
        drift={name: found.stability for name, found in drift.items()},
        drift_chance={name: found.chance for name, found in drift.items()},
        drift_days=drift_days,
        drift_from_bundle={
            release: {name: found.stability for name, found in one.items()} for release, one in from_bundle.items()
        },
        drift_from_bundle_chance={
            release: {name: found.chance for name, found in one.items()} for release, one in from_bundle.items()
        },
    )


class _Drift(NamedTuple):
    stability: float
    chance: float


def _measure_drift(reference: Histogram, recent: npt.NDArray[np.float64]) -> _Drift:
    return _Drift(compute_population_stability(reference, recent), compute_chance_level(reference, len(recent)))


def _measure_drift_from_bundles(
    tables: OutcomeTables, releases: Iterable[str], calibrations: Mapping[str, Calibration], days: int
) -> dict[str, dict[str, _Drift]]:
    return {
        release: {
            name: _measure_drift(
                histogram, tables.load_statistic(DRIFT_COLUMNS[name], days=days, from_end=True, release=release)
            )
            for name, histogram in calibrations[release].expected.items()
            if name in DRIFT_COLUMNS
        }
        for release in releases
        if release in calibrations
    }


def _report_releases(outcomes: FieldOutcomes, calibrations: Mapping[str, Calibration], days: int) -> list[FieldReport]:
    return [
        _report_field(outcomes, release, calibrations.get(release), days)
        for release in np.unique(outcomes.releases).tolist()
    ]


def _report_field(outcomes: FieldOutcomes, release: str, calibration: Calibration | None, days: int) -> FieldReport:
    of_release = outcomes.releases == release
    accepted, hidden = outcomes.accepted[of_release], outcomes.hidden[of_release]
    since_us = outcomes.time_us.max() - days * _DAY_US
    recent = accepted[(outcomes.filled & ~outcomes.hidden & (outcomes.time_us > since_us))[of_release]]
    guaranteed = (
        next((1 - f.alpha for f in calibration.fields if f.name == outcomes.field and f.threshold is not None), None)
        if calibration
        else None
    )
    return FieldReport(
        field=outcomes.field,
        release=release,
        num_outcomes=len(accepted),
        accepted=float(accepted.mean()),
        accepted_interval=Interval(*compute_wilson_interval(int(accepted.sum()), len(accepted))),
        num_hidden=int(hidden.sum()),
        accepted_unseen=float(accepted[hidden].mean()) if hidden.any() else None,
        num_recent=len(recent),
        recent_precision=float(recent.mean()) if len(recent) else None,
        guaranteed=guaranteed,
        meets_guarantee=is_guarantee_plausible(int(recent.sum()), len(recent), precision=guaranteed)
        if guaranteed
        else None,
    )


def _compare_releases(outcomes: FieldOutcomes, base: str) -> list[Comparison]:
    found = []
    control = outcomes.accepted[outcomes.releases == base]
    for release in np.unique(outcomes.releases).tolist():
        treatment = outcomes.accepted[outcomes.releases == release]
        if release != base and len(control):
            found.append(
                Comparison(
                    field=outcomes.field,
                    control=base,
                    treatment=release,
                    difference=float(treatment.mean() - control.mean()),
                    interval=bound_difference(control, treatment),
                )
            )
    return found


def _report_shadows(field: str, outcomes: ShadowOutcomes) -> list[ShadowReport]:
    found = []
    for release in np.unique(outcomes.releases).tolist():
        for unseen in (False, True):
            of_release = (outcomes.releases == release) & (outcomes.hidden | (not unseen))
            if not of_release.any():
                continue
            accepted, given = outcomes.accepted[of_release], outcomes.shown_accepted[of_release]
            found.append(
                ShadowReport(
                    field=field,
                    release=release,
                    num_outcomes=len(accepted),
                    accepted=float(accepted.mean()),
                    shown_accepted=float(given.mean()),
                    interval=bound_paired_difference(given, accepted),
                    unseen=unseen,
                )
            )
    return found


def format_report(report: ExperimentReport) -> str:
    """The report as text."""
    lines = [f"{'field':<18} {'release':<20} {'outcomes':>9} {'accepted':>9} {'95 %':>15}  {'unseen':>7}  guarantee"]
    for one in report.fields:
        low, high = one.accepted_interval
        unseen = "-" if one.accepted_unseen is None else f"{one.accepted_unseen:.1%}"
        lines.append(
            f"{one.field:<18} {one.release:<20} {one.num_outcomes:>9} {one.accepted:>9.1%} {low:>7.1%}…{high:<7.1%} "
            f"{unseen:>7}  {_format_guarantee(one)}"
        )
    for other in report.comparisons:
        low, high = other.interval
        lines.append(
            f"{other.field}: {other.treatment} compared with {other.control} {other.difference:+.1%} "
            f"({low:+.1%}…{high:+.1%}, always valid): {other.verdict}"
        )
    for release, (count, same) in report.shadow_agreement.items():
        lines.append(f"shadow {release}: {same:.1%} of {count} suggestions equal what the caller got")
    for shadow in report.shadows:
        low, high = shadow.interval
        kind = "unseen" if shadow.unseen else "outcomes"
        lines.append(
            f"{shadow.field}: shadow {shadow.release} {shadow.accepted:.1%}, shown {shadow.shown_accepted:.1%}, "
            f"{shadow.num_outcomes} {kind} ({low:+.1%}…{high:+.1%}, always valid)"
        )
    if report.sample_ratio_p_value is not None:
        broken = report.sample_ratio_p_value < SAMPLE_RATIO_ALPHA
        verdict = "not as assigned: trust no comparison before the cause is found" if broken else "as assigned"
        lines.append(f"sample ratio: {verdict} (p = {report.sample_ratio_p_value:.2g})")
    for name, index in report.drift.items():
        lines.append(
            f"drift of {name}, last {report.drift_days} days compared with the first: "
            f"{index:.3f} ({_grade(index, report.drift_chance[name])})"
        )
    for release, found in report.drift_from_bundle.items():
        for name, index in found.items():
            grade = _grade(index, report.drift_from_bundle_chance[release][name])
            lines.append(f"drift of {name}, {release} recently compared with its bundle: {index:.3f} ({grade})")
    if report.num_left_out:
        lines.append(
            f"{report.num_left_out} outcomes without a valid suggestion_id are left out (--include-unverified)"
        )
    if report.num_unjoined:
        lines.append(f"{report.num_unjoined} listings with an outcome have no suggestion and are left out")
    lines += [f"switch off: {name} no longer meets its guarantee" for name in report.fields_to_switch_off]
    return "\n".join(lines)


def _grade(index: float, chance: float) -> str:
    if index <= chance:
        return f"none beyond chance, which reaches {chance:.3f} with so many listings"
    return "large" if index >= PSI_LARGE else "moderate" if index >= PSI_MODERATE else "small"


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


def _format_guarantee(one: FieldReport) -> str:
    if one.guaranteed is None:
        return "-"
    if one.recent_precision is None:
        return f"{one.guaranteed:.0%}, not prefilled recently"
    verdict = "met" if one.meets_guarantee else "BROKEN"
    return f"{one.guaranteed:.0%}, {one.recent_precision:.1%} of {one.num_recent} recently: {verdict}"
