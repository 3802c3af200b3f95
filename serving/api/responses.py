"""Build responses from logits: one implementation for the gateway and for `classify` with a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf import duration_pb2

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.limits import (
    DEFAULT_ALTERNATIVES,
    MAX_ALTERNATIVES,
    MAX_LISTING_ID_CHARS,
    MAX_PHOTOS,
    MAX_URI_CHARS,
    REQUEST_LIMIT_BYTES,
)
from serving.decoding.prepared import PHOTO_LIMITS
from vision.bundle import Bundle
from vision.calibration import BRAND_FIELD, PATH_FIELD, FieldGuarantee
from vision.decision import decide, explain_uncertified
from vision.engine import Logits
from vision.errors import PhotoError
from vision.suggestion import BrandSuggestion, NotPrefilled, PhotoRecognition, Suggestion, is_brand_offered
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = [
    "ResponseOptions",
    "build_model_response",
    "build_model_version",
    "build_response",
    "build_stage_times",
    "build_taxonomy_response",
    "warm_up",
]


@dataclass(frozen=True, kw_only=True)
class ResponseOptions:
    """What a caller asks of a response."""

    listing_id: str = ""
    num_alternatives: int = DEFAULT_ALTERNATIVES
    language: str = "en"
    """BCP 47 tag; the taxonomy's nearest language is taken."""
    with_embedding: bool = False
    ancestor_id: str = ""
    """Id of a category of the bundle's taxonomy, below which the path is to lie."""


def build_response(
    bundle: Bundle, errors: Sequence[PhotoError | None], logits: Logits, options: ResponseOptions = ResponseOptions()
) -> pb.ClassifyListingResponse:
    """Return the response for one listing, without `suggestion_id` and `stage_times`.

    Args:
        bundle: that computed the logits.
        errors: the error of each photo of the request, or None.
        logits: logits of the photos without error, in their order; at least one.
        options: what the caller asked for.
    """
    taxonomy, language = bundle.taxonomy, bundle.taxonomy.match_language(options.language)
    suggestion = decide(
        logits.category,
        logits.brand,
        logits.scope,
        taxonomy=taxonomy,
        calibration=bundle.calibration,
        num_alternatives=options.num_alternatives,
        ancestor=taxonomy.node_index[options.ancestor_id] if options.ancestor_id else None,
    )
    upcoming = iter(suggestion.photos)
    return pb.ClassifyListingResponse(
        listing_id=options.listing_id,
        category_path=_build_category_path(taxonomy, suggestion, language),
        brand=_build_brand(taxonomy, suggestion.brand, language) if suggestion.brand else None,
        category_alternatives=[
            pb.CategoryAlternative(
                category_id=alternative.category_id,
                path_names=taxonomy.get_path_names(alternative.category_id, language),
                probability=alternative.probability,
            )
            for alternative in suggestion.alternatives
        ],
        brand_alternatives=[
            pb.BrandAlternative(
                kind=_to_brand_kind(alternative.brand_index),
                brand_id=_get_brand_id(taxonomy, alternative.brand_index),
                name=_get_brand_name(taxonomy, alternative.brand_index, language),
                probability=alternative.probability,
            )
            for alternative in suggestion.brand_alternatives
        ],
        photos=[
            pb.PhotoResult(error=pb.PhotoError(reason=error.reason, message=str(error)))
            if error
            else pb.PhotoResult(recognition=_build_recognition(taxonomy, language, next(upcoming)))
            for error in errors
        ],
        model=build_model_version(bundle),
        language_code=language,
        embedding=logits.embedding.mean(axis=0, dtype=np.float64).tolist() if options.with_embedding else (),
    )


def build_stage_times(seconds: Mapping[str, float]) -> list[pb.StageTime]:
    """Return the stages of a call from their seconds by name; see `measure_stage`."""
    return [
        pb.StageTime(stage=f"STAGE_{name.upper()}", duration=_to_duration(value)) for name, value in seconds.items()
    ]


def warm_up(bundle: Bundle) -> None:
    """Fill the caches of a first response: with thousands of categories that takes long."""
    golden = bundle.golden
    logits = Logits(golden.category_logits, golden.brand_logits, golden.category_logits, golden.scope)
    for language in bundle.taxonomy.language_codes:
        build_response(bundle, [None] * len(golden.photos_nhwc), logits, ResponseOptions(language=language))


def build_model_response(
    bundle: Bundle, *, photo_uris_enabled: bool, outcomes_enabled: bool, suggestion_validity_s: float
) -> pb.GetModelResponse:
    return pb.GetModelResponse(
        model=build_model_version(bundle),
        category_count=bundle.info.num_categories,
        brand_count=len(bundle.taxonomy.brands),
        language_codes=bundle.taxonomy.language_codes,
        limits=pb.RequestLimits(
            photo_count_limit=MAX_PHOTOS,
            photo_bytes_limit=PHOTO_LIMITS.max_bytes,
            photo_pixels_limit=PHOTO_LIMITS.max_pixels,
            photo_side_minimum=PHOTO_LIMITS.min_side_px,
            request_bytes_limit=REQUEST_LIMIT_BYTES,
            listing_id_length_limit=MAX_LISTING_ID_CHARS,
            alternative_count_limit=MAX_ALTERNATIVES,
            photo_uri_length_limit=MAX_URI_CHARS,
        ),
        guarantees=[
            _build_guarantee(field)
            for field in bundle.calibration.fields
            if bundle.taxonomy.brands or field.name != BRAND_FIELD
        ],
        photo_uris_enabled=photo_uris_enabled,
        outcomes_enabled=outcomes_enabled,
        suggestion_validity=_to_duration(suggestion_validity_s),
    )


def build_taxonomy_response(taxonomy: Taxonomy, *, language: str) -> pb.GetTaxonomyResponse:
    """Args: language: BCP 47 tag; the taxonomy's nearest language is taken."""
    language = taxonomy.match_language(language)
    return pb.GetTaxonomyResponse(
        taxonomy_version=taxonomy.version,
        language_code=language,
        language_codes=taxonomy.language_codes,
        categories=[
            pb.Category(
                category_id=category.id,
                parent_id=category.parent_id,
                name=category.get_name(language),
                names=category.names,
                catch_all=category.catch_all,
            )
            for category in taxonomy.categories
        ],
        brands=[
            pb.Brand(brand_id=brand.id, name=brand.get_name(language), names=brand.names, aliases=brand.aliases)
            for brand in taxonomy.brands
        ],
    )


def build_model_version(bundle: Bundle) -> pb.ModelVersion:
    return pb.ModelVersion(
        name=bundle.info.model_name,
        version=bundle.info.model_version,
        taxonomy_version=bundle.taxonomy.version,
        calibration_version=bundle.calibration_version,
    )


def _build_guarantee(field: FieldGuarantee) -> pb.FieldGuarantee:
    is_brand = field.name == BRAND_FIELD
    has_threshold = field.threshold is not None
    return pb.FieldGuarantee(
        field=pb.FORM_FIELD_BRAND if is_brand else pb.FORM_FIELD_CATEGORY,
        category_depth=0 if is_brand or field.name == PATH_FIELD else int(field.name.rpartition("_")[2]),
        precision=1 - field.alpha,
        failure_probability=field.delta,
        threshold=field.threshold,
        precision_bound=1 - field.bound if has_threshold and field.bound is not None else None,
        not_prefilled=None if has_threshold else _to_not_prefilled(explain_uncertified(field)),
        coverage=field.coverage,
    )


def _to_not_prefilled(reason: NotPrefilled | None) -> pb.NotPrefilled | None:
    if reason is None:
        return None
    return pb.NotPrefilled(
        reason=f"NOT_PREFILLED_REASON_{reason.code}",
        message=reason.message,
        threshold=reason.threshold,
        calibration_listing_count=reason.num_listings,
        required_listing_count=reason.num_required,
    )


def _build_category_path(taxonomy: Taxonomy, suggestion: Suggestion, language: str) -> list[pb.CategorySuggestion]:
    return [
        pb.CategorySuggestion(
            category_id=step.category_id,
            name=taxonomy.by_id[step.category_id].get_name(language),
            probability=step.probability,
            action=_to_action(step.filled),
            not_prefilled=_to_not_prefilled(step.not_prefilled),
        )
        for step in suggestion.path
    ]


def _build_brand(taxonomy: Taxonomy, brand: BrandSuggestion, language: str) -> pb.BrandSuggestion:
    index = brand.brand_index if brand.offered else None
    return pb.BrandSuggestion(
        kind=_to_brand_kind(index),
        brand_id=_get_brand_id(taxonomy, index),
        name=_get_brand_name(taxonomy, index, language),
        probability=None if index in (OTHER_BRAND, None) else brand.probability,
        action=_to_action(brand.filled),
        not_prefilled=_to_not_prefilled(brand.not_prefilled),
    )


def _build_recognition(taxonomy: Taxonomy, language: str, photo: PhotoRecognition) -> pb.PhotoRecognition:
    is_offered = is_brand_offered(photo.brand_index, photo.brand_probability, filled=False)
    index = photo.brand_index if is_offered else None
    return pb.PhotoRecognition(
        category_id=photo.category_id,
        category_name=taxonomy.by_id[photo.category_id].get_name(language),
        category_probability=photo.category_probability,
        brand_kind=_to_brand_kind(index) if taxonomy.brands else pb.BRAND_KIND_UNSPECIFIED,
        brand_id=_get_brand_id(taxonomy, index),
        brand_name=_get_brand_name(taxonomy, index, language),
        brand_probability=None if index in (OTHER_BRAND, None) or not taxonomy.brands else photo.brand_probability,
        out_of_scope=not photo.in_scope,
        disagrees=photo.disagrees,
    )


def _get_brand_id(taxonomy: Taxonomy, brand_index: int | None) -> str:
    return taxonomy.brands[brand_index - 1].id if brand_index and brand_index > 0 else ""


def _get_brand_name(taxonomy: Taxonomy, brand_index: int | None, language: str) -> str:
    return taxonomy.brands[brand_index - 1].get_name(language) if brand_index and brand_index > 0 else ""


def _to_brand_kind(brand_index: int | None) -> pb.BrandKind:
    """None: no brand is likely enough to be offered."""
    if brand_index is None:
        return pb.BRAND_KIND_UNDETERMINED
    if brand_index == OTHER_BRAND:
        return pb.BRAND_KIND_OTHER
    return pb.BRAND_KIND_BRAND if brand_index > 0 else pb.BRAND_KIND_NO_BRAND


def _to_action(filled: bool) -> pb.Action:
    return pb.ACTION_PREFILL if filled else pb.ACTION_SUGGEST


def _to_duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
