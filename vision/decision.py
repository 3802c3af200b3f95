"""Turn logits into a suggestion: one implementation for evaluation, gateway, `classify` and backfill. NumPy only.

A row is a listing. Shapes: P photos, N listings, C leaf categories, B brand labels (0 is 'no brand'), D the depth of
the tree.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from vision.calibration import BRAND_FIELD, Calibration, FieldGuarantee
from vision.prediction.listings import (
    Brands,
    ListingPredictions,
    compute_brand_scores,
    compute_path_scores,
    predict_fused,
)
from vision.suggestion import (
    BrandAlternative,
    BrandSuggestion,
    CategorySuggestion,
    LeafAlternative,
    NotPrefilled,
    PhotoRecognition,
    Suggestion,
    format_shortfall,
)
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = [
    "ONLY_CATEGORY",
    "compute_prefilled",
    "decide",
    "explain_uncertified",
]

_OUT_OF_SCOPE = NotPrefilled(code="OUT_OF_SCOPE", message="the photos show nothing that this model's categories cover")
_PHOTOS_DISAGREE = NotPrefilled(code="PHOTOS_DISAGREE", message="the photos show different things")
_ANCESTOR_GIVEN = NotPrefilled(
    code="ANCESTOR_GIVEN", message="the request names a category, and no guarantee holds under such a hint"
)
ONLY_CATEGORY = "the only category at this depth: prefilled when the one below it is"
_MANY = 300
"""Numbers to sort whole in 10 us; with more of them, selecting the best first is faster."""

Floats = npt.NDArray[np.floating]


def compute_prefilled(
    predictions: ListingPredictions, *, taxonomy: Taxonomy, calibration: Calibration
) -> npt.NDArray[np.bool_]:
    """Return (N, D + 1) whether each depth's field is filled; the last column is the brand's.

    A filled step implies that all steps above it are filled. The sole category of the top depths, where the taxonomy
    has one root for all, is filled when the step below it is.
    """
    num_rows, max_depth = predictions.paths.nodes.shape
    reached = compute_path_scores(predictions.paths, taxonomy) >= calibration.get_category_thresholds(max_depth)
    num_sole = taxonomy.num_sole_depths
    reached[:, :num_sole] = True
    filled = np.zeros((num_rows, max_depth + 1), dtype=bool)
    np.logical_and.accumulate(reached, axis=1, out=filled[:, :-1])
    filled[:, :num_sole] = filled[:, num_sole : num_sole + 1]  # False where no depth decides: the brand's follows
    filled[:, -1] = compute_brand_scores(predictions.brands) >= _get_threshold(calibration.field(BRAND_FIELD))
    return filled


def decide(
    category_logits: Floats,
    brand_logits: Floats,
    scope_scores: Floats,
    *,
    taxonomy: Taxonomy,
    calibration: Calibration,
    num_alternatives: int = 5,
    ancestor: int | None = None,
) -> Suggestion:
    """Return the suggestion for one listing from logits, (P, C) and (P, B), and scope scores, (P,), of its photos.

    P is at least 1.

    Args:
        ancestor: see `predict_fused`.
    """
    fused, predictions = predict_fused(
        category_logits,
        brand_logits,
        scope_scores,
        np.zeros(len(category_logits), dtype=np.int64),
        taxonomy=taxonomy,
        calibration=calibration,
        ancestor=ancestor,
        each_photo=len(category_logits) > 1,
    )
    path = _suggest_path(predictions, taxonomy, calibration, has_ancestor=ancestor is not None)
    brand = _suggest_brand(predictions, calibration, has_ancestor=ancestor is not None) if taxonomy.brands else None
    return Suggestion(
        path=path,
        brand=brand,
        alternatives=tuple(
            LeafAlternative(category_id=taxonomy.leaf_ids[leaf], probability=probability)
            for leaf, probability in _select_best(fused.leaves[0], num_alternatives)
            if ancestor is None or probability > 0
        ),
        brand_alternatives=tuple(
            BrandAlternative(brand_index=label, probability=probability)
            for label, probability in _select_best(fused.brand_probabilities[0], num_alternatives)
        )
        if taxonomy.brands
        else (),
        in_scope=bool(predictions.in_scope[0]),
        photos=_recognise_photos(fused.photo_leaves, fused.photo_brands, predictions, taxonomy)
        if fused.photo_leaves is not None and fused.photo_brands is not None
        else _recognise_single_photo(path, brand, predictions),
    )


def _recognise_single_photo(
    path: Sequence[CategorySuggestion], brand: BrandSuggestion | None, predictions: ListingPredictions
) -> tuple[PhotoRecognition, ...]:
    """The listing's suggestion is the recognition of its only photo."""
    return (
        PhotoRecognition(
            category_id=path[-1].category_id,
            category_probability=path[-1].probability,
            brand_index=brand.brand_index if brand else 0,
            brand_probability=brand.probability if brand else 1.0,
            in_scope=bool(predictions.photos_in_scope[0]),
            disagrees=False,
        ),
    )


def _recognise_photos(
    leaves: Floats, brands: Brands, predictions: ListingPredictions, taxonomy: Taxonomy
) -> tuple[PhotoRecognition, ...]:
    return tuple(
        PhotoRecognition(
            category_id=taxonomy.leaf_ids[leaf],
            category_probability=probability,
            brand_index=brand_label,
            brand_probability=brand_score,
            in_scope=in_scope,
            disagrees=disagrees,
        )
        for leaf, probability, brand_label, brand_score, in_scope, disagrees in zip(
            leaves.argmax(axis=1).tolist(),
            leaves.max(axis=1).tolist(),
            brands.labels.tolist(),
            brands.scores.tolist(),
            predictions.photos_in_scope.tolist(),
            predictions.photos_disagree.tolist(),
            strict=True,
        )
    )


def _suggest_path(
    predictions: ListingPredictions, taxonomy: Taxonomy, calibration: Calibration, *, has_ancestor: bool
) -> tuple[CategorySuggestion, ...]:
    paths = predictions.paths
    filled = compute_prefilled(predictions, taxonomy=taxonomy, calibration=calibration)[0]
    steps = []
    in_scope, num_fillable = bool(predictions.in_scope[0]), int(paths.num_fillable[0])
    for depth, (node, probability) in enumerate(zip(paths.nodes[0].tolist(), paths.scores[0].tolist(), strict=True)):
        if node < 0:
            break
        not_prefilled = None
        if not in_scope:
            not_prefilled = _OUT_OF_SCOPE
        elif has_ancestor:
            not_prefilled = _ANCESTOR_GIVEN
        elif depth >= num_fillable:
            not_prefilled = _PHOTOS_DISAGREE
        elif not filled[depth]:
            field = calibration.get_category_guarantee(depth + 1)
            not_prefilled = (
                _explain_suggestion(field, probability, catch_all=not taxonomy.fillable[node])
                if taxonomy.decides_at_depth[depth]
                else NotPrefilled(code="ONLY_CATEGORY", message=ONLY_CATEGORY)
            )
        steps.append(
            CategorySuggestion(
                category_id=taxonomy.categories[node].id,
                depth=depth + 1,
                probability=probability,
                not_prefilled=not_prefilled,
            )
        )
    return tuple(steps)


def explain_uncertified(field: FieldGuarantee) -> NotPrefilled:
    """Return why a field without a threshold is never prefilled."""
    counts_matter = field.uncertified_code == "NOT_CERTIFIED" and field.num_required is not None
    return NotPrefilled(
        code=field.uncertified_code,
        message=field.uncertified_reason,
        num_listings=field.num_listings if counts_matter else None,
        num_required=field.num_required if counts_matter else None,
    )


def _suggest_brand(predictions: ListingPredictions, calibration: Calibration, *, has_ancestor: bool) -> BrandSuggestion:
    label, probability = int(predictions.brands.labels[0]), float(predictions.brands.scores[0])
    field = calibration.field(BRAND_FIELD)
    not_prefilled: NotPrefilled | None = None
    if not predictions.in_scope[0]:
        not_prefilled = _OUT_OF_SCOPE
    elif has_ancestor:
        not_prefilled = _ANCESTOR_GIVEN
    elif not predictions.brands.fillable[0]:
        not_prefilled = _PHOTOS_DISAGREE
    elif label == OTHER_BRAND:
        not_prefilled = NotPrefilled(code="OTHER_BRAND", message="no brand of the taxonomy is likely enough")
    elif probability < _get_threshold(field):
        not_prefilled = _explain_suggestion(field, probability)
    return BrandSuggestion(brand_index=label, probability=probability, not_prefilled=not_prefilled)


def _select_best(probabilities: Floats, num_wanted: int) -> Iterator[tuple[int, float]]:
    """The indices of the largest with their values, largest first; among equals the lowest index first."""
    if 0 < num_wanted < len(probabilities) > _MANY:
        candidates = (probabilities >= np.partition(probabilities, -num_wanted)[-num_wanted]).nonzero()[0]
        best = candidates[(-probabilities[candidates]).argsort(kind="stable")[:num_wanted]]
    else:
        best = (-probabilities).argsort(kind="stable")[:num_wanted]
    return zip(best.tolist(), probabilities[best].tolist(), strict=True)


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
        shown, threshold = format_shortfall(probability, field.threshold)
        message = f"a probability of {shown} is below the certified threshold, {threshold}"
        return NotPrefilled(code="BELOW_THRESHOLD", message=message, threshold=field.threshold)
    return NotPrefilled(code="PARENT_NOT_PREFILLED", message="the level above is not filled")
