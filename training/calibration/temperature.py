"""Temperatures of categories and brands, fitted by their likelihood on the tune listings."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from training.calibration.splits import CalibrationListings
from training.evaluation.ground_truth import GroundTruth
from vision.prediction.fusion import cut_rows, fuse_logits, softmax, sum_leaves
from vision.taxonomy import Taxonomy

__all__ = ["fit_brand_fusion", "fit_depth_temperatures", "fit_temperature"]

_TEMPERATURE_SPREAD = 0.5
"""Standard deviation of the normal prior of the log of a depth's temperature. Chosen on Grocery Store's val split."""


def fit_temperature(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017), in [0.25, 10]; 1 without labels.

    The bounds matter where no answer is wrong: the likelihood then grows without bound as the temperature falls.
    """
    labelled = labels >= 0
    if not labelled.any():
        return 1.0
    logits, labels = logits[labelled], labels[labelled]

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / math.exp(log_temperature))
        return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())

    result = minimize_scalar(loss, bounds=(math.log(0.25), math.log(10)), method="bounded")
    return math.exp(float(result.x))


def fit_depth_temperatures(
    leaves: npt.NDArray[np.floating], truth: GroundTruth, taxonomy: Taxonomy
) -> tuple[float, ...]:
    """The temperature of each depth, for a node's share among its siblings given that their parent is right.

    Minimises the negative log-likelihood of each depth by itself, shrunk towards 1 where listings are few, in [1/3, 3];
    1 where no label tells siblings apart.

    Args:
        leaves: (N, C) probabilities after the temperature of the leaves.
        truth: the ground truth of the N listings.
        taxonomy: the one of the leaves.
    """
    temperatures = []
    tree = taxonomy.tree
    sets = [slice(begin, end) for begin, end in itertools.pairwise([*tree.sibling_starts.tolist(), len(tree.nodes)])]
    # The first column is what is above the roots.
    pieces_of_sums = [sum_leaves(leaves[rows], tree) for rows in cut_rows(len(leaves), tree)]
    sums = np.hstack([leaves.sum(axis=1, keepdims=True), np.concatenate(pieces_of_sums)])
    for nodes in truth.nodes.T:
        pieces, positions = [], []
        for row in np.flatnonzero(nodes >= 0).tolist():
            true = int(tree.positions[nodes[row]])
            siblings = sets[tree.sibling_sets[true]]
            if siblings.stop - siblings.start > 1:
                shares = sums[row, 1:][siblings] / max(sums[row, tree.parents[true]], 1e-300)
                pieces.append(np.log(np.maximum(shares, 1e-300)))
                positions.append(true - siblings.start)
        temperatures.append(_fit_sibling_temperature(pieces, positions))
    return tuple(temperatures)


def _fit_sibling_temperature(log_shares: Sequence[npt.NDArray[np.float64]], true: Sequence[int]) -> float:
    """The temperature that fits rows of log shares, which differ in length; `true` is the right position in each."""
    if not log_shares:
        return 1.0
    flat = np.concatenate(log_shares)
    starts = np.cumsum([0, *(len(row) for row in log_shares[:-1])])
    right = flat[starts + np.asarray(true)]
    # The largest of each row is subtracted before the exponential, which would underflow otherwise.
    largest = np.maximum.reduceat(flat, starts)
    lengths = [len(row) for row in log_shares]

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        totals = np.add.reduceat(np.exp((flat - np.repeat(largest, lengths)) / temperature), starts)
        likelihood = (np.log(totals) - (right - largest) / temperature).sum()
        return float(likelihood + log_temperature**2 / (2 * _TEMPERATURE_SPREAD**2))

    result = minimize_scalar(loss, bounds=(-math.log(3), math.log(3)), method="bounded")
    return math.exp(float(result.x))


def fit_brand_fusion(tune: CalibrationListings, log_prior: tuple[float, ...]) -> tuple[Literal["mean", "max"], float]:
    """The fusion of photos and the temperature that explain the brands of the tune listings best.

    The maximum over photos fits where a logo is visible in one photo only.
    """
    known = tune.truth.brands >= 0
    brands = tune.truth.brands[known]
    best: tuple[float, Literal["mean", "max"], float] = (math.inf, "mean", 1.0)
    fusions: tuple[Literal["mean", "max"], ...] = ("mean", "max")
    for how in fusions:
        logits = fuse_logits(tune.brand_logits, tune.groups, how=how)[known]
        if len(logits) == 0:
            break
        if log_prior:
            logits = logits + np.asarray(log_prior)
        temperature = fit_temperature(logits, brands)
        likelihoods = softmax(logits / temperature)[np.arange(len(logits)), brands]
        loss = float(-np.log(np.maximum(likelihoods, 1e-12)).mean())
        if loss < best[0] - 1e-9:
            best = (loss, how, temperature)
    return best[1], best[2]
