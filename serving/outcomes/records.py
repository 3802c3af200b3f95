"""Rows of the tables of suggestions, shadows and outcomes; they hold no photo and nothing about the caller."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.limits import MAX_LISTING_ID_CHARS
from serving.api.listing_request import ListingRequest
from serving.api.status import FieldViolation, Refusal
from serving.api.suggestion_id import SuggestionClaims
from vision.taxonomy import Taxonomy

__all__ = ["SCHEMAS", "build_outcome_row", "build_shadow_row", "build_suggestion_row"]

MAX_NAME_CHARS = 200
_TIME = ("time", pa.timestamp("us", tz="UTC"))

_SUGGESTION_COLUMNS = [
    _TIME,
    ("listing_id", pa.string()),
    ("suggestion_uid", pa.string()),
    ("model_name", pa.string()),
    ("model_version", pa.string()),
    ("calibration_version", pa.string()),
    ("taxonomy_version", pa.string()),
    ("category_ids", pa.list_(pa.string())),
    ("category_probabilities", pa.list_(pa.float64())),
    ("num_filled", pa.int32()),
    ("brand_kind", pa.string()),
    ("brand_id", pa.string()),
    ("brand_probability", pa.float64()),
    ("brand_filled", pa.bool_()),
]

_NEVER_FILLED = (
    pb.NOT_PREFILLED_REASON_OUT_OF_SCOPE,
    pb.NOT_PREFILLED_REASON_PHOTOS_DISAGREE,
    pb.NOT_PREFILLED_REASON_ANCESTOR_GIVEN,
    pb.NOT_PREFILLED_REASON_CATCH_ALL_CATEGORY,
)
"""Reasons that hold whatever the threshold is."""

SCHEMAS = {
    "suggestions": pa.schema(
        [
            *_SUGGESTION_COLUMNS,
            ("num_photos", pa.int32()),
            ("num_unusable", pa.int32()),
            ("photo_bytes", pa.int64()),
            ("hidden", pa.bool_()),
            ("rule_version", pa.string()),
            ("num_fillable", pa.int32()),
            ("brand_fillable", pa.bool_()),
            ("ancestor_given", pa.bool_()),
        ]
    ),
    "shadows": pa.schema([*_SUGGESTION_COLUMNS, ("answered_model_version", pa.string())]),
    "outcomes": pa.schema(
        [
            _TIME,
            ("listing_id", pa.string()),
            ("category_id", pa.string()),
            ("brand_kind", pa.string()),
            ("brand_id", pa.string()),
            ("brand_name", pa.string()),
            ("category_treatment", pa.string()),
            ("brand_treatment", pa.string()),
            ("taxonomy_version", pa.string()),
            ("suggestion_id_status", pa.string()),
            ("suggestion_uid", pa.string()),
            ("model_version", pa.string()),
            ("calibration_version", pa.string()),
            ("caller", pa.string()),
        ]
    ),
}
"""Schemas by folder; docs/contracts.md describes the columns."""


def build_suggestion_row(
    request: ListingRequest, response: pb.ClassifyListingResponse, *, uid: str, rule_version: str
) -> dict[str, Any]:
    """Return the row of a suggestion.

    Args:
        request: as received.
        response: as returned.
        uid: of its suggestion id.
        rule_version: `Bundle.rule_version` of the release that made it.
    """
    return {
        **_suggestion_columns(response),
        "suggestion_uid": uid,
        "num_photos": len(response.photos),
        "num_unusable": sum(photo.HasField("error") for photo in response.photos),
        "photo_bytes": request.num_photo_bytes,
        "hidden": request.fields.hidden,
        "rule_version": rule_version or None,
        "num_fillable": _count_fillable(response.category_path),
        "brand_fillable": _is_fillable(response.brand) and response.brand.HasField("probability"),
        "ancestor_given": bool(request.fields.ancestor_category_id),
    }


def build_shadow_row(response: pb.ClassifyListingResponse, visible: pb.ClassifyListingResponse) -> dict[str, Any]:
    """Return the row of a shadow's response beside the one that the caller received."""
    return {**_suggestion_columns(response), "answered_model_version": visible.model.version}


def _suggestion_columns(response: pb.ClassifyListingResponse) -> dict[str, Any]:
    prefill = pb.ACTION_PREFILL
    return {
        "time": _now_us(),
        "listing_id": response.listing_id,
        "suggestion_uid": None,
        "model_name": response.model.name,
        "model_version": response.model.version,
        "calibration_version": response.model.calibration_version,
        "taxonomy_version": response.model.taxonomy_version,
        "category_ids": [step.category_id for step in response.category_path],
        "category_probabilities": [step.probability for step in response.category_path],
        "num_filled": sum(step.action == prefill for step in response.category_path),
        "brand_kind": pb.BrandKind.Name(response.brand.kind).removeprefix("BRAND_KIND_"),
        "brand_id": response.brand.brand_id or None,
        "brand_probability": response.brand.probability,
        "brand_filled": response.brand.action == prefill,
    }


def build_outcome_row(
    request: pb.ReportOutcomeRequest,
    status: pb.SuggestionIdStatus,
    claims: SuggestionClaims | None,
    taxonomies: Sequence[Taxonomy],
    *,
    caller: str,
) -> dict[str, Any]:
    """Return the row of an outcome.

    Args:
        request: as received.
        status: of its suggestion id.
        claims: of a valid suggestion id.
        taxonomies: of the loaded releases.
        caller: who reports.

    Raises:
        Refusal: OUTCOME_INVALID, with each wrong field.
    """
    taxonomy_version, violations = _check_choices(request, claims, taxonomies)
    if wrong := [*_check_listing_id(request, claims), *violations]:
        message = "; ".join(f"{one.field}: {one.description}" for one in wrong)
        raise Refusal(reason="OUTCOME_INVALID", message=message, violations=wrong)
    choice = request.brand.WhichOneof("choice") if request.HasField("brand") else None
    kinds = {"brand_id": "BRAND", "no_brand": "NO_BRAND", "other_name": "OTHER", None: None}
    return {
        "time": _now_us(),
        "listing_id": request.listing_id or (claims.listing_id if claims else None),
        "category_id": request.category_id if request.HasField("category_id") else None,
        "brand_kind": kinds[choice],
        "brand_id": request.brand.brand_id if choice == "brand_id" else None,
        "brand_name": request.brand.other_name if choice == "other_name" else None,
        "category_treatment": _treatment_name(request.category_treatment),
        "brand_treatment": _treatment_name(request.brand_treatment),
        "taxonomy_version": taxonomy_version,
        "suggestion_id_status": pb.SuggestionIdStatus.Name(status).removeprefix("SUGGESTION_ID_STATUS_"),
        "suggestion_uid": claims.uid if claims else None,
        "model_version": claims.model.version if claims else None,
        "calibration_version": claims.model.calibration_version if claims else None,
        "caller": caller or None,
    }


def _check_listing_id(request: pb.ReportOutcomeRequest, claims: SuggestionClaims | None) -> Iterator[FieldViolation]:
    listing_id = request.listing_id or (claims.listing_id if claims else "")
    if not listing_id:
        detail = "it is empty; give that of the ClassifyListing call"
        yield FieldViolation(field="listing_id", reason="FIELD_MISSING", description=detail)
    elif len(listing_id) > MAX_LISTING_ID_CHARS:
        detail = f"{len(listing_id)} characters exceed the limit of {MAX_LISTING_ID_CHARS}"
        yield FieldViolation(field="listing_id", reason="LISTING_ID_TOO_LONG", description=detail)
    elif claims and claims.listing_id not in ("", listing_id):
        detail = f"{listing_id[:100]!r} is not the listing of suggestion_id, {claims.listing_id!r}"
        yield FieldViolation(field="listing_id", reason="LISTING_ID_MISMATCH", description=detail)


def _check_choices(
    request: pb.ReportOutcomeRequest, claims: SuggestionClaims | None, taxonomies: Sequence[Taxonomy]
) -> tuple[str, list[FieldViolation]]:
    """Return the version of the taxonomy whose ids the outcome has, and what is wrong with them."""
    signed_version = claims.model.taxonomy_version if claims else ""
    version = request.taxonomy_version or signed_version
    candidates = [one for one in taxonomies if version in ("", one.version)]
    if candidates:
        found = [(one.version, list(_find_violations(request, one))) for one in candidates]
        return min(found, key=lambda pair: len(pair[1]))
    if version == signed_version:
        return version, []  # the release was unloaded since the suggestion: its ids cannot be checked any more
    detail = f"{version[:100]!r} is the version of no loaded release"
    return version, [FieldViolation(field="taxonomy_version", reason="TAXONOMY_UNKNOWN", description=detail)]


def _find_violations(request: pb.ReportOutcomeRequest, taxonomy: Taxonomy) -> Iterator[FieldViolation]:
    if not request.HasField("category_id") and not request.HasField("brand"):
        detail = "neither a category nor a brand is given; there is nothing to record"
        yield FieldViolation(field="category_id", reason="FIELD_MISSING", description=detail)
    if request.HasField("category_id") and request.category_id not in taxonomy.by_id:
        detail = f"{request.category_id[:100]!r} is not in taxonomy {taxonomy.version}"
        yield FieldViolation(field="category_id", reason="CATEGORY_UNKNOWN", description=detail)
    if not request.HasField("brand"):
        return
    choice = request.brand.WhichOneof("choice")
    if choice is None or (choice == "no_brand" and not request.brand.no_brand):
        detail = "give brand_id, no_brand (true) or other_name, or leave brand out"
        yield FieldViolation(field="brand", reason="FIELD_INVALID", description=detail)
    elif choice == "brand_id" and request.brand.brand_id not in {b.id for b in taxonomy.brands}:
        detail = f"{request.brand.brand_id[:100]!r} is not in taxonomy {taxonomy.version}"
        yield FieldViolation(field="brand.brand_id", reason="BRAND_UNKNOWN", description=detail)
    elif choice == "other_name" and not 0 < len(request.brand.other_name.strip()) <= MAX_NAME_CHARS:
        detail = f"give 1 to {MAX_NAME_CHARS} characters"
        yield FieldViolation(field="brand.other_name", reason="FIELD_INVALID", description=detail)


def _treatment_name(value: int) -> str:
    known = value if value in pb.FormTreatment.values() else 0
    return pb.FormTreatment.Name(known).removeprefix("FORM_TREATMENT_")


def _count_fillable(path: Sequence[pb.CategorySuggestion]) -> int:
    """Return how many levels, from the root down, some threshold could fill."""
    return next((level for level, step in enumerate(path) if not _is_fillable(step)), len(path))


def _is_fillable(field: pb.CategorySuggestion | pb.BrandSuggestion) -> bool:
    return field.not_prefilled.reason not in _NEVER_FILLED


def _now_us() -> int:
    return time.time_ns() // 1000
