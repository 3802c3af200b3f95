"""How model B differs from model A on the same listings, through the decisions that serving makes.

Shapes: P photos, N listings, D depth of a taxonomy. Nodes and brands of B are translated into A's by their ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.comparison.common_listings import CommonListings, ExcludedLabel, PhotoLogits
from training.evaluation.ground_truth import (
    GroundTruth,
    build_ground_truth,
    evaluate_brands,
    evaluate_deepest_filled,
    evaluate_paths,
    find_labelled,
)
from training.inference.evaluated_model import EvaluatedModel
from training.statistics.paired import (
    Difference,
    adjust_holm,
    bootstrap_difference,
    bound_small_sample,
    count_differences,
)
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, get_field_name
from vision.decision import compute_prefilled
from vision.manifest import Labels
from vision.prediction.listings import ListingPredictions, predict_listings
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = [
    "LEAF",
    "CategoryChange",
    "Comparison",
    "Coverage",
    "CoverageChange",
    "EvaluatedListings",
    "FieldChange",
    "Flip",
    "compare",
    "evaluate_listings",
]

LEAF = "leaf"
_NO_NODE = -1
_NOT_IN_A = -2

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EvaluatedListings:
    """One model's predictions for N listings beside the truth, in its own indices."""

    taxonomy: Taxonomy
    calibration: Calibration
    predictions: ListingPredictions
    filled: Bools
    """(N, D + 1); the brand in the last column."""
    truth: GroundTruth

    @property
    def leaf_nodes(self) -> Ints:
        """(N,) the deepest node of each predicted path."""
        nodes = self.predictions.paths.nodes
        return np.asarray(np.take_along_axis(nodes, self.leaf_depths[:, None], axis=1)[:, 0], dtype=np.int64)

    @property
    def leaf_depths(self) -> Ints:
        """(N,) column of the deepest node."""
        return np.asarray((self.predictions.paths.nodes >= 0).sum(axis=1) - 1, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class FieldChange:
    name: str
    """`leaf`, `category_depth_1` …, or `brand`."""
    counts: Difference
    interval: tuple[float, float]
    """95 % bootstrap interval of B's accuracy minus A's; NaN for no listings."""


@dataclass(frozen=True, kw_only=True)
class CategoryChange:
    """The change on the listings labelled with one leaf category."""

    category_id: str
    name: str
    counts: Difference
    interval: tuple[float, float]
    """95 % interval, valid for a handful of listings too."""
    p_holm: float
    """McNemar's p-value, adjusted for the number of categories compared."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often one model prefills a field, and how often that is right."""

    alpha: float | None
    """Allowed share of errors; None where the model has no guarantee for this field."""
    threshold: float | None
    num_listings: int
    """All listings, with a known label or without."""
    num_filled: int
    num_known: int
    """How many of the prefilled ones have a label that decides."""
    num_right: int
    """How many of these are right."""

    @property
    def is_certified(self) -> bool:
        return self.threshold is not None

    @property
    def coverage(self) -> float:
        return self.num_filled / self.num_listings

    @property
    def precision(self) -> float:
        """NaN where nothing with a known label is prefilled."""
        return self.num_right / self.num_known if self.num_known else float("nan")


@dataclass(frozen=True, kw_only=True)
class CoverageChange:
    name: str
    a: Coverage
    b: Coverage


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A listing that one of the models gets right and the other does not."""

    field: Literal["category", "brand"]
    listing: int
    """Its number in `CommonListings`."""
    won: bool
    """B is right; otherwise A is."""
    truth: str
    predicted_a: str
    predicted_b: str
    probability_a: float
    probability_b: float
    filled_a: bool
    """Whether the field was prefilled, not only suggested."""
    filled_b: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    num_listings: int
    fields: tuple[FieldChange, ...]
    categories: tuple[CategoryChange, ...]
    """Largest drop first."""
    coverage: tuple[CoverageChange, ...]
    flips: tuple[Flip, ...]
    """Lost ones before won ones, the most confident mistakes first."""
    excluded_labels: tuple[ExcludedLabel, ...]

    def field(self, name: str) -> FieldChange:
        return next(field for field in self.fields if field.name == name)


def evaluate_listings(model: EvaluatedModel, logits: PhotoLogits, groups: Ints, labels: Labels) -> EvaluatedListings:
    """What serving would suggest and prefill, beside the truth.

    Args:
        groups: (P,) listing numbers 0…N-1.
        labels: those of the N listings, in the model's own indices.
    """
    taxonomy, calibration = model.taxonomy, model.calibration
    predictions = predict_listings(
        logits.category, logits.brand, logits.scope, groups, taxonomy=taxonomy, calibration=calibration
    )
    return EvaluatedListings(
        taxonomy=taxonomy,
        calibration=calibration,
        predictions=predictions,
        filled=compute_prefilled(predictions, taxonomy=taxonomy, calibration=calibration),
        truth=build_ground_truth(labels, taxonomy),
    )


def compare(a: EvaluatedModel, b: EvaluatedModel, listings: CommonListings, *, seed: int = 0) -> Comparison:
    """Compare B with A.

    A leaf is compared where the labelled category is a leaf of both taxonomies; a depth, where both have the same
    node there; a brand, where both know it, or neither does.
    """
    labels = listings.labels
    evaluated_a = evaluate_listings(a, listings.a, listings.groups, labels.in_a)
    evaluated_b = evaluate_listings(b, listings.b, listings.groups, labels.in_b)
    leaf = labels.categories_shared & (evaluated_a.truth.leaves >= 0) & (evaluated_b.truth.leaves >= 0)
    leaf_right = [_compute_leaf_correct(evaluated) & leaf for evaluated in (evaluated_a, evaluated_b)]
    brand_right = [
        (j.predictions.brands.labels == j.truth.brands) & labels.brands_shared for j in (evaluated_a, evaluated_b)
    ]
    fields = [_compare_field(LEAF, leaf, *leaf_right, seed=seed)]
    for name, compared, right_a, right_b in _iterate_depths(evaluated_a, evaluated_b, labels.categories_shared):
        fields.append(_compare_field(name, compared, right_a, right_b, seed=seed))
    fields.append(_compare_field(BRAND_FIELD, labels.brands_shared, *brand_right, seed=seed))
    return Comparison(
        num_listings=len(listings.listing_ids),
        fields=tuple(fields),
        categories=_compare_categories(evaluated_a, leaf, *leaf_right),
        coverage=_compare_coverage(evaluated_a, evaluated_b),
        flips=(
            *_find_category_flips(evaluated_a, evaluated_b, *leaf_right),
            *_find_brand_flips(evaluated_a, evaluated_b, *brand_right),
        ),
        excluded_labels=(
            *labels.excluded_labels,
            *_exclude_unmatched_leaves(evaluated_a, evaluated_b, labels.categories_shared),
        ),
    )


def _compute_leaf_correct(evaluated: EvaluatedListings) -> Bools:
    true_nodes = np.append(_list_leaf_nodes(evaluated.taxonomy), _NO_NODE)[evaluated.truth.leaves]
    return np.asarray(evaluated.leaf_nodes == true_nodes, dtype=np.bool_)


def _list_leaf_nodes(taxonomy: Taxonomy) -> Ints:
    return np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids], dtype=np.int64)


def _compare_field(name: str, compared: Bools, right_a: Bools, right_b: Bools, *, seed: int) -> FieldChange:
    counts = count_differences(right_a[compared], right_b[compared])
    return FieldChange(name=name, counts=counts, interval=bootstrap_difference(counts, seed=seed))


def _iterate_depths(
    a: EvaluatedListings, b: EvaluatedListings, shared: Bools
) -> Iterator[tuple[str, Bools, Bools, Bools]]:
    """The name of each depth that both have, which listings it is compared on, and where A and B are right."""
    in_a = [a.taxonomy.node_index.get(category.id, _NOT_IN_A) for category in b.taxonomy.categories]
    to_a = np.array([*in_a, _NO_NODE])
    for depth in range(min(a.taxonomy.max_depth, b.taxonomy.max_depth)):
        true_a, true_b = a.truth.nodes[:, depth], b.truth.nodes[:, depth]
        compared = shared & (true_a >= 0) & (true_a == to_a[true_b])
        right_a, right_b = (
            evaluated.predictions.paths.nodes[:, depth] == evaluated.truth.nodes[:, depth] for evaluated in (a, b)
        )
        yield get_field_name(depth + 1), compared, right_a & compared, right_b & compared


def _compare_categories(
    a: EvaluatedListings, compared: Bools, right_a: Bools, right_b: Bools
) -> tuple[CategoryChange, ...]:
    truth = a.truth.leaves
    counted = []
    for leaf in np.unique(truth[compared]).tolist():
        rows = compared & (truth == leaf)
        counted.append((a.taxonomy.leaf_ids[leaf], count_differences(right_a[rows], right_b[rows])))
    adjusted = adjust_holm([counts.p_value for _, counts in counted])
    changes = [
        CategoryChange(
            category_id=category_id,
            name=a.taxonomy.format_path(category_id),
            counts=counts,
            interval=bound_small_sample(counts),
            p_holm=p_holm,
        )
        for (category_id, counts), p_holm in zip(counted, adjusted, strict=True)
    ]
    return tuple(sorted(changes, key=lambda change: (change.counts.change, -change.counts.num_listings)))


def _compare_coverage(a: EvaluatedListings, b: EvaluatedListings) -> tuple[CoverageChange, ...]:
    depths = range(max(a.taxonomy.max_depth, b.taxonomy.max_depth))
    has_path = any(evaluated.calibration.field(PATH_FIELD) for evaluated in (a, b))
    names = [*([PATH_FIELD] * has_path), *(get_field_name(depth + 1) for depth in depths), BRAND_FIELD]
    by_name = [_compute_coverage(evaluated) for evaluated in (a, b)]
    num = len(a.filled)
    never = Coverage(alpha=None, threshold=None, num_listings=num, num_filled=0, num_known=0, num_right=0)
    return tuple(
        CoverageChange(name=name, a=by_name[0].get(name, never), b=by_name[1].get(name, never)) for name in names
    )


def _compute_coverage(evaluated: EvaluatedListings) -> dict[str, Coverage]:
    steps = evaluate_paths(evaluated.predictions.paths, evaluated.truth)
    brands = evaluate_brands(evaluated.predictions.brands.labels, evaluated.truth)
    category_known = find_labelled(evaluated.truth)
    category_filled = evaluated.filled[:, :-1]
    known = np.column_stack([category_known, steps.known, brands.known])
    right = np.column_stack([evaluate_deepest_filled(category_filled, steps), steps.right, brands.right])
    all_filled = np.column_stack([category_filled.any(axis=1), evaluated.filled])
    depths = [get_field_name(depth + 1) for depth in range(evaluated.taxonomy.max_depth)]
    coverages = {}
    for column, name in enumerate([PATH_FIELD, *depths, BRAND_FIELD]):
        filled = all_filled[:, column]
        guarantee = evaluated.calibration.field(name)
        coverages[name] = Coverage(
            alpha=guarantee.alpha if guarantee else None,
            threshold=guarantee.threshold if guarantee else None,
            num_listings=len(filled),
            num_filled=int(filled.sum()),
            num_known=int((filled & known[:, column]).sum()),
            num_right=int((filled & known[:, column] & right[:, column]).sum()),
        )
    return coverages


def _find_category_flips(a: EvaluatedListings, b: EvaluatedListings, right_a: Bools, right_b: Bools) -> list[Flip]:
    nodes = [evaluated.leaf_nodes for evaluated in (a, b)]
    depths = [evaluated.leaf_depths for evaluated in (a, b)]
    true_nodes = _list_leaf_nodes(a.taxonomy)
    flips = []
    for listing in np.flatnonzero(right_a != right_b).tolist():
        predicted, probabilities, filled = [], [], []
        for evaluated, node, depth in zip((a, b), nodes, depths, strict=True):
            predicted.append(_format_path(evaluated.taxonomy, int(node[listing])))
            probabilities.append(float(evaluated.predictions.paths.scores[listing, depth[listing]]))
            filled.append(bool(evaluated.filled[listing, depth[listing]]))
        flips.append(
            Flip(
                field="category",
                listing=listing,
                won=bool(right_b[listing]),
                truth=_format_path(a.taxonomy, int(true_nodes[a.truth.leaves[listing]])),
                predicted_a=predicted[0],
                predicted_b=predicted[1],
                probability_a=probabilities[0],
                probability_b=probabilities[1],
                filled_a=filled[0],
                filled_b=filled[1],
            )
        )
    return sorted(flips, key=_get_flip_sort_key)


def _find_brand_flips(a: EvaluatedListings, b: EvaluatedListings, right_a: Bools, right_b: Bools) -> list[Flip]:
    flips = []
    for listing in np.flatnonzero(right_a != right_b).tolist():
        (predicted_a, p_a), (predicted_b, p_b) = (
            (
                _format_brand(j.taxonomy, int(j.predictions.brands.labels[listing])),
                float(j.predictions.brands.scores[listing]),
            )
            for j in (a, b)
        )
        flips.append(
            Flip(
                field="brand",
                listing=listing,
                won=bool(right_b[listing]),
                truth=_format_brand(a.taxonomy, int(a.truth.brands[listing])),
                predicted_a=predicted_a,
                predicted_b=predicted_b,
                probability_a=p_a,
                probability_b=p_b,
                filled_a=bool(a.filled[listing, -1]),
                filled_b=bool(b.filled[listing, -1]),
            )
        )
    return sorted(flips, key=_get_flip_sort_key)


def _get_flip_sort_key(flip: Flip) -> tuple[bool, float, int]:
    return flip.won, -(flip.probability_a if flip.won else flip.probability_b), flip.listing


def _format_path(taxonomy: Taxonomy, node: int) -> str:
    return taxonomy.format_path(taxonomy.categories[node].id)


def _format_brand(taxonomy: Taxonomy, index: int) -> str:
    return taxonomy.other_brand if index == OTHER_BRAND else taxonomy.brand_labels[index]


def _exclude_unmatched_leaves(a: EvaluatedListings, b: EvaluatedListings, shared: Bools) -> list[ExcludedLabel]:
    """Labels that are a leaf of one taxonomy and an inner node of the other, which no predicted leaf can match."""
    excluded = []
    for has, lacks, node_of in ((a, b, a.truth.leaves), (b, a, b.truth.leaves)):
        only = shared & (node_of >= 0) & (lacks.truth.leaves < 0)
        leaves, counts = np.unique(node_of[only], return_counts=True)
        excluded += [
            ExcludedLabel(
                field="category",
                label=has.taxonomy.format_path(has.taxonomy.leaf_ids[leaf]),
                reason="a leaf of A only" if has is a else "a leaf of B only",
                num_listings=num,
            )
            for leaf, num in zip(leaves.tolist(), counts.tolist(), strict=True)
        ]
    return excluded
