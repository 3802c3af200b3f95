"""Multinomial logistic regression on features of photos. Torch is imported on use."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vision.errors import ListingVisionError

__all__ = ["compute_softmax_probabilities", "fit_softmax"]

_ROWS_PER_SLICE = 16_384
"""Bounds the float64 copies of features: 160 MiB at 1,280 features."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def fit_softmax(
    features: Floats, labels: Ints, num_classes: int, *, l2: float, weights: Floats | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weight (C, D) and bias (C,) of multinomial logistic regression, to be applied to the features as they are.

    Minimises the mean cross-entropy plus l2 / 2 times the squared weights of standardised features by L-BFGS: products
    in float32, sums and steps in float64, the same answer for the same input. A class without rows gets bias -inf: its
    probability is 0.

    Args:
        features: (N, D); may be memory-mapped.
        labels: (N,) 0…C-1.
        weights: (N,) how much each row counts, 0 or more.

    Raises:
        ListingVisionError: no row, sizes that differ, a label out of range, an `l2` that is not positive.
    """
    import torch

    shares = _normalise_weights(features, labels, num_classes, l2=l2, weights=weights)
    mean, scale = _standardise(features, shares)
    present = np.unique(labels[shares > 0])
    # Rows that count for nothing may carry a label that no other row has.
    targets = torch.from_numpy(np.searchsorted(present, labels).clip(max=len(present) - 1))
    standardised = torch.empty(features.shape, dtype=torch.float32)
    for at in _iterate_slices(len(labels)):
        standardised[at] = torch.from_numpy((features[at].astype(np.float64) - mean) / scale)
    weight = torch.zeros((len(present), features.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(present), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def compute_loss_and_gradients() -> float:
        optimizer.zero_grad()
        loss = l2 / 2 * weight.square().sum()
        loss.backward()
        total = loss.item()
        for at in _iterate_slices(len(labels)):
            logits = (standardised[at] @ weight.T.float()).double() + bias
            each = torch.nn.functional.cross_entropy(logits, targets[at], reduction="none")
            part = (torch.from_numpy(shares[at]) * each).sum()
            part.backward()
            total += part.item()
        return total

    with torch.enable_grad():
        optimizer.step(compute_loss_and_gradients)
    weight_all = np.zeros((num_classes, features.shape[1]))
    bias_all = np.full(num_classes, -np.inf)
    weight_all[present] = weight.detach().numpy() / scale
    bias_all[present] = bias.detach().numpy() - weight_all[present] @ mean
    return weight_all, bias_all


def compute_softmax_probabilities(
    features: Floats, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """(N, C), rows that sum to one."""
    probabilities = np.empty((len(features), len(bias)), np.float32)
    for at in _iterate_slices(len(features)):
        logits = features[at].astype(np.float64) @ weight.T + bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities[at] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def _normalise_weights(
    features: Floats, labels: Ints, num_classes: int, *, l2: float, weights: Floats | None
) -> npt.NDArray[np.float64]:
    if not l2 > 0:
        raise ListingVisionError(f"l2 is {l2}; give a positive number, without one there may be no best answer")
    if len(labels) == 0 or len(features) != len(labels):
        raise ListingVisionError(f"{len(features)} rows of features and {len(labels)} labels; give as many, at least 1")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ListingVisionError(
            f"labels {labels.min()}…{labels.max()} are outside 0…{num_classes - 1}; leave out rows without a label"
        )
    counts = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape != labels.shape or not (counts >= 0).all() or not counts.sum() > 0:
        raise ListingVisionError(f"weights of shape {counts.shape}: give {len(labels)} of 0 or more, not all of them 0")
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def _standardise(features: Floats, shares: npt.NDArray[np.float64]) -> tuple[Floats, Floats]:
    mean = np.zeros(features.shape[1])
    for at in _iterate_slices(len(features)):
        mean += shares[at] @ features[at].astype(np.float64)
    variance = np.zeros(features.shape[1])
    for at in _iterate_slices(len(features)):
        variance += shares[at] @ (features[at].astype(np.float64) - mean) ** 2
    deviation = np.sqrt(variance)
    # A constant column varies by rounding alone; dividing by that would make noise a feature.
    varies = deviation > 1e-6 * np.abs(mean) + np.finfo(np.float32).tiny
    return mean, np.where(varies, deviation, 1.0)


def _iterate_slices(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, _ROWS_PER_SLICE):
        yield slice(start, min(start + _ROWS_PER_SLICE, num_rows))
