"""Tests and intervals for two models that were evaluated on the same listings. Pure arithmetic on counts.

Throughout, a listing is *lost* where A is right and B is wrong, and *won* where it is the other way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

__all__ = [
    "NUM_RESAMPLES",
    "Difference",
    "adjust_holm",
    "bootstrap_difference",
    "bound_small_sample",
    "compute_mcnemar_p",
    "count_differences",
]

NUM_RESAMPLES = 10_000
_Z_95 = 1.959964
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How B differs from A on the listings that both were evaluated on."""

    num_listings: int
    num_right_a: int
    num_right_b: int
    num_lost: int
    """A right, B wrong."""
    num_won: int
    """A wrong, B right."""

    @property
    def accuracy_a(self) -> float:
        """NaN for no listings."""
        return self.num_right_a / self.num_listings if self.num_listings else float("nan")

    @property
    def accuracy_b(self) -> float:
        return self.num_right_b / self.num_listings if self.num_listings else float("nan")

    @property
    def change(self) -> float:
        """Accuracy of B minus that of A; NaN for no listings."""
        return (self.num_won - self.num_lost) / self.num_listings if self.num_listings else float("nan")

    @property
    def p_value(self) -> float:
        return compute_mcnemar_p(num_lost=self.num_lost, num_won=self.num_won)


def count_differences(right_a: Bools, right_b: Bools) -> Difference:
    """Count on the same listings, (N,), where A and where B is right."""
    return Difference(
        num_listings=len(right_a),
        num_right_a=int(right_a.sum()),
        num_right_b=int(right_b.sum()),
        num_lost=int((right_a & ~right_b).sum()),
        num_won=int((~right_a & right_b).sum()),
    )


def compute_mcnemar_p(*, num_lost: int, num_won: int) -> float:
    """Two-sided exact p-value that lost and won are equally likely (McNemar 1947, with the binomial distribution).

    1 where the models are right and wrong on the same listings.
    """
    num_discordant = num_lost + num_won
    return float(binomtest(num_lost, num_discordant, 0.5).pvalue) if num_discordant else 1.0


def bootstrap_difference(counts: Difference, *, seed: int) -> tuple[float, float]:
    """95 % percentile interval of `change` over resampled listings, both models on the same; NaN for no listings.

    A resample of listings matters only by how many are lost, won and neither, which are multinomial counts: drawing
    those is the same bootstrap at a cost that does not grow with the listings.
    """
    num = counts.num_listings
    if num == 0:
        return float("nan"), float("nan")
    shares = np.array([counts.num_lost, counts.num_won, num - counts.num_lost - counts.num_won]) / num
    drawn = np.random.default_rng(seed).multinomial(num, shares, size=NUM_RESAMPLES)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / num, [0.025, 0.975])
    return float(low), float(high)


def bound_small_sample(counts: Difference) -> tuple[float, float]:
    """95 % interval of `change` that is valid for a handful of listings (Bonett & Price 2012, adjusted Wald).

    The bootstrap interval of five equal listings has a width of 0.
    """
    num = counts.num_listings + 2
    lost, won = (counts.num_lost + 1) / num, (counts.num_won + 1) / num
    half = _Z_95 * float(np.sqrt(max(lost + won - (won - lost) ** 2, 0.0) / num))
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)


def adjust_holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted for their number, in the given order (Holm 1979): below 0.05 holds for all at once."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return tuple(float(value) for value in adjusted)
