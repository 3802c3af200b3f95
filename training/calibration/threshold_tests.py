"""The tests of one field: a grid of thresholds from tune listings, and what each fills of the calibration listings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

__all__ = ["FieldTests", "ThresholdTest", "build_grid", "count_required"]

_MIN_FIRST_COVERAGE = 0.3
"""Least coverage of the strictest threshold tried: with a stricter one the first test fails for want of listings."""


@dataclass(frozen=True)
class ThresholdTest:
    """What one threshold fills of the calibration listings."""

    threshold: float
    num_filled: int
    num_errors: int

    def passes(self, alpha: float, delta: float) -> bool:
        """Return whether errors are so few that a share above `alpha` has a probability of at most `delta`."""
        return bool(binom.cdf(self.num_errors, self.num_filled, alpha) <= delta)


@dataclass(frozen=True)
class FieldTests:
    """The tests of one field, strictest threshold first."""

    name: str
    alpha: float
    grid: tuple[float, ...]
    """Strictest first; fixed before any label of the calibration listings was read."""
    count: Callable[[float], tuple[int, int]]
    """Numbers of filled calibration listings and of errors among them, at a threshold."""
    num_listings: int
    """Calibration listings with a known truth."""
    num_unlabelled: int = 0

    @classmethod
    def from_scores(
        cls,
        name: str,
        *,
        alpha: float,
        grid: Sequence[float],
        scores: npt.NDArray[np.floating],
        right: npt.NDArray[np.bool_],
        num_unlabelled: int = 0,
    ) -> "FieldTests":
        """Tests of a field that is filled where its score reaches the threshold.

        Args:
            scores: (N,) scores of the calibration listings, -inf where nothing can be filled.
            right: (N,) whether their prediction is right.
        """

        def count(threshold: float) -> tuple[int, int]:
            filled = scores >= threshold
            return int(filled.sum()), int((~right[filled]).sum())

        return cls(name, alpha, tuple(grid), count, len(scores), num_unlabelled)

    @cached_property
    def tests(self) -> tuple[ThresholdTest, ...]:
        """One test a threshold of the grid."""
        return tuple(ThresholdTest(threshold, *self.count(threshold)) for threshold in self.grid)

    def explain_failure(self, delta: float) -> str:
        """Say why not even the strictest threshold of the grid passes its test."""
        num, required, precision = (
            self.num_listings,
            count_required(self.alpha, delta),
            f"{100 * (1 - self.alpha):g}%",
        )
        if not self.grid:
            return (
                "no tune listing has a known label and a prediction that can be prefilled: there is no threshold to "
                "test"
            )
        failed = self.tests[0]
        if failed.num_filled == 0 and num >= required:
            return f"the strictest threshold tried, {self.grid[0]:.3f}, fills none of {num} calibration listings"
        if num < required:
            return (
                f"{num} calibration listings are too few: with no error at all, {required} filled ones are needed for "
                f"{precision} precision"
            )
        rate = failed.num_errors / failed.num_filled if failed.num_filled else 1.0
        advice = "no number of listings would"
        if rate < self.alpha:
            num_enough = count_required_at(rate, self.alpha, delta, at_least=failed.num_filled)
            advice = f"about {math.ceil(num_enough * num / failed.num_filled)} listings would"
        return (
            f"the strictest threshold tried fills {failed.num_filled} of {num} calibration listings, "
            f"{failed.num_errors} of them wrongly, which does not prove {precision}; at this share of errors {advice}"
        )


def count_required(alpha: float, delta: float) -> int:
    """Filled listings without any error that a test needs to pass."""
    return math.ceil(math.log(delta) / math.log(1 - alpha))


def count_required_at(error_share: float, alpha: float, delta: float, *, at_least: int = 1) -> int:
    """About how many filled listings a test needs to pass where a share below `alpha` of them is wrong."""
    num = at_least
    while not ThresholdTest(math.nan, num, math.ceil(error_share * num)).passes(alpha, delta):
        num = math.ceil(num * 1.1) + 1
    return num


def build_grid(
    tune_scores: npt.NDArray[np.floating], *, num_listings: int, required: int, thresholds_above: Sequence[float] = ()
) -> tuple[float, ...]:
    """Quantiles of the tune scores, strictest first; the first covers enough listings for a test that can pass.

    Args:
        tune_scores: (M,), -inf where nothing can be filled.
        num_listings: calibration listings to be tested on.
        required: filled ones without error that a test needs.
        thresholds_above: the grid of the level above, so that its threshold can be this level's too.
    """
    strictest_first = np.sort(tune_scores[np.isfinite(tune_scores)])[::-1]
    if strictest_first.size == 0 or num_listings == 0:
        return ()
    coverages = np.linspace(_choose_first_coverage(num_listings, required), 1.0, 12 if num_listings < 2000 else 40)
    last = np.minimum(np.ceil(coverages * len(tune_scores)).astype(int), strictest_first.size) - 1
    own = set(strictest_first[np.maximum(last, 0)].tolist())
    return tuple(sorted(own | {above for above in thresholds_above if above <= max(own)}, reverse=True))


def _choose_first_coverage(num_listings: int, required: int) -> float:
    # Half as many again as an errorless test needs: the calibration listings fill a few more or fewer than the tune
    # listings did, and one error must not end the sequence at its first step. With few listings, a thin margin is
    # better than a grid of one threshold.
    return min(1.0, max(_MIN_FIRST_COVERAGE, min(1.5 * required / num_listings, 0.85), required / num_listings))
