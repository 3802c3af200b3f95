"""Fuse the logits of a listing's photos and turn them into probabilities. NumPy only.

Shapes: P photos, N listings, C leaf categories, B brand labels (0 is 'no brand'), V nodes of the tree, D its depth.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from vision.calibration import Calibration
from vision.taxonomy import Taxonomy

__all__ = [
    "compute_brand_probabilities",
    "compute_leaf_probabilities",
    "compute_node_probabilities",
    "fuse_brand_logits",
    "fuse_logits",
    "softmax",
]

_MIN_PROBABILITY = 1e-300

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


def softmax(logits: Floats) -> Floats:
    """Return (N, C) float64 probabilities of each row."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def fuse_logits(logits: Floats, groups: Ints, *, how: Literal["mean", "max"]) -> Floats:
    """Fuse (P, K) logits of photos to (N, K) float64 logits of listings; row i of the result is group i.

    Args:
        groups: (P,) numbers 0…N-1, each at least once.
    """
    fused: Floats
    if not groups.any():  # one listing, as serving has it: the same sums, without sorting
        photos = logits.astype(np.float64)
        fused = photos.max(axis=0, keepdims=True) if how == "max" else photos.sum(axis=0, keepdims=True) / len(photos)
        return fused
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ordered = logits[order].astype(np.float64)
    if how == "max":
        fused = np.maximum.reduceat(ordered, starts, axis=0)
    else:
        fused = np.add.reduceat(ordered, starts, axis=0) / np.bincount(groups)[:, None]
    return fused


def compute_leaf_probabilities(logits: Floats, groups: Ints, calibration: Calibration, taxonomy: Taxonomy) -> Floats:
    """Return (N, C) leaf probabilities of listings from (P, C) logits of photos."""
    fused = _add_prior(fuse_logits(logits, groups, how="mean"), calibration.category_log_prior)
    leaves = softmax(fused / calibration.category_temperature)
    if not calibration.category_depth_temperatures:
        return leaves
    return _apply_depth_temperatures(leaves, calibration.category_depth_temperatures, taxonomy)


def fuse_brand_logits(logits: Floats, groups: Ints, calibration: Calibration) -> Floats:
    """Return (N, B) fused logits, before temperature and prior, from (P, B) logits of photos."""
    return fuse_logits(logits, groups, how=calibration.brand_fusion)


def compute_brand_probabilities(fused_logits: Floats, calibration: Calibration) -> Floats:
    """Return (N, B) brand probabilities of rows of `fuse_brand_logits`."""
    return softmax(_add_prior(fused_logits, calibration.brand_log_prior) / calibration.brand_temperature)


def compute_node_probabilities(leaf_probabilities: Floats, taxonomy: Taxonomy) -> Floats:
    """Return (N, V) probabilities of nodes, each the sum of the leaves below it."""
    sums = np.zeros((len(leaf_probabilities), len(taxonomy.categories)))
    for groups in taxonomy.leaf_groups:
        sums[:, groups.nodes] = np.add.reduceat(leaf_probabilities[:, groups.order], groups.starts, axis=1)
    return np.minimum(sums, 1.0)


def _apply_depth_temperatures(leaves: Floats, temperatures: tuple[float, ...], taxonomy: Taxonomy) -> Floats:
    """(N, C) leaf probabilities as products of shares among siblings, each to the power of 1 / its depth's temperature.

    One temperature does not fit all depths: the mass that label smoothing gives to wrong leaves adds up over the tree,
    so that a model with a calibrated leaf is underconfident about the root.
    """
    found = np.empty_like(leaves)
    sums_above, above = leaves.sum(axis=1, keepdims=True), np.ones((len(leaves), 1))
    for groups, temperature in zip(taxonomy.leaf_groups, temperatures, strict=True):
        sums = np.add.reduceat(leaves[:, groups.order], groups.starts, axis=1)
        shares = (sums / np.maximum(sums_above[:, groups.parents], _MIN_PROBABILITY)) ** (1 / temperature)
        totals = np.add.reduceat(shares[:, groups.sibling_order], groups.sibling_starts, axis=1)
        here = above[:, groups.parents] * shares / np.maximum(totals[:, groups.sibling_sets], _MIN_PROBABILITY)
        found[:, groups.ending_leaves] = here[:, groups.ending_nodes]
        sums_above, above = sums, here
    return found


def _add_prior(logits: Floats, log_prior: tuple[float, ...]) -> Floats:
    return logits + np.asarray(log_prior) if log_prior else logits
