"""Report of an experiment: acceptance, comparisons, guarantees and drift from outcomes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

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

__all__ = ["Comparison", "Drift", "ExperimentReport", "FieldReport", "ShadowReport", "build_report"]

DRIFT_COLUMNS = {
    LEAF_PROBABILITY: "CASE WHEN ancestor_given IS NOT TRUE THEN category_probabilities[-1] END",
    BRAND_PROBABILITY: "brand_probability",
    PHOTOS_PER_LISTING: "num_photos",
    BYTES_PER_PHOTO: "photo_bytes / greatest(num_photos, 1)",
    "unusable_share": "num_unusable / greatest(num_photos, 1)",
}
"""Name to SQL on the columns of a suggestion."""
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
    accepted_unseen_interval: Interval | None
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
class Drift:
    """How far the suggestions of the last days are from earlier ones."""

    statistic: str
    """One of `DRIFT_COLUMNS`."""
    release: str | None
    """Its own suggestions, compared with its bundle's calibration listings. None: all, compared with the first days."""
    stability: float
    """Population stability index."""
    chance: float
    """The index that chance alone exceeds once in a hundred, for as many listings."""

    @property
    def grade(self) -> Literal["none", "small", "moderate", "large"]:
        if self.stability <= self.chance:
            return "none"
        return "large" if self.stability >= PSI_LARGE else "moderate" if self.stability >= PSI_MODERATE else "small"


@dataclass(frozen=True, kw_only=True)
class ExperimentReport:
    fields: list[FieldReport]
    comparisons: list[Comparison]
    shadow_agreement: Mapping[str, tuple[int, float]]
    """By release of the shadow: its suggestions, and the share equal to what the caller got."""
    shadows: list[ShadowReport]
    listings_by_release: Mapping[str, int]
    sample_ratio_p_value: float | None
    num_outcomes: int
    """Outcomes that are taken; of each listing the last one counts."""
    num_unjoined: int
    """Listings that have an outcome but no suggestion."""
    num_left_out: int
    """Outcomes without a valid suggestion id."""
    drift: list[Drift]
    """Without a release only where `drift_days` is set."""
    drift_days: int | None
    """Length of the first and the last window; None: the time span is too short for two."""

    @property
    def fields_to_switch_off(self) -> list[FieldReport]:
        """Fields that no longer meet their guarantee."""
        return [one for one in self.fields if one.meets_guarantee is False]

    @property
    def is_assigned_as_planned(self) -> bool | None:
        """Whether listings were assigned in the given shares; None: no shares were given."""
        return None if self.sample_ratio_p_value is None else self.sample_ratio_p_value >= SAMPLE_RATIO_ALPHA

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "comparisons": [asdict(one) | {"verdict": one.verdict} for one in self.comparisons],
            "drift": [asdict(one) | {"grade": one.grade} for one in self.drift],
            "fields_to_switch_off": [f"{one.field} of {one.release}" for one in self.fields_to_switch_off],
        }


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
        ListingVisionError: a release of `control` or `shares` has no suggestions, or the shares are not all of them.
    """
    counts = tables.count_listings()
    for option, names in (("--control", [control] if control else []), ("--share", shares or {})):
        for name in names:
            if name not in counts:
                raise ListingVisionError(
                    f"{option} {name}: this release has no suggestions; those that have are {', '.join(counts)}"
                )
    shares = _complete_shares(shares, counts) if shares else None
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
    return ExperimentReport(
        fields=fields,
        comparisons=comparisons,
        shadow_agreement=tables.measure_shadow_agreement(),
        shadows=shadows,
        listings_by_release=counts,
        sample_ratio_p_value=compute_sample_ratio_p_value(counts, shares) if shares else None,
        num_outcomes=tables.num_outcomes,
        num_unjoined=tables.count_unjoined(),
        num_left_out=tables.num_left_out,
        drift=[
            *(_measure_drift_from_first_days(tables, days) if drift_days else ()),
            *_measure_drift_from_bundles(tables, counts, calibrations, days),
        ],
        drift_days=drift_days,
    )


def _complete_shares(shares: Mapping[str, float], counts: Mapping[str, int]) -> Mapping[str, float]:
    """Give the one release without a share the rest."""
    missing, rest = [name for name in counts if name not in shares], 1 - sum(shares.values())
    if len(counts) == 1 or len(missing) > 1 or (missing and rest <= 0):
        raise ListingVisionError(
            f"--share {', '.join(f'{name}={share:g}' for name, share in shares.items())}: the releases are "
            f"{', '.join(counts)}; give one for all but one of them, which gets the rest; a single release needs none"
        )
    return {**shares, **dict.fromkeys(missing, rest)}


def _measure_drift_from_first_days(tables: OutcomeTables, days: int) -> Iterator[Drift]:
    for name, sql in DRIFT_COLUMNS.items():
        first = build_histogram(tables.load_statistic(sql, days=days, from_end=False))
        yield _measure_drift(name, None, first, tables.load_statistic(sql, days=days, from_end=True))


def _measure_drift_from_bundles(
    tables: OutcomeTables, releases: Iterable[str], calibrations: Mapping[str, Calibration], days: int
) -> Iterator[Drift]:
    for release in releases:
        expected = calibrations[release].expected if release in calibrations else {}
        for name, histogram in expected.items():
            if name in DRIFT_COLUMNS:
                recent = tables.load_statistic(DRIFT_COLUMNS[name], days=days, from_end=True, release=release)
                yield _measure_drift(name, release, histogram, recent)


def _measure_drift(statistic: str, release: str | None, reference: Histogram, recent: npt.NDArray[np.float64]) -> Drift:
    return Drift(
        statistic=statistic,
        release=release,
        stability=compute_population_stability(reference, recent),
        chance=compute_chance_level(reference, len(recent)),
    )


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
        accepted_interval=_bound_share(accepted),
        num_hidden=int(hidden.sum()),
        accepted_unseen=float(accepted[hidden].mean()) if hidden.any() else None,
        accepted_unseen_interval=_bound_share(accepted[hidden]) if hidden.any() else None,
        num_recent=len(recent),
        recent_precision=float(recent.mean()) if len(recent) else None,
        guaranteed=guaranteed,
        meets_guarantee=is_guarantee_plausible(int(recent.sum()), len(recent), precision=guaranteed)
        if guaranteed
        else None,
    )


def _bound_share(accepted: npt.NDArray[np.bool_]) -> Interval:
    return Interval(*compute_wilson_interval(int(accepted.sum()), len(accepted)))


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
