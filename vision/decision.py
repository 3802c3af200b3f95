"""Turn logits into a suggestion: one implementation for evaluation, gateway, `classify` and backfill. NumPy only.

Photos of a listing are fused first; from there on a row is a listing. Shapes: P photos, N listings,
C leaf categories, B brand labels (0 is 'no brand'), V nodes of the tree, D its depth.
"""

import itertools
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vision.calibration import BRAND_FIELD, Calibration, FieldGuarantee
from vision.suggestion import (
    BrandAlternative,
    BrandSuggestion,
    CategorySuggestion,
    LeafAlternative,
    NotPrefilled,
    Suggestion,
)
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = [
    "ONLY_CATEGORY",
    "Brands",
    "ListingPredictions",
    "Paths",
    "compute_brand_probabilities",
    "compute_brand_scores",
    "compute_leaf_probabilities",
    "compute_node_probabilities",
    "compute_path_scores",
    "compute_prefilled",
    "decide",
    "explain_uncertified",
    "fuse_brand_logits",
    "fuse_logits",
    "predict_brands",
    "predict_listings",
    "predict_paths",
    "softmax",
]

_MIN_PROBABILITY = 1e-300
ONLY_CATEGORY = "the only category at this depth: prefilled when the one below it is"
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


class Brands(NamedTuple):
    labels: Ints
    """(N,) brand labels, or `OTHER_BRAND`."""
    scores: Floats
    """(N,) probability of the label; 0 for `OTHER_BRAND`."""


class ListingPredictions(NamedTuple):
    """Predicted paths and brands of N listings."""

    paths: Paths
    brands: Brands


def softmax(logits: Floats) -> Floats:
    """Return (N, C) float64 probabilities of each row."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def fuse_logits(logits: Floats, groups: Ints, *, how: Literal["mean", "max"]) -> Floats:
    """Fuse (P, K) logits of photos to (N, K) float64 logits of listings; row i of the result is group i.

    Args:
        groups: (P,) numbers 0…N-1, each at least once.
    """
    fused: Floats
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


def compute_leaf_probabilities(logits: Floats, groups: Ints, calibration: Calibration, taxonomy: Taxonomy) -> Floats:
    """Return (N, C) leaf probabilities of listings from (P, C) logits of photos."""
    fused = _add_prior(fuse_logits(logits, groups, how="mean"), calibration.category_log_prior)
    leaves = softmax(fused / calibration.category_temperature)
    if not calibration.category_depth_temperatures:
        return leaves
    return _apply_depth_temperatures(leaves, calibration.category_depth_temperatures, taxonomy)


def fuse_brand_logits(logits: Floats, groups: Ints, calibration: Calibration) -> Floats:
    """Return (N, B) fused logits, before temperature and prior, from (P, B) logits of photos."""
    return fuse_logits(logits, groups, how=calibration.brand_fusion)


def compute_node_probabilities(leaf_probabilities: Floats, taxonomy: Taxonomy) -> Floats:
    """Return (N, V) probabilities of nodes, each the sum of the leaves below it."""
    sums = np.zeros((len(leaf_probabilities), len(taxonomy.categories)))
    for groups in taxonomy.leaf_groups:
        sums[:, groups.nodes] = np.add.reduceat(leaf_probabilities[:, groups.order], groups.starts, axis=1)
    return np.minimum(sums, 1.0)


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
    return Paths(nodes, np.where(nodes >= 0, np.minimum(scores, 1.0), 0.0))


def predict_brands(fused_logits: Floats, calibration: Calibration) -> Brands:
    """Return the predicted brand of each row of `fuse_brand_logits`."""
    probabilities = compute_brand_probabilities(fused_logits, calibration)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    if calibration.unknown_brand_below is not None:
        best_logits = np.take_along_axis(fused_logits, labels[:, None], axis=1)[:, 0]
        unknown = (labels > 0) & (best_logits < calibration.unknown_brand_below)
        labels[unknown], scores[unknown] = OTHER_BRAND, 0.0
    return Brands(labels, scores)


def predict_listings(
    category_logits: Floats, brand_logits: Floats, groups: Ints, *, taxonomy: Taxonomy, calibration: Calibration
) -> ListingPredictions:
    """Predict N listings from the (P, C) and (P, B) logits of their photos, in bounded memory.

    Args:
        groups: (P,) listing numbers 0…N-1, each at least once.
    """
    order = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(
        groups[order], np.arange(0, int(groups.max()) + 1 + _LISTINGS_PER_CHUNK, _LISTINGS_PER_CHUNK)
    )
    paths, brands = [], []
    for begin, end in itertools.pairwise(bounds.tolist()):
        photos = order[begin:end]
        chunk_groups = groups[photos] - groups[photos[0]]
        leaves = compute_leaf_probabilities(category_logits[photos], chunk_groups, calibration, taxonomy)
        paths.append(predict_paths(leaves, taxonomy))
        brands.append(predict_brands(fuse_brand_logits(brand_logits[photos], chunk_groups, calibration), calibration))
    return ListingPredictions(
        Paths(*(np.concatenate(parts) for parts in zip(*paths, strict=True))),
        Brands(*(np.concatenate(parts) for parts in zip(*brands, strict=True))),
    )


def compute_path_scores(paths: Paths, taxonomy: Taxonomy) -> Floats:
    """Return (N, D) scores to compare with thresholds: the probability, or -inf where a step is never filled.

    A step is never filled beyond a path's end, for a catch-all category and for all categories below it.
    """
    return np.where((paths.nodes >= 0) & taxonomy.fillable[paths.nodes], paths.scores, -np.inf)


def compute_brand_scores(brands: Brands) -> Floats:
    """Return (N,) scores to compare with the threshold; -inf for an unknown brand, which cannot be filled."""
    return np.where(brands.labels >= 0, brands.scores, -np.inf)


def compute_prefilled(
    predictions: ListingPredictions, *, taxonomy: Taxonomy, calibration: Calibration
) -> npt.NDArray[np.bool_]:
    """Return (N, D + 1) whether each depth's field is filled; the last column is the brand's.

    A filled step implies that all steps above it are filled. The sole category of the top depths, where the taxonomy
    has one root for all, is filled when the step below it is.
    """
    num_rows, max_depth = predictions.paths.nodes.shape
    scores = compute_path_scores(predictions.paths, taxonomy)
    filled = np.ones((num_rows, max_depth + 1), dtype=bool)
    for depth in np.flatnonzero(taxonomy.decides_at_depth):
        filled[:, depth] = scores[:, depth] >= _get_threshold(calibration.get_category_guarantee(int(depth) + 1))
    filled[:, :-1] = np.logical_and.accumulate(filled[:, :-1], axis=1)
    for depth in np.flatnonzero(~taxonomy.decides_at_depth)[::-1]:
        filled[:, depth] = filled[:, depth + 1] if depth + 1 < max_depth else False
    filled[:, -1] = compute_brand_scores(predictions.brands) >= _get_threshold(calibration.field(BRAND_FIELD))
    return filled


def decide(
    category_logits: Floats,
    brand_logits: Floats,
    *,
    taxonomy: Taxonomy,
    calibration: Calibration,
    num_alternatives: int = 5,
) -> Suggestion:
    """Return the suggestion for one listing from the logits of its photos, (P, C) and (P, B), P at least 1."""
    one_listing = np.zeros(len(category_logits), dtype=np.int64)
    leaves = compute_leaf_probabilities(category_logits, one_listing, calibration, taxonomy)
    paths = predict_paths(leaves, taxonomy)
    fused_brands = fuse_brand_logits(brand_logits, one_listing, calibration)
    brands = predict_brands(fused_brands, calibration)
    filled = compute_prefilled(ListingPredictions(paths, brands), taxonomy=taxonomy, calibration=calibration)[0]
    steps = []
    for depth, node in enumerate(paths.nodes[0]):
        if node < 0:
            break
        probability = float(paths.scores[0, depth])
        not_prefilled = None
        if not filled[depth]:
            field = calibration.get_category_guarantee(depth + 1)
            not_prefilled = (
                _explain_suggestion(field, probability, catch_all=not taxonomy.fillable[node])
                if taxonomy.decides_at_depth[depth]
                else NotPrefilled(code="ONLY_CATEGORY", message=ONLY_CATEGORY)
            )
        steps.append(
            CategorySuggestion(
                category_id=taxonomy.categories[int(node)].id,
                depth=depth + 1,
                probability=probability,
                not_prefilled=not_prefilled,
            )
        )
    return Suggestion(
        path=tuple(steps),
        brand=_suggest_brand(int(brands.labels[0]), float(brands.scores[0]), calibration, filled=bool(filled[-1])),
        alternatives=tuple(
            LeafAlternative(category_id=taxonomy.leaf_ids[int(leaf)], probability=float(leaves[0, leaf]))
            for leaf in _select_best(leaves[0], num_alternatives)
        ),
        brand_alternatives=_select_brand_alternatives(fused_brands, calibration, num_alternatives),
    )


def explain_uncertified(field: FieldGuarantee) -> NotPrefilled:
    """Return why a field without a threshold is never prefilled."""
    counts_matter = field.uncertified_code == "NOT_CERTIFIED" and field.num_required is not None
    return NotPrefilled(
        code=field.uncertified_code,
        message=field.uncertified_reason,
        num_listings=field.num_listings if counts_matter else None,
        num_required=field.num_required if counts_matter else None,
    )


def _suggest_brand(brand_index: int, probability: float, calibration: Calibration, *, filled: bool) -> BrandSuggestion:
    if filled:
        not_prefilled = None
    elif brand_index == OTHER_BRAND:
        not_prefilled = NotPrefilled(code="OTHER_BRAND", message="no brand of the taxonomy is likely enough")
    else:
        not_prefilled = _explain_suggestion(calibration.field(BRAND_FIELD), probability)
    return BrandSuggestion(brand_index=brand_index, probability=probability, not_prefilled=not_prefilled)


def _select_brand_alternatives(
    fused_logits: Floats, calibration: Calibration, num_wanted: int
) -> tuple[BrandAlternative, ...]:
    probabilities = compute_brand_probabilities(fused_logits, calibration)[0]
    return tuple(
        BrandAlternative(brand_index=int(label), probability=float(probabilities[label]))
        for label in _select_best(probabilities, num_wanted)
    )


def _apply_depth_temperatures(leaves: Floats, temperatures: tuple[float, ...], taxonomy: Taxonomy) -> Floats:
    """(N, C) leaf probabilities as products of shares among siblings, each to the power of 1 / its depth's temperature.

    One temperature does not fit all depths: the mass that label smoothing gives to wrong leaves adds up over the tree,
    so that a model with a calibrated leaf is underconfident about the root.
    """
    found = np.empty_like(leaves)
    sums_above, above = leaves.sum(axis=1, keepdims=True), np.ones((len(leaves), 1))
    for groups, temperature in zip(taxonomy.leaf_groups, temperatures, strict=True):
        sums = np.add.reduceat(leaves[:, groups.order], groups.starts, axis=1)
        shares = (sums / np.maximum(sums_above[:, groups.parents], _MIN_PROBABILITY)) ** (1 / temperature)
        totals = np.add.reduceat(shares[:, groups.sibling_order], groups.sibling_starts, axis=1)
        here = above[:, groups.parents] * shares / np.maximum(totals[:, groups.sibling_sets], _MIN_PROBABILITY)
        found[:, groups.ending_leaves] = here[:, groups.ending_nodes]
        sums_above, above = sums, here
    return found


def _add_prior(logits: Floats, log_prior: tuple[float, ...]) -> Floats:
    return logits + np.asarray(log_prior) if log_prior else logits


def compute_brand_probabilities(fused_logits: Floats, calibration: Calibration) -> Floats:
    """Return (N, B) brand probabilities of rows of `fuse_brand_logits`."""
    return softmax(_add_prior(fused_logits, calibration.brand_log_prior) / calibration.brand_temperature)


def _select_best(probabilities: Floats, num_wanted: int) -> Ints:
    """The indices of the largest, largest first; among equals the lowest index first."""
    candidates = np.arange(len(probabilities))
    if 0 < num_wanted < len(probabilities):
        candidates = np.flatnonzero(probabilities >= np.partition(probabilities, -num_wanted)[-num_wanted])
    return candidates[np.argsort(-probabilities[candidates], kind="stable")][:num_wanted]


def _get_threshold(field: FieldGuarantee | None) -> float:
    return np.inf if field is None or field.threshold is None else field.threshold


def _explain_suggestion(field: FieldGuarantee | None, probability: float, *, catch_all: bool = False) -> NotPrefilled:
    if field is None:
        return NotPrefilled(code="NOT_CALIBRATED", message="this model carries no guarantee for this field")
    if catch_all:
        message = "a category for what fits nowhere else is never filled in"
        return NotPrefilled(code="CATCH_ALL_CATEGORY", message=message)
    if field.threshold is None:
        return explain_uncertified(field)
    if probability < field.threshold:
        message = f"probability {probability:.3f} is below the certified threshold {field.threshold:.3f}"
        return NotPrefilled(code="BELOW_THRESHOLD", message=message, threshold=field.threshold)
    return NotPrefilled(code="PARENT_NOT_PREFILLED", message="the level above is not filled")
