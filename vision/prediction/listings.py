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
from vision.prediction.fusion import (
    compute_brand_probabilities,
    compute_leaf_probabilities,
    fuse_brand_logits,
    fuse_logits,
)
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

    def take(self, rows: slice) -> "Brands":
        return Brands(self.labels[rows], self.scores[rows], self.fillable[rows])


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
    """What the photos of N listings say together, and where it was asked for, each of the P photos alone."""

    leaves: Floats
    """(N, C) leaf probabilities."""
    brand_logits: Floats
    """(N, B) before temperature and prior."""
    brand_probabilities: Floats
    """(N, B)."""
    photo_leaves: Floats | None
    """(P, C) leaf probabilities."""
    photo_brands: Brands | None
    """The brands of the P photos."""


def predict_paths(leaf_probabilities: Floats, taxonomy: Taxonomy) -> Paths:
    """Return the path from root to likeliest leaf of each row, with the probability of each step."""
    nodes = taxonomy.leaf_paths[leaf_probabilities.argmax(axis=1)]
    scores = np.empty(nodes.shape)
    for begin in range(0, len(nodes), _LISTINGS_PER_CHUNK):
        rows = slice(begin, begin + _LISTINGS_PER_CHUNK)
        below = taxonomy.tree.paths == nodes[rows, :, None]
        np.einsum("nc,ndc->nd", leaf_probabilities[rows], below, out=scores[rows])
    scores[nodes < 0] = 0.0
    # Sums of the same numbers in another order may differ in their last digit; a parent must not be below its child.
    scores = np.maximum.accumulate(scores[:, ::-1], axis=1)[:, ::-1]
    num_fillable = np.full(len(nodes), taxonomy.max_depth)
    return Paths(nodes, np.minimum(scores, 1.0), num_fillable)


def predict_brands(fused_logits: Floats, calibration: Calibration) -> Brands:
    """Return the predicted brand of each row of `fuse_brand_logits`."""
    return _choose_brands(fused_logits, compute_brand_probabilities(fused_logits, calibration), calibration)


def _choose_brands(fused_logits: Floats, probabilities: Floats, calibration: Calibration) -> Brands:
    rows, labels = np.arange(len(fused_logits)), probabilities.argmax(axis=1)
    scores = probabilities[rows, labels]
    if calibration.unknown_brand_below is not None:
        unknown = (labels > 0) & (fused_logits[rows, labels] < calibration.unknown_brand_below)
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
    each_photo: bool = False,
) -> tuple[FusedPhotos, ListingPredictions]:
    """Predict N listings at once as `predict_listings` does, and return also what was fused.

    Args:
        each_photo: whether to predict each photo alone too.
        ancestor: the category, as an index into `taxonomy.categories`, below which the paths are to lie; no step and no
            brand is then fillable, because nothing is certified under such a hint.
    """
    selection = select_photos(category_logits, brand_logits, scope_scores, groups, calibration)
    used = slice(None) if selection.used.all() else np.flatnonzero(selection.used)
    used_groups = groups[used]
    fused, brands = _fuse_photos(
        category_logits,
        brand_logits,
        used,
        used_groups,
        taxonomy=taxonomy,
        calibration=calibration,
        each_photo=each_photo,
    )
    paths = predict_paths(fused.leaves, taxonomy)
    contradicts = find_contradictions(
        category_logits[used],
        used_groups,
        paths.nodes,
        calibration,
        taxonomy,
        photo_leaves=None if fused.photo_leaves is None else fused.photo_leaves[used],
    )
    in_scope, disagree = selection.listings_in_scope, np.zeros(len(groups), dtype=bool)
    if contradicts.any():
        num_agreed, disagree[used] = _merge_contradictions(contradicts, used_groups, num_listings=len(fused.leaves))
        brands.fillable[:] = num_agreed == taxonomy.max_depth
        paths.num_fillable[:] = num_agreed
    np.logical_and(brands.fillable, in_scope, out=brands.fillable)
    np.multiply(paths.num_fillable, in_scope, out=paths.num_fillable)
    if ancestor is not None:
        fused = fused._replace(leaves=_restrict_leaves(fused.leaves, ancestor, taxonomy))
        paths = predict_paths(fused.leaves, taxonomy)
        paths.num_fillable[:] = 0
        brands.fillable[:] = False
    return fused, ListingPredictions(paths, brands, in_scope, selection.used, selection.in_scope, disagree)


def _fuse_photos(
    category_logits: Floats,
    brand_logits: Floats,
    used: Ints | slice,
    used_groups: Ints,
    *,
    taxonomy: Taxonomy,
    calibration: Calibration,
    each_photo: bool,
) -> tuple[FusedPhotos, Brands]:
    """Fuse the used photos; return also the brands of the N listings."""
    fused = fuse_logits(category_logits[used], used_groups, how="mean")
    fused_brands = fuse_brand_logits(brand_logits[used], used_groups, calibration)
    num_listings = len(fused)
    if each_photo:  # as further rows: for a few photos, a call costs more than what it computes
        fused = np.concatenate([fused, category_logits])
        fused_brands = np.concatenate([fused_brands, brand_logits])
    leaves = compute_leaf_probabilities(fused, None, calibration, taxonomy)
    probabilities = compute_brand_probabilities(fused_brands, calibration)
    brands = _choose_brands(fused_brands, probabilities, calibration)
    if not each_photo:
        return FusedPhotos(leaves, fused_brands, probabilities, None, None), brands
    listings, photos = slice(num_listings), slice(num_listings, None)
    return FusedPhotos(
        leaves[listings],
        fused_brands[listings],
        probabilities[listings],
        leaves[photos],
        brands.take(photos),
    ), brands.take(listings)


def _merge_contradictions(
    contradicts: npt.NDArray[np.bool_], groups: Ints, *, num_listings: int
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return (N,) steps on which the photos of each listing agree, and (P,) whether each contradicts the next one."""
    max_depth = contradicts.shape[1]
    contradicted = np.zeros((num_listings, max_depth), dtype=bool)
    np.logical_or.at(contradicted, groups, contradicts)
    num_agreed = np.where(contradicted.any(axis=1), contradicted.argmax(axis=1), max_depth)
    return num_agreed, contradicts[np.arange(len(groups)), np.minimum(num_agreed[groups], max_depth - 1)]


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
