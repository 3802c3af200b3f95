"""Predict paths and brands of listings from the logits of their photos. NumPy only.

The photos that decide are selected first, then fused; from there on a row is a listing. Shapes: P photos, N listings,
C leaf categories, B brand labels (0 is 'no brand'), D the depth of the tree.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vision.calibration import Calibration
from vision.prediction.agreement import find_contradictions
from vision.prediction.fusion import compute_brand_probabilities, compute_leaf_probabilities, fuse_brand_logits
from vision.prediction.photo_selection import select_photos
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = [
    "Brands",
    "FusedPhotos",
    "ListingPredictions",
    "Paths",
    "compute_brand_scores",
    "compute_path_scores",
    "predict_brands",
    "predict_fused",
    "predict_listings",
    "predict_paths",
]

_MIN_PROBABILITY = 1e-300
_LISTINGS_PER_CHUNK = 64
"""Listings processed at a time; bounds the memory."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


class Paths(NamedTuple):
    """The suggested path of each row; -1 and 0.0 beyond a path's end."""

    nodes: Ints
    """(N, D) index into `taxonomy.categories`."""
    scores: Floats
    """(N, D) node probability."""
    num_fillable: Ints
    """(N,) steps that may be filled, from the root down: those on which the photos agree, none out of scope."""


class Brands(NamedTuple):
    labels: Ints
    """(N,) brand labels, or `OTHER_BRAND`."""
    scores: Floats
    """(N,) probability of the label; 0 for `OTHER_BRAND`."""
    fillable: npt.NDArray[np.bool_]
    """(N,) whether the photos show one thing, which the taxonomy covers."""


class ListingPredictions(NamedTuple):
    """Predicted paths and brands of N listings."""

    paths: Paths
    brands: Brands
    in_scope: npt.NDArray[np.bool_]
    """(N,) whether the taxonomy covers what is shown; see `vision.prediction.photo_selection`."""
    photos_used: npt.NDArray[np.bool_]
    """(P,) whether the photo takes part."""
    photos_in_scope: npt.NDArray[np.bool_]
    """(P,) whether the taxonomy covers what the photo shows."""
    photos_disagree: npt.NDArray[np.bool_]
    """(P,) whether the photo contradicts the first step on which the photos of its listing do not agree."""


class FusedPhotos(NamedTuple):
    """What the photos of N listings say together."""

    leaves: Floats
    """(N, C) leaf probabilities."""
    brand_logits: Floats
    """(N, B) before temperature and prior."""


def predict_paths(leaf_probabilities: Floats, taxonomy: Taxonomy) -> Paths:
    """Return the path from root to likeliest leaf of each row, with the probability of each step."""
    nodes = taxonomy.leaf_paths[leaf_probabilities.argmax(axis=1)]
    scores = np.zeros(nodes.shape)
    for begin in range(0, len(nodes), _LISTINGS_PER_CHUNK):
        rows = slice(begin, begin + _LISTINGS_PER_CHUNK)
        for depth in range(taxonomy.max_depth):
            below = taxonomy.leaf_paths[None, :, depth] == nodes[rows, depth, None]
            scores[rows, depth] = np.einsum("nc,nc->n", leaf_probabilities[rows], below)
    # Sums of the same numbers in another order may differ in their last digit; a parent must not be below its child.
    scores = np.maximum.accumulate(np.where(nodes >= 0, scores, 0.0)[:, ::-1], axis=1)[:, ::-1]
    num_fillable = np.full(len(nodes), taxonomy.max_depth)
    return Paths(nodes, np.where(nodes >= 0, np.minimum(scores, 1.0), 0.0), num_fillable)


def predict_brands(fused_logits: Floats, calibration: Calibration) -> Brands:
    """Return the predicted brand of each row of `fuse_brand_logits`."""
    probabilities = compute_brand_probabilities(fused_logits, calibration)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    if calibration.unknown_brand_below is not None:
        best_logits = np.take_along_axis(fused_logits, labels[:, None], axis=1)[:, 0]
        unknown = (labels > 0) & (best_logits < calibration.unknown_brand_below)
        labels[unknown], scores[unknown] = OTHER_BRAND, 0.0
    return Brands(labels, scores, np.ones(len(labels), dtype=bool))


def predict_listings(
    category_logits: Floats,
    brand_logits: Floats,
    scope_scores: Floats,
    groups: Ints,
    *,
    taxonomy: Taxonomy,
    calibration: Calibration,
) -> ListingPredictions:
    """Predict N listings from the (P, C) and (P, B) logits of their photos, in bounded memory.

    Args:
        scope_scores: (P,); photos out of scope have no part in a listing that has others.
        groups: (P,) listing numbers 0…N-1, each at least once.
    """
    order = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(
        groups[order], np.arange(0, int(groups.max()) + 1 + _LISTINGS_PER_CHUNK, _LISTINGS_PER_CHUNK)
    )
    chunks = []
    for begin, end in itertools.pairwise(bounds.tolist()):
        photos = order[begin:end]
        _, predictions = predict_fused(
            category_logits[photos],
            brand_logits[photos],
            scope_scores[photos],
            groups[photos] - groups[photos[0]],
            taxonomy=taxonomy,
            calibration=calibration,
        )
        chunks.append(predictions)
    original = np.argsort(order)
    return ListingPredictions(
        Paths(*(np.concatenate(parts) for parts in zip(*(chunk.paths for chunk in chunks), strict=True))),
        Brands(*(np.concatenate(parts) for parts in zip(*(chunk.brands for chunk in chunks), strict=True))),
        np.concatenate([chunk.in_scope for chunk in chunks]),
        np.concatenate([chunk.photos_used for chunk in chunks])[original],
        np.concatenate([chunk.photos_in_scope for chunk in chunks])[original],
        np.concatenate([chunk.photos_disagree for chunk in chunks])[original],
    )


def predict_fused(
    category_logits: Floats,
    brand_logits: Floats,
    scope_scores: Floats,
    groups: Ints,
    *,
    taxonomy: Taxonomy,
    calibration: Calibration,
    ancestor: int | None = None,
) -> tuple[FusedPhotos, ListingPredictions]:
    """Predict N listings at once as `predict_listings` does, and return also what was fused.

    Args:
        ancestor: the category, as an index into `taxonomy.categories`, below which the paths are to lie; no step is
            then fillable, because nothing is certified under such a hint.
    """
    selection = select_photos(category_logits, brand_logits, scope_scores, groups, calibration)
    used = np.flatnonzero(selection.used)
    category_logits, used_groups = category_logits[used], groups[used]
    leaves = compute_leaf_probabilities(category_logits, used_groups, calibration, taxonomy)
    paths = predict_paths(leaves, taxonomy)
    contradicts = find_contradictions(category_logits, used_groups, paths.nodes, calibration, taxonomy)
    contradicted = np.zeros(paths.nodes.shape, dtype=bool)
    np.logical_or.at(contradicted, used_groups, contradicts)
    num_agreed = np.where(contradicted.any(axis=1), contradicted.argmax(axis=1), paths.nodes.shape[1])
    photos_disagree = np.zeros(len(groups), dtype=bool)
    first_step = np.minimum(num_agreed[used_groups], contradicts.shape[1] - 1)
    photos_disagree[used] = contradicts[np.arange(len(used)), first_step]
    in_scope = selection.listings_in_scope
    fused_brands = fuse_brand_logits(brand_logits[used], used_groups, calibration)
    brands = predict_brands(fused_brands, calibration)._replace(fillable=in_scope & ~contradicted.any(axis=1))
    if ancestor is None:
        paths = paths._replace(num_fillable=np.where(in_scope, num_agreed, 0))
    else:
        leaves = _restrict_leaves(leaves, ancestor, taxonomy)
        paths = predict_paths(leaves, taxonomy)._replace(num_fillable=np.zeros(len(leaves), dtype=np.int64))
    return FusedPhotos(leaves, fused_brands), ListingPredictions(
        paths, brands, in_scope, selection.used, selection.in_scope, photos_disagree
    )


def _restrict_leaves(leaves: Floats, ancestor: int, taxonomy: Taxonomy) -> Floats:
    """(N, C) probabilities, given that the product belongs below the ancestor."""
    below = np.maximum(leaves, _MIN_PROBABILITY) * (taxonomy.leaf_paths == ancestor).any(axis=1)
    restricted: Floats = below / below.sum(axis=1, keepdims=True)
    return restricted


def compute_path_scores(paths: Paths, taxonomy: Taxonomy) -> Floats:
    """Return (N, D) scores to compare with thresholds: the probability, or -inf where a step is never filled.

    A step is never filled beyond a path's end, for a catch-all category and all categories below it, and where it is
    not fillable.
    """
    fillable = np.arange(paths.nodes.shape[1]) < paths.num_fillable[:, None]
    return np.where((paths.nodes >= 0) & taxonomy.fillable[paths.nodes] & fillable, paths.scores, -np.inf)


def compute_brand_scores(brands: Brands) -> Floats:
    """Return (N,) scores to compare with the threshold; -inf for one that cannot be filled."""
    return np.where((brands.labels >= 0) & brands.fillable, brands.scores, -np.inf)
