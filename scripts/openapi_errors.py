"""Error responses of the OpenAPI document: each status with its reasons, what they mean, and an example of each."""

import json
import re
from collections.abc import Mapping
from typing import Any

from listing_vision_client.errors import FieldViolation
from serving.http_api.errors import error_response, get_statuses

__all__ = ["REASONS_BY_METHOD", "build_error_components", "build_error_responses"]

_REASON = "listing.vision.v1.ErrorReason"
_ALWAYS = (
    "BODY_UNREADABLE", "TIMEOUT_OUT_OF_RANGE", "UNAUTHENTICATED", "CROSS_SITE_REQUEST", "ROUTE_NOT_FOUND",
    "METHOD_NOT_ALLOWED", "REQUEST_TIMEOUT", "INTERNAL", "MODEL_UNAVAILABLE", "SHUTTING_DOWN", "DEADLINE_TOO_SHORT",
)  # fmt: skip
_POST = ("CONTENT_TYPE_UNSUPPORTED", "REQUEST_TOO_LARGE", "TOO_BUSY")
_PHOTOS = (
    "LANGUAGE_CODE_INVALID", "NO_USABLE_PHOTO", "PHOTOS_UNAVAILABLE", "PHOTO_URI_NOT_ALLOWED", "PHOTO_URIS_DISABLED",
    "QUOTA_EXCEEDED", "MODEL_BROKEN",
)  # fmt: skip
REASONS_BY_METHOD: Mapping[str, tuple[str, ...]] = {
    "ClassifyListing": (
        *_PHOTOS, "NO_PHOTOS", "TOO_MANY_PHOTOS", "LISTING_ID_TOO_LONG", "ALTERNATIVE_COUNT_OUT_OF_RANGE",
        "ANCESTOR_UNKNOWN",
    ),
    "ExplainPhoto": _PHOTOS,
    "ReportOutcome": ("OUTCOME_INVALID", "OUTCOMES_NOT_RECORDED"),
    "GetModel": (),
    "GetTaxonomy": ("LANGUAGE_CODE_INVALID", "TAXONOMY_UNKNOWN"),
}  # fmt: skip
"""Reasons beside those that every method has."""
_TITLES = {
    400: "The request is wrong.",
    401: "No valid token.",
    403: "A browser sent the request from another site.",
    404: "Not found.",
    405: "The route has another method.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    415: "The route takes another content type.",
    429: "Too many requests; retry after the delay.",
    500: "A fault of the service.",
    501: "The operator has not enabled it.",
    503: "Not available now; retry after the delay.",
    504: "No response before the deadline.",
}
_HEADERS_BY_STATUS = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
_HEADERS = {
    "Retry-After": {"schema": {"type": "integer", "minimum": 0}, "description": "Seconds before a retry."},
    "Allow": {"schema": {"type": "string"}, "description": "The methods of the route."},
    "WWW-Authenticate": {"schema": {"type": "string"}, "description": "`Bearer`."},
}
_METADATA = {"limit": 20, "value": 21, "photo_count": 2, "deadline_ms": 150}
_VIOLATIONS = {
    "BODY_UNREADABLE": ("photos[1].content", "FIELD_INVALID", "is not base64: letters are missing at its end"),
    "NO_USABLE_PHOTO": ("photos[0]", "PHOTO_TRUNCATED", "the file ends early; send it again"),
    "OUTCOME_INVALID": ("categoryId", "CATEGORY_UNKNOWN", "the taxonomy has no such category"),
}


def build_error_components(reasons: Any, comments: Mapping[str, str]) -> dict[str, Any]:
    """Return the schema of an error, the headers, and an example of each reason that ends a request."""
    used = {reason for method in REASONS_BY_METHOD for reason in _list_reasons(method, "POST")}
    return {
        "schemas": {"Error": _build_error_schema()},
        "headers": _HEADERS,
        "examples": {
            value.name: {
                "summary": comments[f"{_REASON}.{value.name}"],
                "value": _build_example(value.name, comments[f"{_REASON}.{value.name}"]),
            }
            for value in reasons.values
            if value.name in used
        },
    }


def build_error_responses(method: str, verb: str, comments: Mapping[str, str]) -> dict[str, Any]:
    """Return the error responses of a method by HTTP status."""
    by_status: dict[int, list[str]] = {}
    for reason in _list_reasons(method, verb):
        by_status.setdefault(get_statuses(reason)[0], []).append(reason)
    responses = {}
    for status, reasons in sorted(by_status.items()):
        meanings = [f"- `{reason}`: {comments[f'{_REASON}.{reason}']}" for reason in reasons]
        response: dict[str, Any] = {
            "description": "\n".join([_TITLES[status], "", *meanings]),
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/Error"},
                    "examples": {reason: {"$ref": f"#/components/examples/{reason}"} for reason in reasons},
                }
            },
        }
        if header := _HEADERS_BY_STATUS.get(status):
            response["headers"] = {header: {"$ref": f"#/components/headers/{header}"}}
        responses[str(status)] = response
    return responses


def _list_reasons(method: str, verb: str) -> tuple[str, ...]:
    return (*_ALWAYS, *(_POST if verb == "POST" else ()), *REASONS_BY_METHOD[method])


def _build_example(reason: str, comment: str) -> dict[str, Any]:
    """Return the body of an error as the service writes it, with the metadata that the reason's comment names."""
    meaning, _, metadata = comment.partition("Metadata:")
    field, field_reason, description = _VIOLATIONS.get(reason, ("", "", ""))
    response = error_response(
        reason,
        meaning.partition(": ")[2].strip() or meaning.strip(),
        violations=[FieldViolation(field=field, reason=field_reason, description=description)] if field else (),
        metadata={name: _METADATA[name] for name in re.findall(r"`(\w+)`", metadata)},
        retry_delay_s=0.8 if "RetryInfo" in comment else None,
    )
    example: dict[str, Any] = json.loads(bytes(response.body))
    return example


def _build_error_schema() -> dict[str, Any]:
    reason = {"$ref": "#/components/schemas/ErrorReason"}
    photo_reason = {"$ref": "#/components/schemas/PhotoErrorReason"}
    violation = {
        "type": "object",
        "required": ["field", "reason", "description"],
        "properties": {
            "field": {"type": "string", "description": "Path of the field.", "examples": ["photos[1].content"]},
            "reason": {"anyOf": [reason, photo_reason], "description": "What is wrong with it, for machines."},
            "description": {"type": "string", "description": "For people; may change."},
        },
    }
    properties: dict[str, Any] = {
        "code": {"type": "integer", "description": "The HTTP status."},
        "status": {"type": "string", "description": "The gRPC status.", "examples": ["INVALID_ARGUMENT"]},
        "reason": {**reason, "description": "Stable, for machines."},
        "message": {"type": "string", "description": "For people; may change."},
        "violations": {"type": "array", "items": violation, "description": "The fields that are wrong."},
        "metadata": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Numbers behind the reason, such as `limit` and `value`.",
        },
        "retryDelayMs": {"type": "integer", "description": "Delay before a retry; absent where none helps."},
    }
    error = {"type": "object", "required": ["code", "status", "reason", "message"], "properties": properties}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {"error": error},
        "description": "Why a request failed.",
    }
