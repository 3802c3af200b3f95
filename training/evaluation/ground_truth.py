"""The ground truth of listings, and which steps of predicted paths are right."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vision.manifest import OUT_OF_SCOPE, UNLABELLED, Labels
from vision.prediction.listings import Paths
from vision.taxonomy import Taxonomy

__all__ = [
    "BrandResults",
    "GroundTruth",
    "StepResults",
    "build_ground_truth",
    "evaluate_brands",
    "evaluate_deepest_filled",
    "evaluate_paths",
    "find_labelled",
    "merge_listing_labels",
]

Ints = npt.NDArray[np.int64]


class StepResults(NamedTuple):
    """Evaluation of each step of predicted paths."""

    known: npt.NDArray[np.bool_]
    """(N, D) whether the step is predicted and the label shows if it is right."""
    right: npt.NDArray[np.bool_]
    """(N, D); false where not known."""


class BrandResults(NamedTuple):
    """Evaluation of predicted brands."""

    known: npt.NDArray[np.bool_]
    """(N,) whether the label shows if the brand is right."""
    right: npt.NDArray[np.bool_]
    """(N,); false where not known."""


class GroundTruth(NamedTuple):
    """What the labels say about each row."""

    nodes: Ints
    """(N, D) the labelled node's ancestor at each depth, -1 where not known or not that deep."""
    leaves: Ints
    """(N,) column of the category logits; -1 where the label is missing or an inner node."""
    out_of_scope: npt.NDArray[np.bool_]
    """(N,) whether the taxonomy does not cover the product: no category is right, and no brand."""
    brands: Ints
    """(N,) column of the brand logits; -1 where missing, `OTHER_BRAND` where the taxonomy lacks it."""


def evaluate_paths(paths: Paths, truth: GroundTruth) -> StepResults:
    """Evaluate which steps of the predicted paths are right.

    A step deeper than the true leaf is wrong, and so is every step below one that is wrong. A step is unknown only
    where the label is missing, or is an inner node above the step on the predicted path. Every step is wrong where
    the taxonomy does not cover the product.
    """
    labelled_steps = truth.nodes >= 0
    labelled = labelled_steps.any(axis=1, keepdims=True) | truth.out_of_scope[:, None]
    last_labelled = np.maximum(labelled_steps.sum(axis=1, keepdims=True) - 1, 0)
    agrees = np.take_along_axis(paths.nodes, last_labelled, 1) == np.take_along_axis(truth.nodes, last_labelled, 1)
    has_leaf = truth.leaves[:, None] >= 0
    known = (paths.nodes >= 0) & labelled & (labelled_steps | has_leaf | ~agrees)
    return StepResults(known, known & labelled_steps & (paths.nodes == truth.nodes))


def evaluate_brands(labels: npt.NDArray[np.integer], truth: GroundTruth) -> BrandResults:
    """Evaluate which predicted brands are right.

    Args:
        labels: (N,) predicted brands; `OTHER_BRAND` is right where the taxonomy lacks the true one.
        truth: of the same rows.
    """
    known = (truth.brands != UNLABELLED) | truth.out_of_scope
    return BrandResults(known, known & ~truth.out_of_scope & (labels == truth.brands))


def evaluate_deepest_filled(filled: npt.NDArray[np.bool_], steps: StepResults) -> npt.NDArray[np.bool_]:
    """Return (N,) whether the deepest filled step is known to be right; false where nothing is filled.

    Args:
        filled: (N, D), a filled step implying that all steps above it are filled.
        steps: the evaluation of the same paths.
    """
    deepest = filled.sum(axis=1) - 1
    right: npt.NDArray[np.bool_] = steps.right[np.arange(len(deepest)), np.maximum(deepest, 0)] & (deepest >= 0)
    return right


def find_labelled(truth: GroundTruth) -> npt.NDArray[np.bool_]:
    """Return (N,) whether anything is known about the category, be it that none covers the product."""
    labelled: npt.NDArray[np.bool_] = np.logical_or.reduce(truth.nodes >= 0, axis=1) | truth.out_of_scope
    return labelled


def merge_listing_labels(labels: Labels, groups: Ints) -> Labels:
    """The labels of each listing: for category and for brand, that of its first photo that has one."""
    return Labels(
        category_nodes=_select_first_known(labels.category_nodes, groups),
        brands=_select_first_known(labels.brands, groups),
    )


def _select_first_known(values: Ints, groups: Ints) -> Ints:
    firsts = np.full(int(groups.max()) + 1, UNLABELLED, dtype=np.int64)
    known = values != UNLABELLED
    chosen, rows = np.unique(groups[known], return_index=True)
    firsts[chosen] = values[known][rows]
    return firsts


def build_ground_truth(labels: Labels, taxonomy: Taxonomy) -> GroundTruth:
    """The ground truth of labelled rows, by depth."""
    paths = np.full((len(taxonomy.categories) + 2, taxonomy.max_depth), UNLABELLED, dtype=np.int64)
    leaf_of = np.full(len(taxonomy.categories) + 2, UNLABELLED, dtype=np.int64)
    for category in taxonomy.categories:
        node = taxonomy.node_index[category.id]
        for depth, ancestor in enumerate(taxonomy.get_lineage(category.id)):
            paths[node, depth] = taxonomy.node_index[ancestor.id]
    for column, leaf_id in enumerate(taxonomy.leaf_ids):
        leaf_of[taxonomy.node_index[leaf_id]] = column
    # The indices -1, 'not labelled', and -2, 'out of scope', find the last two rows, which are all -1.
    nodes = labels.category_nodes
    return GroundTruth(paths[nodes], leaf_of[nodes], nodes == OUT_OF_SCOPE, labels.brands)
