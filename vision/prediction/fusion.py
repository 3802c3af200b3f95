"""Fuse the logits of a listing's photos and turn them into probabilities. NumPy only.

Shapes: P photos, N listings, C leaf categories, B brand labels (0 is 'no brand'), V nodes of the tree, D its depth.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from vision.calibration import Calibration
from vision.category_tree import CategoryTree
from vision.taxonomy import Taxonomy

__all__ = [
    "compute_brand_probabilities",
    "compute_leaf_probabilities",
    "compute_node_probabilities",
    "cut_rows",
    "fuse_brand_logits",
    "fuse_logits",
    "softmax",
    "sum_leaves",
]

_MIN_PROBABILITY = 1e-300
_VALUES_PER_PIECE = 1 << 18
"""2 MiB."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


def softmax(logits: Floats) -> Floats:
    """Return (N, C) float64 probabilities of each row."""
    probabilities: Floats = logits.astype(np.float64)
    probabilities -= probabilities.max(axis=1, keepdims=True)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def fuse_logits(logits: Floats, groups: Ints | None, *, how: Literal["mean", "max"]) -> Floats:
    """Fuse (P, K) logits of photos to (N, K) float64 logits of listings; row i of the result is group i.

    Args:
        groups: (P,) numbers 0…N-1, each at least once. None: each photo alone, in order.
    """
    fused: Floats
    if groups is None:
        fused = logits.astype(np.float64, copy=False)
        return fused
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


def compute_leaf_probabilities(
    logits: Floats, groups: Ints | None, calibration: Calibration, taxonomy: Taxonomy
) -> Floats:
    """Return (N, C) leaf probabilities of listings from (P, C) logits of photos; `groups` as of `fuse_logits`."""
    fused = _add_prior(fuse_logits(logits, groups, how="mean"), calibration.category_log_prior_array)
    leaves = softmax(fused / calibration.category_temperature)
    if not calibration.category_depth_temperatures:
        return leaves
    return _apply_depth_temperatures(leaves, calibration.category_depth_temperatures, taxonomy.tree)


def fuse_brand_logits(logits: Floats, groups: Ints | None, calibration: Calibration) -> Floats:
    """Return (N, B) fused logits, before temperature and prior, from (P, B) logits of photos."""
    return fuse_logits(logits, groups, how=calibration.brand_fusion)


def compute_brand_probabilities(fused_logits: Floats, calibration: Calibration) -> Floats:
    """Return (N, B) brand probabilities of rows of `fuse_brand_logits`."""
    return softmax(_add_prior(fused_logits, calibration.brand_log_prior_array) / calibration.brand_temperature)


def compute_node_probabilities(leaf_probabilities: Floats, taxonomy: Taxonomy) -> Floats:
    """Return (N, V) probabilities of nodes, each the sum of the leaves below it."""
    found = np.empty((len(leaf_probabilities), len(taxonomy.categories)))
    for rows in cut_rows(len(leaf_probabilities), taxonomy.tree):
        sums = np.minimum(sum_leaves(leaf_probabilities[rows], taxonomy.tree), 1.0)
        found[rows] = sums.take(taxonomy.tree.positions, axis=1)
    return found


def sum_leaves(leaf_probabilities: Floats, tree: CategoryTree) -> Floats:
    """Return (N, V) sums of the leaves below each node, in the tree's order; for the few rows of `cut_rows`."""
    below = leaf_probabilities.take(tree.leaf_order, axis=1)
    inner = np.add.reduceat(below, tree.leaf_starts, axis=1)
    return np.concatenate([inner, leaf_probabilities], axis=1).take(tree.sum_order, axis=1)


def cut_rows(num_rows: int, tree: CategoryTree) -> Iterator[slice]:
    """Cut rows of leaf probabilities into pieces small enough to take up the leaves below each node; bounds memory."""
    step = max(1, _VALUES_PER_PIECE // tree.paths.size)
    return (slice(begin, begin + step) for begin in range(0, num_rows, step))


def _apply_depth_temperatures(leaves: Floats, temperatures: tuple[float, ...], tree: CategoryTree) -> Floats:
    """(N, C) leaf probabilities as products of shares among siblings, each to the power of 1 / its depth's temperature.

    One temperature does not fit all depths: the mass that label smoothing gives to wrong leaves adds up over the tree,
    so that a model with a calibrated leaf is underconfident about the root.
    """
    found = np.empty_like(leaves)
    for rows in cut_rows(len(leaves), tree):
        sums = np.empty((len(found[rows]), 1 + len(tree.nodes)))
        sums[:, 0] = leaves[rows].sum(axis=1)  # what is above the roots
        sums[:, 1:] = sum_leaves(leaves[rows], tree)
        shares = sums[:, 1:] / np.maximum(sums, _MIN_PROBABILITY).take(tree.parents, axis=1)
        for nodes, temperature in zip(tree.depths, temperatures, strict=True):
            shares[:, nodes] **= 1 / temperature
        totals = np.maximum(np.add.reduceat(shares, tree.sibling_starts, axis=1), _MIN_PROBABILITY)
        totals = totals.take(tree.sibling_sets, axis=1)
        products = np.ones(sums.shape)
        for nodes in tree.depths:
            above = products.take(tree.parents[nodes], axis=1)
            products[:, nodes.start + 1 : nodes.stop + 1] = above * shares[:, nodes] / totals[:, nodes]
        found[rows] = products.take(1 + tree.leaf_positions, axis=1)
    return found


def _add_prior(logits: Floats, log_prior: Floats | None) -> Floats:
    return logits if log_prior is None else logits + log_prior
