"""Which listings to label next, and how many: those that tell most about a threshold that is likely to hold.

A test is about the listings that its threshold fills. Drawn among these alone, 1 / coverage times fewer labels are
needed, and the labels are evidence for that threshold alone: a looser one fills others too.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from training.calibration.certify import Guarantee
from training.calibration.field_rows import FieldRows
from training.calibration.label_plan import PlannedField
from training.calibration.threshold_tests import FieldTests, count_required
from vision.errors import ManifestError
from vision.taxonomy import Taxonomy

__all__ = [
    "POWER",
    "FieldForecast",
    "ThresholdForecast",
    "choose_thresholds",
    "count_required_with_power",
    "draw_listings",
    "forecast_fields",
    "forecast_thresholds",
]

POWER = 0.8
"""Probability that a test passes, if the share of errors is the present one."""
_MAX_LABELS = 10_000
"""More than anyone labels for one test."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ThresholdForecast:
    """What labelled listings say about one threshold."""

    threshold: float
    filled: Bools
    """(N,) whether the threshold fills each of the labelled listings."""
    num_known: int
    """Filled ones with a label for the field."""
    num_errors: int
    num_needed: int | None
    """New labels with which a test passes with probability `POWER`. None: no number up to 10,000."""


@dataclass(frozen=True, kw_only=True)
class FieldForecast:
    """What labelled listings say about the thresholds of one field."""

    name: str
    alpha: float
    num_errorless: int
    """New labels that are enough if none of them is wrong."""
    thresholds: tuple[ThresholdForecast, ...]
    """Strictest first; empty where nothing can be filled."""


def count_required_with_power(error_share: float, alpha: float, delta: float) -> int | None:
    """Return the least number of filled listings with which a test passes with probability `POWER`.

    Args:
        error_share: of the filled listings.
        alpha: highest share that the test is to exclude.
        delta: its level.

    Returns:
        None where no number up to 10,000 does.
    """
    # Between the least numbers of listings with which 0, 1, 2 … errors pass, the probability to pass only falls.
    least = _count_required_by_errors(alpha, delta)
    enough = np.flatnonzero(binom.cdf(np.arange(len(least)), least, error_share) >= POWER)
    return int(least[enough[0]]) if enough.size and error_share < alpha else None


@functools.cache
def _count_required_by_errors(alpha: float, delta: float) -> npt.NDArray[np.int64]:
    """(K,) least number of filled listings with which a test passes with 0 … K - 1 errors."""
    counts = np.arange(1, _MAX_LABELS + 1)
    num_allowed = np.asarray(binom.ppf(delta, counts, alpha), dtype=np.int64) - 1  # -1: none passes
    return counts[np.searchsorted(num_allowed, np.arange(num_allowed[-1] + 1))]


def forecast_fields(
    rows: FieldRows, taxonomy: Taxonomy, guarantee: Guarantee, *, num_unlabelled: int
) -> list[FieldForecast]:
    """Return the forecast of each field that has something to decide.

    Thresholds are scores of the labelled listings, so that the unlabelled ones that are drawn later had no part in
    their choice.

    Args:
        rows: the labelled listings.
        taxonomy: that of the model.
        guarantee: what is to be certified.
        num_unlabelled: listings that may be drawn.
    """
    alphas, forecasts = guarantee.list_alphas(taxonomy), []
    for name, alpha in alphas.items():
        delta = guarantee.delta / len(alphas)
        num_errorless = count_required(alpha, delta)
        grid = rows.build_grid(name, rows.find_known(name), num_listings=num_unlabelled, required=num_errorless)
        thresholds = forecast_thresholds(rows.build_tests(name, alpha, grid), rows.compute_scores(name), delta)
        forecasts.append(FieldForecast(name=name, alpha=alpha, num_errorless=num_errorless, thresholds=thresholds))
    return forecasts


def forecast_thresholds(
    tests: FieldTests, scores: npt.NDArray[np.floating], delta: float
) -> tuple[ThresholdForecast, ...]:
    """Return the forecast of each threshold of a grid.

    Args:
        tests: of the field, on labelled listings.
        scores: (N,) of the field, for all of them.
        delta: level of the test to come.
    """
    return tuple(
        ThresholdForecast(
            threshold=test.threshold,
            filled=scores >= test.threshold,
            num_known=test.num_filled,
            num_errors=test.num_errors,
            # Half an error more than seen: none among few is no proof of none.
            num_needed=count_required_with_power((test.num_errors + 0.5) / (test.num_filled + 1), tests.alpha, delta),
        )
        for test in tests.tests
    )


def choose_thresholds(forecasts: Sequence[FieldForecast], *, num_labels: int) -> dict[str, ThresholdForecast]:
    """Return the loosest threshold of each field whose needs together take about `num_labels` labels.

    A field is left out where no threshold can be tested with so few; where the fields together need too many, the one
    that needs most.
    """
    names = [one.name for one in forecasts if _choose_loosest(one, num_labels)]
    while names:
        kept = [one for one in forecasts if one.name in names]
        needs = {step.num_needed for one in kept for step in one.thresholds if step.num_needed}
        for limit in sorted((need for need in needs if need <= num_labels), reverse=True):
            chosen = {one.name: step for one in kept if (step := _choose_loosest(one, limit))}
            if len(chosen) == len(kept) and _estimate_num_labels(chosen) <= num_labels:
                return chosen
        names.remove(max(kept, key=_find_least_need).name)
    return {}


def draw_listings(
    chosen: Mapping[str, ThresholdForecast], rows: FieldRows, listing_ids: Sequence[str], *, seed: int
) -> tuple[PlannedField, ...]:
    """Draw as many listings as each field needs, uniformly among those that its threshold fills.

    All fields go through the listings in the same random order, so that they share as many as possible.

    Args:
        chosen: threshold by field.
        rows: the unlabelled listings.
        listing_ids: their ids.
        seed: of the order.

    Raises:
        ManifestError: a threshold fills fewer listings than are needed.
    """
    order = np.random.default_rng(seed).permutation(len(listing_ids))
    fields = []
    for name, step in chosen.items():
        num_needed = step.num_needed or 0
        fillable = order[rows.compute_scores(name)[order] >= step.threshold]
        if fillable.size < num_needed:
            raise ManifestError(
                f"{name}: a confidence of {step.threshold:.3f} fills {fillable.size} of {len(order)} unlabelled "
                f"listings, and {num_needed} are to be labelled; give more unlabelled listings, or fewer --labels"
            )
        fields.append(
            PlannedField(
                name=name,
                threshold=step.threshold,
                coverage=fillable.size / len(order),
                listing_ids=tuple(listing_ids[row] for row in fillable[:num_needed]),
            )
        )
    return tuple(fields)


def _choose_loosest(forecast: FieldForecast, limit: int) -> ThresholdForecast | None:
    fitting = [step for step in forecast.thresholds if step.num_needed is not None and step.num_needed <= limit]
    return fitting[-1] if fitting else None


def _find_least_need(forecast: FieldForecast) -> int:
    return min(step.num_needed for step in forecast.thresholds if step.num_needed is not None)


def _estimate_num_labels(chosen: Mapping[str, ThresholdForecast]) -> float:
    """About how many listings are labelled, going through all in turn until each field has as many as it needs."""
    # By how many listings it takes to have enough.
    ordered = sorted(((step.num_needed or 0) / step.filled.mean(), name) for name, step in chosen.items())
    ends = [0.0, *(end for end, _ in ordered)]
    num_labels = 0.0
    for position, (begin, end) in enumerate(itertools.pairwise(ends)):
        wanted = np.logical_or.reduce([chosen[name].filled for _, name in ordered[position:]])
        num_labels += (end - begin) * float(wanted.mean())
    return num_labels
