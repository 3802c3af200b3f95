"""What one threshold for all depths fills of listings, and how often the deepest filled category is wrong."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.calibration.threshold_tests import FieldTests, build_grid
from training.evaluation.ground_truth import (
    GroundTruth,
    StepResults,
    evaluate_deepest_filled,
    evaluate_paths,
    find_labelled,
)
from vision.calibration import PATH_FIELD, DepthEvidence
from vision.prediction.listings import Paths, compute_path_scores
from vision.taxonomy import Taxonomy

__all__ = ["PathRows"]

_NUM_LOOSER = 40
"""Thresholds after the strictest. A finer grid costs no error budget."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PathRows:
    """Suggested paths of N listings, over the K depths where the taxonomy has a choice."""

    scores: npt.NDArray[np.floating]
    """(N, K) never rising from left to right, -inf where a step is never filled."""
    known: Bools
    """(N, K) whether the label shows if the step is right."""
    right: Bools
    """(N, K) false where not known: a truth that is an inner node, and a step below it."""
    depths: tuple[int, ...]
    """K numbers, 1 for the roots."""
    num_unlabelled: int
    """Listings left out, by default because their category is not known."""

    @classmethod
    def from_paths(
        cls, paths: Paths, truth: GroundTruth, taxonomy: Taxonomy, chosen: Bools | None = None
    ) -> "PathRows":
        """Rows of the listings that `chosen`, (M,), marks; None: of those with a label."""
        if chosen is None:
            chosen = find_labelled(truth)
        steps, columns = evaluate_paths(paths, truth), np.ix_(chosen, taxonomy.decides_at_depth)
        return cls(
            compute_path_scores(paths, taxonomy)[columns],
            steps.known[columns],
            steps.right[columns],
            tuple((np.flatnonzero(taxonomy.decides_at_depth) + 1).tolist()),
            int((~chosen).sum()),
        )

    def build_tests(self, alpha: float, grid: tuple[float, ...]) -> FieldTests:
        """Tests of P(deepest filled category wrong | anything filled) <= alpha.

        A truth that is an inner node with a fill below it counts as wrong.
        """

        def count(threshold: float) -> tuple[int, int]:
            filled, wrong = self.find_errors(threshold)
            return int(filled.sum()), int(wrong.sum())

        return FieldTests(PATH_FIELD, alpha, grid, count, len(self.scores), self.num_unlabelled)

    def build_grid(self, *, num_listings: int, required: int) -> tuple[float, ...]:
        """Return the thresholds to test, strictest first, with these listings as the tune listings.

        The first covers enough listings at the first depth for a test that can pass; the others are quantiles of the
        scores of all depths together, because a looser threshold fills deeper as well as more. With quantiles of the
        first depth alone, two thirds of the leaves of Grocery Store were filled instead of four fifths.

        Args:
            num_listings: calibration listings to be tested on.
            required: filled ones without error that a test needs.
        """
        first_depth = build_grid(self.scores[:, 0], num_listings=num_listings, required=required)
        if not first_depth:
            return ()
        looser = np.sort(self.scores[np.isfinite(self.scores) & (self.scores < first_depth[0])])[::-1]
        chosen = looser[np.linspace(0, looser.size - 1, _NUM_LOOSER).astype(int)] if looser.size else looser
        return tuple(sorted({first_depth[0], *chosen.tolist()}, reverse=True))

    def count_depths(self, threshold: float) -> tuple[DepthEvidence, ...]:
        """Return the evidence at each depth that has a choice, from the roots down."""
        filled = self.scores >= threshold
        return tuple(
            DepthEvidence(
                depth=depth,
                num_listings=int(known.sum()),
                num_filled=int(fill.sum()),
                num_errors=int((fill & ~right).sum()),
            )
            for depth, fill, known, right in zip(
                self.depths, (filled & self.known).T, self.known.T, self.right.T, strict=True
            )
        )

    def count_below_truth(self, threshold: float) -> int:
        """Return how many errors are a filled category below a truth that is an inner node."""
        return int(self.find_unknown(threshold).sum())

    def find_unknown(self, threshold: float) -> Bools:
        """Return (N,) whether an error is not known to be one: the deepest filled category may be right."""
        filled = self.scores >= threshold
        deepest = filled & ~np.column_stack([filled[:, 1:], np.zeros(len(filled), dtype=bool)])
        unknown: Bools = (deepest & ~self.known).any(axis=1)
        return unknown

    def find_errors(self, threshold: float) -> tuple[Bools, Bools]:
        """Return (N,) whether anything is filled, and whether the deepest filled category is wrong."""
        filled = self.scores >= threshold
        right = evaluate_deepest_filled(filled, StepResults(self.known, self.right))
        return filled[:, 0], filled[:, 0] & ~right
