"""Metrics that evaluation, calibration and reports share. NumPy only."""

import functools

import numpy as np
import numpy.typing as npt

__all__ = [
    "NUM_CALIBRATION_BINS",
    "assign_calibration_bins",
    "compute_bootstrap_interval",
    "compute_expected_calibration_error",
    "compute_share_interval",
    "compute_top_k_hits",
    "compute_wilson_interval",
    "resample_sums",
]

NUM_CALIBRATION_BINS = 15

_SEED = 0
_MAX_VALUES = 20_000_000
"""Bounds the memory and the time of a bootstrap."""
_MAX_DENSE_SUMS = 128

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]


def compute_top_k_hits(scores: Floats, labels: Ints, *, k: int) -> Bools:
    """Return, for each labelled row in order, whether its label is among the k highest scores."""
    labelled = labels >= 0
    best = np.argsort(-scores[labelled], axis=1, kind="stable")[:, :k]
    hits: Bools = (best == labels[labelled, None]).any(axis=1)
    return hits


def assign_calibration_bins(confidences: Floats, *, num_bins: int = NUM_CALIBRATION_BINS) -> npt.NDArray[np.int64]:
    """(N,) the equal-width bin of each confidence."""
    return np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)


def compute_expected_calibration_error(
    confidences: Floats, correct: Bools, *, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017, section 2)."""
    if confidences.size == 0:
        return float("nan")
    bins = assign_calibration_bins(confidences, num_bins=num_bins)
    gaps = [
        abs(confidences[bins == b].mean() - correct[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
    ]
    return float(np.sum(gaps))


def compute_wilson_interval(num_right: float, num_rows: float, *, z: float = 1.96) -> Interval:
    """Interval of a share (Wilson 1927), 95 % by default; (0, 1) for no rows."""
    if num_rows == 0:
        return 0.0, 1.0
    share = num_right / num_rows
    centre = share + z * z / (2 * num_rows)
    half = z * float(np.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows**2)))
    scale = 1 + z * z / num_rows
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def compute_share_interval(hits: Bools, clusters: Ints | None = None) -> Interval:
    """95 % Wilson interval of a share, on as many rows as the clustered ones are worth.

    Photos of one listing are right or wrong together, so a thousand photos tell less than a thousand listings. The rows
    are divided by their design effect, the variance of the share between clusters over that of independent rows (Kish
    1965, "Survey Sampling"). Where nothing varies that cannot be estimated, and a cluster counts as one row.

    Args:
        clusters: (N,) cluster of each row; without, each row is its own.
    """
    if hits.size == 0:
        return 0.0, 1.0
    sizes = np.bincount(clusters) if clusters is not None else np.ones(hits.size, np.int64)
    present = sizes > 0
    num_clusters = int(present.sum())
    if clusters is None or num_clusters == hits.size:
        return compute_wilson_interval(int(hits.sum()), hits.size)
    share = float(hits.mean())
    effective = float(num_clusters)
    if 0 < share < 1 and num_clusters > 1:
        gaps = (np.bincount(clusters, weights=hits) - share * sizes)[present]
        variance = float((gaps**2).sum()) * num_clusters / (num_clusters - 1) / hits.size**2
        most = share * (1 - share) / hits.size
        effective = max(1.0, hits.size * min(1.0, most / variance)) if variance > 0 else float(hits.size)
    return compute_wilson_interval(share * effective, effective)


def resample_sums(
    cells: Ints, values: Floats, *, num_cells: int, clusters: Ints | None = None, seed: int = _SEED
) -> Floats:
    """(1 + R, num_cells, M) sums of the rows of each cell: of the data, then of R resamples of its clusters.

    A figure of sums, computed on all of them at once, is a bootstrap (Efron 1979). R is 1000, and falls to 200 for a
    million clusters, whose intervals are narrow.

    Args:
        cells: (N,) numbers below `num_cells`.
        values: (N, M) what is summed.
        clusters: (N,) what is drawn together, such as the photos of a listing; without, each row is its own.
    """
    cluster_of_row = np.arange(len(cells)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    num_clusters = int(cluster_of_row.max()) + 1 if len(cluster_of_row) else 0
    sums = [_sum_cells(cells, values, num_cells)[None]]
    if num_clusters:
        weights = _sample_cluster_weights(num_clusters, seed)
        num_sums = num_cells * values.shape[1]
        dense = num_sums <= _MAX_DENSE_SUMS and num_sums * num_clusters <= _MAX_VALUES
        sums += (
            _sum_resamples_densely(weights, cells, values, num_cells, cluster_of_row)
            if dense
            else [_sum_cells(cells, values * row[cluster_of_row, None], num_cells)[None] for row in weights]
        )
    return np.concatenate(sums)


@functools.lru_cache(maxsize=8)  # most figures of one evaluation are of the same number of listings
def _sample_cluster_weights(num_clusters: int, seed: int) -> npt.NDArray[np.uint8]:
    """(R, num_clusters) how often each cluster is in each resample."""
    num_resamples = int(np.clip(_MAX_VALUES // num_clusters, 200, 1000))
    rng = np.random.default_rng(seed)
    weights = np.empty((num_resamples, num_clusters), np.uint8)
    for row in weights:
        row[:] = np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)
    return weights


def _sum_resamples_densely(
    weights: npt.NDArray[np.uint8], cells: Ints, values: Floats, num_cells: int, cluster_of_row: Ints
) -> list[Floats]:
    """The sums of each resample as a product of matrices, which is many times faster where the cells are few."""
    num_clusters = weights.shape[1]
    by_cluster = _sum_cells(cluster_of_row * num_cells + cells, values, num_clusters * num_cells).reshape(
        num_clusters, -1
    )
    resamples_per_product = max(1, _MAX_VALUES // 16 // num_clusters)
    return [
        (weights[start : start + resamples_per_product].astype(np.float64) @ by_cluster).reshape(
            -1, num_cells, values.shape[1]
        )
        for start in range(0, len(weights), resamples_per_product)
    ]


def _sum_cells(cells: Ints, values: Floats, num_cells: int) -> Floats:
    """(num_cells, M) from (N,) cells and (N, M) values."""
    sums = [np.bincount(cells, column, num_cells) for column in values.T]
    # Of no rows at all, bincount counts in integers.
    return np.stack(sums, axis=-1).astype(np.float64)


def compute_bootstrap_interval(estimates: Floats, *, num_clusters: int) -> Interval:
    """95 % 'basic' interval of a figure in [0, 1] (Davison & Hinkley 1997, section 5.2); (0, 1) for NaN.

    Resamples of a calibration error lie above it, as it lies above the truth; the basic interval takes that back, where
    the percentile interval would count it twice. Where all resamples are alike (no error, or one cluster) they know
    nothing of chance, and the interval is Wilson's of so many clusters.

    Args:
        estimates: (1 + R,) the figure of the data, then of the resamples.
    """
    value, resampled = float(estimates[0]), estimates[1:]
    if np.isnan(value):
        return 0.0, 1.0
    if np.ptp(resampled) == 0:
        return compute_wilson_interval(value * num_clusters, num_clusters)
    high, low = 2 * value - np.quantile(resampled, [0.025, 0.975])
    return max(0.0, min(float(low), value)), min(1.0, max(float(high), value))
