"""Whether the photos of a listing show the same thing: how deep the suggested path is shared by all. NumPy only."""

import numpy as np
import numpy.typing as npt

from vision.calibration import Calibration
from vision.prediction.fusion import compute_leaf_probabilities, cut_rows, sum_leaves
from vision.taxonomy import Taxonomy

__all__ = ["find_contradictions"]

Bools = npt.NDArray[np.bool_]


def find_contradictions(
    category_logits: npt.NDArray[np.floating],
    groups: npt.NDArray[np.integer],
    path_nodes: npt.NDArray[np.integer],
    calibration: Calibration,
    taxonomy: Taxonomy,
    *,
    photo_leaves: npt.NDArray[np.floating] | None = None,
) -> Bools:
    """Return (P, D) whether each photo, seen alone, contradicts each step of its listing's path.

    It does where another category of that depth is likelier than the step's by more than the calibration allows. The
    only photo of a listing contradicts nothing.

    Args:
        category_logits: (P, C).
        groups: (P,) listing numbers 0…N-1.
        path_nodes: (N, D) as of `Paths.nodes`.
        calibration: its `agreement_limit` None: nothing is contradicted.
        taxonomy: that of the logits.
        photo_leaves: (P, C) leaf probabilities of each photo alone, where they are known.
    """
    contradicts = np.zeros((len(groups), path_nodes.shape[1]), dtype=bool)
    if calibration.agreement_limit is None or len(groups) == len(path_nodes):
        return contradicts
    tree = taxonomy.tree
    starts = [depth.start for depth in tree.depths]
    photos = np.flatnonzero(np.bincount(groups)[groups] > 1)
    for piece in cut_rows(len(photos), tree):
        rows = photos[piece]
        if photo_leaves is None:
            leaves = compute_leaf_probabilities(category_logits[rows], None, calibration, taxonomy)
        else:
            leaves = photo_leaves[rows]
        nodes = np.minimum(sum_leaves(leaves, tree), 1.0)
        own = np.take_along_axis(nodes, tree.positions[path_nodes[groups[rows]]], axis=1)
        contradicts[rows] = own < calibration.agreement_limit * np.maximum.reduceat(nodes, starts, axis=1)
    # What contradicts a step contradicts those below it.
    inherited: Bools = np.logical_or.accumulate(contradicts, axis=1) & (path_nodes[groups] >= 0)
    return inherited
