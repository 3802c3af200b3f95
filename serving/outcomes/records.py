"""Rows of the tables of suggestions, shadows and outcomes; they hold no photo and nothing about the caller."""

import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from serving.api.limits import MAX_LISTING_ID_CHARS
from serving.api.status import Refusal
from serving.protocol import listing_vision_pb2 as pb
from vision.taxonomy import Taxonomy

__all__ = ["SCHEMAS", "build_outcome_row", "build_shadow_row", "build_suggestion_row"]

MAX_NAME_CHARS = 200
_TIME = ("time", pa.timestamp("us", tz="UTC"))

_SUGGESTION_COLUMNS = [
    _TIME,
    ("listing_id", pa.string()),
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

SCHEMAS = {
    "suggestions": pa.schema(
        [*_SUGGESTION_COLUMNS, ("num_photos", pa.int32()), ("num_unusable", pa.int32()), ("photo_bytes", pa.int64())]
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
        ]
    ),
}
"""Schemas by folder; docs/contracts.md describes the columns."""


def build_suggestion_row(request: pb.ClassifyListingRequest, response: pb.ClassifyListingResponse) -> dict[str, Any]:
    return {
        **_suggestion_columns(response),
        "num_photos": len(response.photos),
        "num_unusable": sum(photo.HasField("error") for photo in response.photos),
        "photo_bytes": sum(len(photo.content) for photo in request.photos),
    }


def build_shadow_row(response: pb.ClassifyListingResponse, visible: pb.ClassifyListingResponse) -> dict[str, Any]:
    """Return the row of a shadow's response beside the one that the caller received."""
    return {**_suggestion_columns(response), "answered_model_version": visible.model.version}


def _suggestion_columns(response: pb.ClassifyListingResponse) -> dict[str, Any]:
    fill = pb.SUGGESTION_OUTCOME_FILL
    return {
        "time": _now_us(),
        "listing_id": response.listing_id,
        "model_name": response.model.name,
        "model_version": response.model.version,
        "calibration_version": response.model.calibration_version,
        "taxonomy_version": response.model.taxonomy_version,
        "category_ids": [step.category_id for step in response.category_path],
        "category_probabilities": [step.probability for step in response.category_path],
        "num_filled": sum(step.outcome == fill for step in response.category_path),
        "brand_kind": pb.BrandKind.Name(response.brand.kind).removeprefix("BRAND_KIND_"),
        "brand_id": response.brand.brand_id or None,
        "brand_probability": response.brand.probability,
        "brand_filled": response.brand.outcome == fill,
    }


def build_outcome_row(request: pb.ReportOutcomeRequest, taxonomies: Sequence[Taxonomy]) -> dict[str, Any]:
    """Return the row of an outcome.

    Args:
        taxonomies: those that suggestions may have been in; all ids must be in one of them.

    Raises:
        Refusal: OUTCOME_INVALID, with each wrong field.
    """
    violations = [_find_violations(request, taxonomy) for taxonomy in taxonomies]
    wrong = min(violations, key=len)
    if wrong:
        message = "; ".join(f"{field}: {what}" for field, what in wrong.items())
        raise Refusal(reason="OUTCOME_INVALID", message=message, violations=wrong)
    choice = request.brand.WhichOneof("choice") if request.HasField("brand") else None
    kinds = {"brand_id": "BRAND", "no_brand": "NO_BRAND", "other_name": "OTHER", None: None}
    return {
        "time": _now_us(),
        "listing_id": request.listing_id,
        "category_id": request.category_id if request.HasField("category_id") else None,
        "brand_kind": kinds[choice],
        "brand_id": request.brand.brand_id if choice == "brand_id" else None,
        "brand_name": request.brand.other_name if choice == "other_name" else None,
        "category_treatment": _treatment_name(request.category_treatment),
        "brand_treatment": _treatment_name(request.brand_treatment),
    }


def _find_violations(request: pb.ReportOutcomeRequest, taxonomy: Taxonomy) -> dict[str, str]:
    wrong = {}
    if not request.listing_id:
        wrong["listing_id"] = "it is empty; give that of the ClassifyListing call"
    elif len(request.listing_id) > MAX_LISTING_ID_CHARS:
        wrong["listing_id"] = f"{len(request.listing_id)} characters exceed the limit of {MAX_LISTING_ID_CHARS}"
    if request.HasField("category_id") and request.category_id not in {c.id for c in taxonomy.categories}:
        wrong["category_id"] = f"{request.category_id[:100]!r} is not in taxonomy {taxonomy.version}"
    if request.HasField("brand"):
        choice = request.brand.WhichOneof("choice")
        if choice is None or (choice == "no_brand" and not request.brand.no_brand):
            wrong["brand"] = "give brand_id, no_brand (true) or other_name, or leave brand out"
        elif choice == "brand_id" and request.brand.brand_id not in {b.id for b in taxonomy.brands}:
            wrong["brand.brand_id"] = f"{request.brand.brand_id[:100]!r} is not in taxonomy {taxonomy.version}"
        elif choice == "other_name" and not 0 < len(request.brand.other_name.strip()) <= MAX_NAME_CHARS:
            wrong["brand.other_name"] = f"give 1 to {MAX_NAME_CHARS} characters"
    if not request.HasField("category_id") and not request.HasField("brand"):
        wrong["category_id"] = "neither a category nor a brand is given; there is nothing to record"
    return wrong


def _treatment_name(value: int) -> str:
    known = value if value in pb.FormTreatment.values() else 0
    return pb.FormTreatment.Name(known).removeprefix("FORM_TREATMENT_")


def _now_us() -> int:
    return time.time_ns() // 1000
