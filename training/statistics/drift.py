"""Drift of listings and confidences: histograms and the population stability index between two of them."""

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from vision.calibration import Histogram

__all__ = [
    "BRAND_PROBABILITY",
    "BYTES_PER_PHOTO",
    "DRIFT_STATISTICS",
    "LEAF_PROBABILITY",
    "PHOTOS_PER_LISTING",
    "PSI_LARGE",
    "PSI_MODERATE",
    "build_histogram",
    "compute_chance_level",
    "compute_population_stability",
]

PSI_MODERATE, PSI_LARGE = 0.1, 0.25
"""The customary marks (Siddiqi, Credit Risk Scorecards, 2006)."""

LEAF_PROBABILITY, BRAND_PROBABILITY = "leaf_probability", "brand_probability"
PHOTOS_PER_LISTING, BYTES_PER_PHOTO = "photos_per_listing", "bytes_per_photo"
DRIFT_STATISTICS = (LEAF_PROBABILITY, BRAND_PROBABILITY, PHOTOS_PER_LISTING, BYTES_PER_PHOTO)
"""Histograms of a bundle's calibration listings, one value a listing; bytes are the mean of its photos."""

_CHANCE_QUANTILE = 0.99

Floats = npt.NDArray[np.float64]


def build_histogram(values: npt.ArrayLike, *, num_bins: int = 10) -> Histogram:
    """A histogram whose bins end at the quantiles of the values; fewer bins where quantiles are equal."""
    array = np.asarray(values, np.float64)
    edges = np.unique(np.quantile(array, np.linspace(0, 1, num_bins + 1)[1:-1])) if len(array) else np.empty(0)
    counts = _count_by_bin(edges, array)
    shares = counts / len(array) if len(array) else counts.astype(float)
    return Histogram(edges=tuple(edges.tolist()), shares=tuple(shares.tolist()), num_values=len(array))


def compute_population_stability(reference: Histogram, recent: Floats) -> float:
    """Population stability index over the reference's bins; a bin that is empty counts as half a value."""
    if not reference.num_values or not len(recent):
        return 0.0
    before = np.maximum(reference.shares, 0.5 / reference.num_values)
    now = np.maximum(_count_by_bin(np.asarray(reference.edges), recent), 0.5) / len(recent)
    return float(((now - before) * np.log(now / before)).sum())


def compute_chance_level(reference: Histogram, num_recent: int) -> float:
    """The index that samples of these sizes exceed once in a hundred without any drift.

    The index is about chi-squared, times the sum of the inverse sizes (Yurdakul, Statistical Properties of the
    Population Stability Index, 2018). 0 where nothing is there to compare.
    """
    if not reference.num_values or not num_recent or not reference.edges:
        return 0.0
    return float(chi2.ppf(_CHANCE_QUANTILE, len(reference.edges)) * (1 / reference.num_values + 1 / num_recent))


def _count_by_bin(edges: Floats, values: Floats) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return counts
