"""Figures that evaluation, calibration and reports share. NumPy only."""

import numpy as np
import numpy.typing as npt

__all__ = ["expected_calibration_error", "macro_accuracy", "top_k_accuracy", "wilson_interval"]

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


def top_k_accuracy(scores: Floats, labels: Ints, *, k: int) -> float:
    """Share of labelled rows whose label is among the k highest scores.

    Args:
        scores: (N, C).
        labels: (N,) column of `scores`; rows with a negative label do not count.

    Returns:
        A share in [0, 1]; NaN when no row is labelled.
    """
    labelled = labels >= 0
    if not labelled.any():
        return float("nan")
    best = np.argsort(-scores[labelled], axis=1, kind="stable")[:, :k]
    return float((best == labels[labelled, None]).any(axis=1).mean())


def macro_accuracy(predictions: Ints, labels: Ints) -> float:
    """Mean over the labels that occur of the share of their rows predicted right; NaN when none is labelled."""
    classes = np.unique(labels[labels >= 0])
    if classes.size == 0:
        return float("nan")
    return float(np.mean([(predictions[labels == c] == c).mean() for c in classes]))


def expected_calibration_error(confidences: Floats, correct: npt.NDArray[np.bool_], *, num_bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017, section 2)."""
    if confidences.size == 0:
        return float("nan")
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    gaps = [
        abs(confidences[bins == b].mean() - correct[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
    ]
    return float(np.sum(gaps))


def wilson_interval(num_right: int, num_rows: int, *, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), 95 % by default; (0, 1) for no rows."""
    if num_rows == 0:
        return 0.0, 1.0
    share = num_right / num_rows
    centre = share + z * z / (2 * num_rows)
    half = z * float(np.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows**2)))
    scale = 1 + z * z / num_rows
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
