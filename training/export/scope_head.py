"""The scope head of an exported model, fitted on training photos."""

import logging

import numpy as np
import numpy.typing as npt
import torch

from training.inference.predictions import iterate_usable_photos
from vision.images import Preprocessing
from vision.manifest import OUT_OF_SCOPE, Manifest
from vision.model import ListingClassifier, ScopeHead
from vision.taxonomy import Taxonomy

__all__ = ["add_scope_head", "fit_scope_head"]

_log = logging.getLogger(__name__)

_PHOTOS_PER_CATEGORY = 16
_MIN_PHOTOS = 1000
"""Where so many are there: as many as few categories need for a covariance."""
_MAX_PHOTOS = 20_000
_HELD_OUT_STRIDE = 5
_RIDGE = 0.03
"""Share of the channels' mean variance that is added to each direction's. Of 0.03, 0.1 and 0.3, chosen on val photos
and drawn kinds of `benchmarks.scope`."""
_LEAST_SPREAD = 0.01
"""Share of the channels' mean spread that a channel has at least, so that one that is never active decides nothing."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def add_scope_head(
    model: ListingClassifier, train: Manifest, taxonomy: Taxonomy, preprocessing: Preprocessing
) -> Floats:
    """Fit a scope head to at most 16 training photos a category, or 1,000 in all, and attach it.

    Returns:
        (H,) scope scores of every fifth of these photos, which the head was not fitted to.

    Raises:
        ManifestError: no photo can be used.
    """
    nodes = train.resolve_labels(taxonomy, out_of_scope=True).category_nodes
    chosen = _choose_photos(nodes, np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids]))
    batches: list[npt.NDArray[np.float32]] = []
    unusable: list[str] = []
    for _, photos in iterate_usable_photos(train.take(chosen), preprocessing, unusable=unusable):
        photos_nchw = model.normalise(torch.from_numpy(photos)).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            batches.append(model.compute_features(photos_nchw)[1].numpy())
    for photo in unusable:
        _log.warning("left out of the scope score: %s", photo)
    channel_means = np.concatenate(batches)
    held_out = np.arange(len(channel_means)) % _HELD_OUT_STRIDE == _HELD_OUT_STRIDE - 1
    model.scope_head = fit_scope_head(channel_means[~held_out])
    scores: Floats = model.scope_head(torch.from_numpy(channel_means[held_out])).numpy()
    return scores


def fit_scope_head(channel_means: Floats) -> ScopeHead:
    """Fit mean and covariance of (N, F) channel means; channels that hardly vary count as if they did a little."""
    values = channel_means.astype(np.float64)
    mean, spreads = values.mean(axis=0), values.std(axis=0)
    spreads = np.maximum(spreads, _LEAST_SPREAD * spreads.mean()) + 1e-6
    standardised = (values - mean) / spreads
    variances, directions = np.linalg.eigh(standardised.T @ standardised / len(values))
    least = _RIDGE * max(float(variances.mean()), 1e-6)
    whitening = directions / np.sqrt(np.maximum(variances, 0) + least) / spreads[:, None]
    return ScopeHead(*(torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in (mean, whitening)))


def _choose_photos(nodes: Ints, leaf_nodes: Ints) -> Ints:
    """Rows of the first photos of each leaf category, in the manifest's order; any in scope where none has one."""
    order = np.argsort(nodes, kind="stable")
    ordered = nodes[order]
    place = np.arange(len(nodes)) - np.searchsorted(ordered, ordered)
    wanted = max(_PHOTOS_PER_CATEGORY, _MIN_PHOTOS // len(leaf_nodes))
    per_category = min(wanted, max(1, _MAX_PHOTOS // len(leaf_nodes)))
    chosen = np.sort(order[(place < per_category) & np.isin(ordered, leaf_nodes)])
    return chosen if len(chosen) else np.flatnonzero(nodes != OUT_OF_SCOPE)[:_MAX_PHOTOS]
