"""Whether the photos of a listing show the same thing: how deep the suggested path is shared by all. NumPy only."""

import numpy as np
import numpy.typing as npt

from vision.calibration import Calibration
from vision.prediction.fusion import compute_leaf_probabilities, compute_node_probabilities
from vision.taxonomy import Taxonomy

__all__ = ["find_contradictions"]

_PHOTOS_PER_CHUNK = 256
"""Bounds the memory."""

Bools = npt.NDArray[np.bool_]


def find_contradictions(
    category_logits: npt.NDArray[np.floating],
    groups: npt.NDArray[np.integer],
    path_nodes: npt.NDArray[np.integer],
    calibration: Calibration,
    taxonomy: Taxonomy,
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
    """
    contradicts = np.zeros((len(groups), path_nodes.shape[1]), dtype=bool)
    if calibration.agreement_limit is None:
        return contradicts
    photos = np.flatnonzero(np.bincount(groups)[groups] > 1)
    for begin in range(0, len(photos), _PHOTOS_PER_CHUNK):
        rows = photos[begin : begin + _PHOTOS_PER_CHUNK]
        leaves = compute_leaf_probabilities(category_logits[rows], np.arange(len(rows)), calibration, taxonomy)
        nodes = compute_node_probabilities(leaves, taxonomy)
        steps = path_nodes[groups[rows]]
        for depth, at_depth in enumerate(taxonomy.leaf_groups):
            own = np.take_along_axis(nodes, np.maximum(steps[:, depth, None], 0), axis=1)[:, 0]
            least = calibration.agreement_limit * nodes[:, at_depth.nodes].max(axis=1)
            contradicts[rows, depth] = own < least
    # What contradicts a step contradicts those below it.
    inherited: Bools = np.logical_or.accumulate(contradicts, axis=1) & (path_nodes[groups] >= 0)
    return inherited
