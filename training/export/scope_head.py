"""The scope head of an exported model, fitted on embeddings of training photos."""

import logging

import numpy as np
import numpy.typing as npt
import torch

from training.inference.predictions import iterate_usable_photos
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.model import ListingClassifier, ScopeHead
from vision.taxonomy import Taxonomy

__all__ = ["add_scope_head", "fit_scope_head"]

_log = logging.getLogger(__name__)

MAX_DIRECTIONS = 64
_PHOTOS_PER_CATEGORY = 16
_MAX_PHOTOS = 20_000

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def add_scope_head(model: ListingClassifier, train: Manifest, taxonomy: Taxonomy, preprocessing: Preprocessing) -> None:
    """Fit a scope head to the model's embeddings of at most 16 training photos a category, and attach it.

    Raises:
        ManifestError: no photo can be used.
    """
    nodes = train.resolve_labels(taxonomy).category_nodes
    chosen = _choose_photos(nodes, np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids]))
    embeddings: list[npt.NDArray[np.float32]] = []
    unusable: list[str] = []
    for _, photos in iterate_usable_photos(train.take(chosen), preprocessing, unusable=unusable):
        with torch.inference_mode():
            embeddings.append(model(torch.from_numpy(photos)).embedding.numpy())
    for photo in unusable:
        _log.warning("left out of the scope score: %s", photo)
    model.scope_head = fit_scope_head(np.concatenate(embeddings))


def fit_scope_head(embeddings: Floats) -> ScopeHead:
    """Fit the principal directions of the normalised embeddings, (N, D), about the origin."""
    normalised = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    products = normalised.astype(np.float64).T @ normalised.astype(np.float64)
    directions = np.linalg.eigh(products).eigenvectors[:, ::-1][:, : min(MAX_DIRECTIONS, *embeddings.shape)]
    return ScopeHead(torch.from_numpy(np.ascontiguousarray(directions, dtype=np.float32)))


def _choose_photos(nodes: Ints, leaf_nodes: Ints) -> Ints:
    """Rows of the first photos of each leaf category, in the manifest's order; any rows where none has one."""
    order = np.argsort(nodes, kind="stable")
    ordered = nodes[order]
    place = np.arange(len(nodes)) - np.searchsorted(ordered, ordered)
    per_category = min(_PHOTOS_PER_CATEGORY, max(1, _MAX_PHOTOS // len(leaf_nodes)))
    chosen = np.sort(order[(place < per_category) & np.isin(ordered, leaf_nodes)])
    return chosen if len(chosen) else np.arange(min(len(nodes), _MAX_PHOTOS))
