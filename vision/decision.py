"""Turn logits into a suggestion: one implementation for evaluation, gateway, `classify` and backfill. NumPy only.

A row is a listing. Shapes: P photos, N listings, C leaf categories, B brand labels (0 is 'no brand'), D the depth of
the tree.
"""

import numpy as np
import numpy.typing as npt

from vision.calibration import BRAND_FIELD, Calibration, FieldGuarantee
from vision.prediction.fusion import compute_brand_probabilities
from vision.prediction.listings import ListingPredictions, compute_brand_scores, compute_path_scores, predict_fused
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
    "compute_prefilled",
    "decide",
    "explain_uncertified",
]

_OUT_OF_SCOPE = NotPrefilled(code="OUT_OF_SCOPE", message="the photos show nothing that this model's categories cover")
_PHOTOS_DISAGREE = NotPrefilled(code="PHOTOS_DISAGREE", message="the photos show different things")
_ANCESTOR_GIVEN = NotPrefilled(
    code="ANCESTOR_GIVEN", message="the request names the category above, and no guarantee holds under such a hint"
)
ONLY_CATEGORY = "the only category at this depth: prefilled when the one below it is"

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


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
    )
    return Suggestion(
        path=_suggest_path(predictions, taxonomy, calibration, has_ancestor=ancestor is not None),
        brand=_suggest_brand(predictions, calibration) if taxonomy.brands else None,
        alternatives=tuple(
            LeafAlternative(category_id=taxonomy.leaf_ids[int(leaf)], probability=float(fused.leaves[0, leaf]))
            for leaf in _select_best(fused.leaves[0], num_alternatives)
            if ancestor is None or fused.leaves[0, leaf] > 0
        ),
        brand_alternatives=_select_brand_alternatives(fused.brand_logits, calibration, num_alternatives)
        if taxonomy.brands
        else (),
        in_scope=bool(predictions.in_scope[0]),
        photos_in_scope=tuple(predictions.photos_in_scope.tolist()),
        photos_disagree=tuple(predictions.photos_disagree.tolist()),
    )


def _suggest_path(
    predictions: ListingPredictions, taxonomy: Taxonomy, calibration: Calibration, *, has_ancestor: bool
) -> tuple[CategorySuggestion, ...]:
    paths = predictions.paths
    filled = compute_prefilled(predictions, taxonomy=taxonomy, calibration=calibration)[0]
    steps = []
    for depth, node in enumerate(paths.nodes[0]):
        if node < 0:
            break
        probability = float(paths.scores[0, depth])
        not_prefilled = None
        if not predictions.in_scope[0]:
            not_prefilled = _OUT_OF_SCOPE
        elif has_ancestor:
            not_prefilled = _ANCESTOR_GIVEN
        elif depth >= paths.num_fillable[0]:
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
                category_id=taxonomy.categories[int(node)].id,
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


def _suggest_brand(predictions: ListingPredictions, calibration: Calibration) -> BrandSuggestion:
    label, probability = int(predictions.brands.labels[0]), float(predictions.brands.scores[0])
    field = calibration.field(BRAND_FIELD)
    not_prefilled: NotPrefilled | None = None
    if not predictions.in_scope[0]:
        not_prefilled = _OUT_OF_SCOPE
    elif not predictions.brands.fillable[0]:
        not_prefilled = _PHOTOS_DISAGREE
    elif label == OTHER_BRAND:
        not_prefilled = NotPrefilled(code="OTHER_BRAND", message="no brand of the taxonomy is likely enough")
    elif probability < _get_threshold(field):
        not_prefilled = _explain_suggestion(field, probability)
    return BrandSuggestion(brand_index=label, probability=probability, not_prefilled=not_prefilled)


def _select_brand_alternatives(
    fused_logits: Floats, calibration: Calibration, num_wanted: int
) -> tuple[BrandAlternative, ...]:
    probabilities = compute_brand_probabilities(fused_logits, calibration)[0]
    return tuple(
        BrandAlternative(brand_index=int(label), probability=float(probabilities[label]))
        for label in _select_best(probabilities, num_wanted)
    )


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
