"""Figures with their 95 % intervals, under the names that `metrics.json` gives them: `top1` beside `top1_interval`.

Shares of rows have Wilson's interval, all else a bootstrap. `clusters` is (N,) the listing of each row where rows are
photos, and None where rows are listings.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from vision.metrics import (
    NUM_CALIBRATION_BINS,
    assign_calibration_bins,
    compute_bootstrap_interval,
    compute_share_interval,
    resample_sums,
)

__all__ = [
    "bin_reliability",
    "compute_clopper_pearson_interval",
    "compute_clopper_pearson_upper",
    "estimate_calibration_error",
    "estimate_hierarchical",
    "estimate_macro_accuracy",
    "estimate_share",
    "select_clusters",
]

Figures = dict[str, Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def select_clusters(clusters: Ints | None, rows: Bools) -> Ints | None:
    """The clusters of the rows that are marked."""
    return None if clusters is None else clusters[rows]


def estimate_share(name: str, hits: Bools, clusters: Ints | None) -> Figures:
    """Estimate the share of the rows that are hits; NaN, and an interval from 0 to 1, for no rows."""
    return {
        name: float(hits.mean()) if hits.size else float("nan"),
        f"{name}_interval": compute_share_interval(hits, clusters),
    }


def estimate_macro_accuracy(name: str, predicted: Ints, labels: Ints, clusters: Ints | None) -> Figures:
    """Estimate the mean, over the labels that occur, of the share of their rows that is predicted right.

    Args:
        labels: (N,), -1 where not known; such rows do not count.
    """
    known = labels >= 0
    classes, cells = np.unique(labels[known], return_inverse=True)
    right = predicted[known] == labels[known]
    sums = resample_sums(
        cells,
        np.stack([np.ones(len(right)), right], axis=1),
        num_cells=len(classes),
        clusters=select_clusters(clusters, known),
    )
    num_rows, num_right = sums[..., 0], sums[..., 1]
    shares = np.divide(num_right, num_rows, out=np.zeros_like(num_right), where=num_rows > 0)
    return _estimate_ratio(
        name, shares.sum(axis=1), (num_rows > 0).sum(axis=1), right, select_clusters(clusters, known)
    )


def estimate_calibration_error(name: str, confidences: Floats, right: Bools, clusters: Ints | None) -> Figures:
    """Estimate the mean gap between confidence and accuracy over 15 bins (Guo et al. 2017)."""
    values = np.stack([confidences, right, np.ones(len(right))], axis=1)
    sums = resample_sums(
        assign_calibration_bins(confidences), values, num_cells=NUM_CALIBRATION_BINS, clusters=clusters
    )
    gaps = np.abs(sums[..., 0] - sums[..., 1]).sum(axis=1)
    return _estimate_ratio(name, gaps, sums[..., 2].sum(axis=1), right, clusters)


def estimate_hierarchical(*, labelled: Bools, predicted: Bools, right: Bools, clusters: Ints | None) -> Figures:
    """Estimate precision, recall and F1 of sets of ancestors (Kiritchenko, Matwin, Nock & Famili 2006) over all rows.

    The set of a category is itself and all above it: a Fuji taken for a Gala shares two of three with the truth.

    Args:
        labelled: (N, D) depths that the label has; `predicted`: those that are evaluated; `right`: of these.
    """
    rows = np.logical_or.reduce(labelled, axis=1)
    values = np.stack([right[rows].sum(axis=1), predicted[rows].sum(axis=1), labelled[rows].sum(axis=1)], axis=1)
    kept = select_clusters(clusters, rows)
    sums = resample_sums(np.zeros(len(values), np.int64), values.astype(np.float64), num_cells=1, clusters=kept)[:, 0]
    shared, in_predictions, in_labels = sums.T
    return {
        "num": int(rows.sum()),
        **_estimate_ratio("precision", shared, in_predictions, rows[rows], kept),
        **_estimate_ratio("recall", shared, in_labels, rows[rows], kept),
        **_estimate_ratio("f1", 2 * shared, in_predictions + in_labels, rows[rows], kept),
    }


def compute_clopper_pearson_upper(num_hits: int, num_rows: int, *, alpha: float) -> float:
    """The exact upper bound of a share, too low with probability at most alpha (Clopper & Pearson 1934)."""
    return 1.0 if num_hits >= num_rows else float(beta.ppf(1 - alpha, num_hits + 1, num_rows - num_hits))


def compute_clopper_pearson_interval(num_hits: int, num_rows: int) -> tuple[float, float]:
    """The exact 95 % interval of a share; (0, 1) for no rows."""
    upper = compute_clopper_pearson_upper(num_hits, num_rows, alpha=0.025)
    return 1 - compute_clopper_pearson_upper(num_rows - num_hits, num_rows, alpha=0.025), upper


def bin_reliability(confidences: Floats, right: Bools, clusters: Ints | None) -> list[Figures]:
    """Mean confidence and accuracy of each bin that holds predictions.

    A confidence of 0 is no prediction, such as below the leaf of a path that ends early; the calibration error is the
    same without it.
    """
    bins = assign_calibration_bins(confidences)
    bins_with_rows = []
    for number in np.unique(bins[confidences > 0]):
        rows = (bins == number) & (confidences > 0)
        bins_with_rows.append(
            {
                "num": int(rows.sum()),
                "confidence": float(confidences[rows].mean()),
                **estimate_share("accuracy", right[rows], select_clusters(clusters, rows)),
            }
        )
    return bins_with_rows


def _estimate_ratio(name: str, parts: Floats, wholes: Floats | Ints, rows: Bools, clusters: Ints | None) -> Figures:
    """`parts / wholes`, (1 + R,) each, as a figure with its interval."""
    estimates = np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)
    num_clusters = len(rows) if clusters is None else len(np.unique(clusters))
    return {
        name: float(estimates[0]),
        f"{name}_interval": compute_bootstrap_interval(estimates, num_clusters=num_clusters),
    }
