"""Build responses from logits: one implementation for the gateway and for `classify` with a bundle."""

from collections.abc import Sequence

import numpy as np

from serving.api.limits import DEFAULT_ALTERNATIVES, MAX_PHOTOS
from serving.decoding.prepared import PHOTO_LIMITS
from serving.protocol import listing_vision_pb2 as pb
from vision.bundle import Bundle
from vision.decision import (
    BrandSuggestion,
    Suggestion,
    compute_leaf_probabilities,
    decide,
    fuse_brand_logits,
    predict_brands,
)
from vision.engine import Logits
from vision.errors import PhotoError
from vision.taxonomy import OTHER_BRAND

__all__ = [
    "build_model_response",
    "build_response",
    "from_wire_error_reason",
    "to_wire_error_reason",
    "warm_up",
]


def build_response(
    bundle: Bundle,
    errors: Sequence[PhotoError | None],
    logits: Logits,
    *,
    listing_id: str = "",
    num_alternatives: int = DEFAULT_ALTERNATIVES,
) -> pb.ClassifyListingResponse:
    """Return the response for one listing.

    Args:
        errors: the error of each photo of the request, or None.
        logits: logits of the photos without error, in their order; at least one.
    """
    suggestion = _decide_suggestion(bundle, logits, num_alternatives)
    recognitions = iter(
        [_build_single_recognition(suggestion, bundle)]
        if len(logits.category) == 1
        else _build_recognitions(bundle, logits)
    )
    return pb.ClassifyListingResponse(
        listing_id=listing_id,
        category_path=_build_category_path(bundle, suggestion),
        brand=_build_brand(bundle, suggestion.brand),
        alternatives=[
            pb.CategoryAlternative(
                category_id=alternative.category_id,
                path=bundle.taxonomy.leaf_path_names[alternative.category_id],
                probability=alternative.probability,
            )
            for alternative in suggestion.alternatives
        ],
        photos=[
            pb.PhotoResult(error=_to_photo_error(error)) if error else pb.PhotoResult(recognition=next(recognitions))
            for error in errors
        ],
        model=build_model_version(bundle),
    )


def warm_up(bundle: Bundle) -> None:
    """Fill the caches of a first response: with thousands of categories that takes long."""
    golden = bundle.golden
    logits = Logits(golden.category_logits, golden.brand_logits, golden.category_logits)
    build_response(bundle, [None] * len(golden.photos_nhwc), logits)


def build_model_response(bundle: Bundle) -> pb.GetModelResponse:
    return pb.GetModelResponse(
        model=build_model_version(bundle),
        category_count=bundle.info.num_categories,
        brand_count=len(bundle.taxonomy.brands),
        photo_count_limit=MAX_PHOTOS,
        photo_bytes_limit=PHOTO_LIMITS.max_bytes,
        photo_pixels_limit=PHOTO_LIMITS.max_pixels,
        promises=[
            pb.FieldPromise(
                field=field.name,
                precision=1 - field.alpha,
                failure_probability=field.delta,
                threshold=field.threshold,
                explanation=field.uncertified_reason,
                coverage=field.coverage,
                precision_bound=None if field.bound is None or field.threshold is None else 1 - field.bound,
            )
            for field in bundle.calibration.fields
        ],
    )


def build_model_version(bundle: Bundle) -> pb.ModelVersion:
    return pb.ModelVersion(
        name=bundle.info.model_name,
        version=bundle.info.model_version,
        taxonomy_version=bundle.taxonomy.version,
        calibration_version=bundle.calibration_version,
    )


def to_wire_error_reason(error: PhotoError) -> str:
    """Return the enum's name of a photo error: `PhotoError.reason` with the enum's prefix."""
    return error.reason.replace("PHOTO_", "PHOTO_ERROR_REASON_", 1)


def from_wire_error_reason(error: pb.PhotoError) -> str:
    """Return `PhotoError.reason` of an error on the wire."""
    return pb.PhotoErrorReason.Name(error.reason).replace("PHOTO_ERROR_REASON_", "PHOTO_", 1)


def _decide_suggestion(bundle: Bundle, logits: Logits, num_alternatives: int) -> Suggestion:
    return decide(
        logits.category,
        logits.brand,
        taxonomy=bundle.taxonomy,
        calibration=bundle.calibration,
        num_alternatives=num_alternatives,
    )


def _build_category_path(bundle: Bundle, suggestion: Suggestion) -> list[pb.CategorySuggestion]:
    return [
        pb.CategorySuggestion(
            category_id=step.category_id,
            name=bundle.taxonomy.by_id[step.category_id].name,
            probability=step.probability,
            outcome=_to_action(step.filled),
            explanation=step.explanation,
        )
        for step in suggestion.path
    ]


def _build_brand(bundle: Bundle, brand: BrandSuggestion) -> pb.BrandSuggestion:
    known = bundle.taxonomy.brands[brand.brand_index - 1] if brand.brand_index > 0 else None
    return pb.BrandSuggestion(
        kind=_to_brand_kind(brand.brand_index),
        brand_id=known.id if known else "",
        name=known.name if known else "",
        probability=brand.probability,
        outcome=_to_action(brand.filled),
        explanation=brand.explanation,
    )


def _build_single_recognition(suggestion: Suggestion, bundle: Bundle) -> pb.PhotoRecognition:
    """Return the listing's suggestion as the recognition of its only photo."""
    leaf, brand = suggestion.path[-1], suggestion.brand
    return _build_recognition(bundle, leaf.category_id, leaf.probability, brand.brand_index, brand.probability)


def _build_recognitions(bundle: Bundle, logits: Logits) -> list[pb.PhotoRecognition]:
    """Recognise each photo alone, all in one batch."""
    one_listing_per_photo = np.arange(len(logits.category))
    leaves = compute_leaf_probabilities(logits.category, one_listing_per_photo, bundle.calibration, bundle.taxonomy)
    best_leaves = leaves.argmax(axis=1)
    brands = predict_brands(
        fuse_brand_logits(logits.brand, one_listing_per_photo, bundle.calibration), bundle.calibration
    )
    return [
        _build_recognition(bundle, bundle.taxonomy.leaf_ids[leaf], leaves[row, leaf], brand, brands.scores[row])
        for row, (leaf, brand) in enumerate(zip(best_leaves.tolist(), brands.labels.tolist(), strict=True))
    ]


def _build_recognition(
    bundle: Bundle, category_id: str, category_probability: float, brand_index: int, brand_probability: float
) -> pb.PhotoRecognition:
    return pb.PhotoRecognition(
        category_id=category_id,
        category_probability=category_probability,
        brand_id=bundle.taxonomy.brands[brand_index - 1].id if brand_index > 0 else "",
        brand_probability=brand_probability,
        brand_kind=_to_brand_kind(brand_index),
    )


def _to_brand_kind(brand_index: int) -> pb.BrandKind:
    if brand_index == OTHER_BRAND:
        return pb.BRAND_KIND_UNKNOWN
    return pb.BRAND_KIND_BRAND if brand_index > 0 else pb.BRAND_KIND_NO_BRAND


def _to_photo_error(error: PhotoError) -> pb.PhotoError:
    return pb.PhotoError(reason=to_wire_error_reason(error), message=str(error))


def _to_action(filled: bool) -> pb.SuggestionOutcome:
    return pb.SUGGESTION_OUTCOME_FILL if filled else pb.SUGGESTION_OUTCOME_SUGGEST
