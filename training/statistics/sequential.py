"""Sequential statistics of outcomes: bounds that hold however often they are looked at, sample ratios, guarantees."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from training.statistics.estimates import compute_clopper_pearson_upper

__all__ = [
    "ALPHA",
    "SAMPLE_RATIO_ALPHA",
    "Interval",
    "bound_difference",
    "bound_mean",
    "bound_paired_difference",
    "compute_sample_ratio_p_value",
    "is_guarantee_plausible",
]

ALPHA = 0.05
SAMPLE_RATIO_ALPHA = 0.0005
"""Low, as a check that is made all the time must rarely be a false alarm (Fabijan et al., KDD 2019, section 4)."""
_MAX_BET = 0.5

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    low: float
    high: float


def bound_mean(values: npt.ArrayLike, *, alpha: float = ALPHA) -> tuple[Floats, Floats]:
    """Bounds for the mean after each value; all of them hold at once with probability 1 - alpha.

    The predictable plug-in empirical Bernstein sequence of Waudby-Smith & Ramdas (JRSS B 2024), theorem 2, with the
    intersection of all bounds so far.

    Args:
        values: (N,) in [0, 1], in the order of their arrival.
        alpha: probability that they fail at any time.

    Returns:
        (N,) lower and upper bounds.
    """
    x = np.asarray(values, np.float64)
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    mean_before = np.concatenate([[0.5], mean[:-1]])
    variance_before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (variance_before * t * np.log1p(t))), _MAX_BET)
    psi = (-np.log1p(-bets) - bets) / 4
    total = np.cumsum(bets)
    centre = np.cumsum(bets * x) / total
    radius = (math.log(2 / alpha) + np.cumsum(4 * (x - mean_before) ** 2 * psi)) / total
    low = np.maximum.accumulate(np.maximum(centre - radius, 0.0))
    high = np.minimum.accumulate(np.minimum(centre + radius, 1.0))
    return low, high


def bound_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, alpha: float = ALPHA) -> Interval:
    """Bounds for mean(b) - mean(a), valid after every value; each of the two sequences takes half of `alpha`."""
    (low_a, high_a), (low_b, high_b) = (
        (float(low[-1]), float(high[-1])) if len(low) else (0.0, 1.0)
        for low, high in (bound_mean(values, alpha=alpha / 2) for values in (a, b))
    )
    return Interval(low_b - high_a, high_b - low_a)


def bound_paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, alpha: float = ALPHA) -> Interval:
    """Bounds for mean(b - a) of pairs, each value in [0, 1], valid after every pair."""
    halved = (np.asarray(b, np.float64) - np.asarray(a, np.float64) + 1) / 2
    if not len(halved):
        return Interval(-1.0, 1.0)
    low, high = bound_mean(halved, alpha=alpha)
    return Interval(2 * float(low[-1]) - 1, 2 * float(high[-1]) - 1)


def compute_sample_ratio_p_value(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """The chi-square p-value of counts under the assigned shares; below `SAMPLE_RATIO_ALPHA` these are not kept."""
    names = [name for name in shares if shares[name] > 0]
    total = sum(counts.get(name, 0) for name in names)
    if total == 0:
        return 1.0
    weight = sum(shares[name] for name in names)
    expected = [total * shares[name] / weight for name in names]
    return float(stats.chisquare([counts.get(name, 0) for name in names], expected).pvalue)


def is_guarantee_plausible(num_right: int, num: int, *, precision: float, alpha: float = ALPHA) -> bool | None:
    """Whether outcomes of prefilled fields are compatible with the guaranteed precision; None without outcomes.

    False only where the upper bound of the precision that they leave possible (Clopper & Pearson 1934) is below it.
    """
    return compute_clopper_pearson_upper(num_right, num, alpha=alpha) >= precision if num else None
