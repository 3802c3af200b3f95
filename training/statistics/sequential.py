"""Statistics of outcomes: acceptance, comparisons that may be looked at daily, sample ratios, promises, drift."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from vision.calibration import Histogram

__all__ = [
    "ALPHA",
    "BRAND_PROBABILITY",
    "BYTES_PER_PHOTO",
    "EXPECTED",
    "LEAF_PROBABILITY",
    "PHOTOS_PER_LISTING",
    "Interval",
    "confidence_sequence",
    "difference_sequence",
    "paired_sequence",
    "population_stability",
    "promise_kept",
    "sample_ratio_p_value",
    "spread_of",
    "wilson",
]

ALPHA = 0.05
SAMPLE_RATIO_ALPHA = 0.0005
"""Fabijan et al., KDD 2019, section 4: a check that is made all the time must not cry wolf."""
PSI_MODERATE, PSI_LARGE = 0.1, 0.25
"""The customary marks (Siddiqi, Credit Risk Scorecards, 2006)."""
_LARGEST_BET = 0.5

LEAF_PROBABILITY, BRAND_PROBABILITY = "leaf_probability", "brand_probability"
PHOTOS_PER_LISTING, BYTES_PER_PHOTO = "photos_per_listing", "bytes_per_photo"
EXPECTED = (LEAF_PROBABILITY, BRAND_PROBABILITY, PHOTOS_PER_LISTING, BYTES_PER_PHOTO)
"""What a bundle says of the listings that it was calibrated on: a value a listing, bytes as the mean of its photos."""

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    low: float
    high: float


def wilson(num_right: int, num: int, *, alpha: float = ALPHA) -> Interval:
    """For a share at one fixed look (Wilson 1927)."""
    found = stats.binomtest(num_right, num).proportion_ci(1 - alpha, method="wilson")
    return Interval(float(found.low), float(found.high))


def confidence_sequence(values: npt.ArrayLike, *, alpha: float = ALPHA) -> tuple[Floats, Floats]:
    """Bounds for the mean after each value; all of them hold at once with probability 1 - alpha.

    The predictable plug-in empirical Bernstein sequence of Waudby-Smith & Ramdas (JRSS B 2024), theorem 2, with the
    intersection of all bounds so far.

    Args:
        values: (N,) in [0, 1], in the order of their arrival.
        alpha: that they fail at any time.

    Returns:
        (N,) lower and upper bounds.
    """
    x = np.asarray(values, np.float64)
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    mean_before = np.concatenate([[0.5], mean[:-1]])
    variance_before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (variance_before * t * np.log1p(t))), _LARGEST_BET)
    psi = (-np.log1p(-bets) - bets) / 4
    total = np.cumsum(bets)
    centre = np.cumsum(bets * x) / total
    radius = (math.log(2 / alpha) + np.cumsum(4 * (x - mean_before) ** 2 * psi)) / total
    low = np.maximum.accumulate(np.maximum(centre - radius, 0.0))
    high = np.minimum.accumulate(np.minimum(centre + radius, 1.0))
    return low, high


def difference_sequence(a: npt.ArrayLike, b: npt.ArrayLike, *, alpha: float = ALPHA) -> Interval:
    """For mean(b) - mean(a) as of now; may be asked after every value, and stopped at any time (each half of alpha)."""
    (low_a, high_a), (low_b, high_b) = (
        (float(low[-1]), float(high[-1])) if len(low) else (0.0, 1.0)
        for low, high in (confidence_sequence(values, alpha=alpha / 2) for values in (a, b))
    )
    return Interval(low_b - high_a, high_b - low_a)


def paired_sequence(a: npt.ArrayLike, b: npt.ArrayLike, *, alpha: float = ALPHA) -> Interval:
    """For mean(b - a) of pairs as of now, each in [0, 1]; may be asked after every pair."""
    halved = (np.asarray(b, np.float64) - np.asarray(a, np.float64) + 1) / 2
    if not len(halved):
        return Interval(-1.0, 1.0)
    low, high = confidence_sequence(halved, alpha=alpha)
    return Interval(2 * float(low[-1]) - 1, 2 * float(high[-1]) - 1)


def sample_ratio_p_value(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Of the counts, were listings assigned by these shares (chi-square); below `SAMPLE_RATIO_ALPHA` they were not."""
    names = [name for name in shares if shares[name] > 0]
    total = sum(counts.get(name, 0) for name in names)
    if total == 0:
        return 1.0
    weight = sum(shares[name] for name in names)
    expected = [total * shares[name] / weight for name in names]
    return float(stats.chisquare([counts.get(name, 0) for name in names], expected).pvalue)


def promise_kept(num_right: int, num: int, *, precision: float, alpha: float = ALPHA) -> bool | None:
    """Whether a promised precision may still be believed of filled fields; None: there are none.

    False only where the largest precision that the outcomes leave possible (Clopper & Pearson 1934) is below it.
    """
    if num == 0:
        return None
    return bool(stats.beta.ppf(1 - alpha, num_right + 1, max(num - num_right, 1e-12)) >= precision)


def spread_of(values: npt.ArrayLike, *, num_bins: int = 10) -> Histogram:
    """By the values' own quantiles; fewer bins where these fall together."""
    found = np.asarray(values, np.float64)
    edges = np.unique(np.quantile(found, np.linspace(0, 1, num_bins + 1)[1:-1])) if len(found) else np.empty(0)
    counts = _counts(edges, found)
    shares = counts / len(found) if len(found) else counts.astype(float)
    return Histogram(edges=tuple(edges.tolist()), shares=tuple(shares.tolist()), num_values=len(found))


def population_stability(reference: Histogram, recent: Floats) -> float:
    """Population stability index over the reference's bins; a bin that is empty counts as half a value."""
    if not reference.num_values or not len(recent):
        return 0.0
    before = np.maximum(reference.shares, 0.5 / reference.num_values)
    now = np.maximum(_counts(np.asarray(reference.edges), recent), 0.5) / len(recent)
    return float(((now - before) * np.log(now / before)).sum())


def _counts(edges: Floats, values: Floats) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return counts
