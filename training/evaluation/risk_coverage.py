"""Risk-coverage curves: the precision of prefilled fields against their coverage."""

from typing import Any

import numpy as np
import numpy.typing as npt

from training.statistics.estimates import estimate_share, select_clusters
from vision.calibration import FieldGuarantee

__all__ = ["NUM_POINTS", "compute_operating_point", "compute_risk_coverage"]

NUM_POINTS = 50
"""Points of a curve, at about equal steps of coverage."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def compute_risk_coverage(
    scores: Floats,
    right: Bools,
    *,
    known: Bools,
    filled: Bools,
    guarantee: FieldGuarantee | None,
    clusters: Ints | None,
) -> dict[str, Any]:
    """The curve over all thresholds (Geifman & El-Yaniv 2017), and the operating point of the certified one.

    Args:
        scores: (N,) what a threshold is compared with, -inf where nothing is ever prefilled.
        right: (N,) whether the prediction is right.
        known: (N,) whether the label decides that.
        filled: (N,) what the certified threshold prefills.

    Returns:
        `num`, `points` (by falling threshold, at most `NUM_POINTS`), `certified` (a point with `alpha`, or None) and
        `uncertified_reason`.
    """
    certified = None
    if guarantee is not None and guarantee.threshold is not None:
        point = compute_operating_point(filled, right, known=known, threshold=guarantee.threshold, clusters=clusters)
        certified = {"alpha": guarantee.alpha, **point}
    reason = "this model carries no guarantee for this field" if guarantee is None else guarantee.uncertified_reason
    return {
        "num": len(scores),
        "points": [
            compute_operating_point(
                scores >= threshold, right, known=known, threshold=float(threshold), clusters=clusters
            )
            for threshold in _choose_thresholds(scores)
        ],
        "certified": certified,
        "uncertified_reason": reason,
    }


def compute_operating_point(
    filled: Bools, right: Bools, *, known: Bools, threshold: float | None, clusters: Ints | None
) -> dict[str, Any]:
    """Coverage and precision: the share of all rows that is prefilled, and that is right of these where known."""
    judged = filled & known
    return {
        "threshold": threshold,
        "num_filled": int(filled.sum()),
        **estimate_share("coverage", filled, clusters),
        **estimate_share("precision", right[judged], select_clusters(clusters, judged)),
    }


def _choose_thresholds(scores: Floats) -> Floats:
    """Occurring scores in falling order: each is the first that covers the next fiftieth of the rows."""
    values, counts = np.unique(-scores[np.isfinite(scores)], return_counts=True)
    if not len(values):
        return np.zeros(0)
    wanted = np.arange(1, NUM_POINTS + 1) * len(scores) / NUM_POINTS
    chosen = np.minimum(np.searchsorted(np.cumsum(counts), wanted), len(values) - 1)
    thresholds: Floats = -values[np.unique(chosen)]
    return thresholds
