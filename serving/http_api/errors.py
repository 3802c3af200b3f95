"""HTTP errors: one table from each reason to its status, and gRPC errors with their details."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from starlette.responses import JSONResponse

from listing_vision_client.errors import FieldViolation, read_error_details
from serving.api.status import CODES

__all__ = ["HTTP_ERRORS", "STATUSES_BY_CODE", "HttpRefusal", "error_response", "from_grpc_error", "get_statuses"]

_log = logging.getLogger(__name__)

STATUSES_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""The mapping of google/rpc/code.proto."""

HTTP_ERRORS: Mapping[str, tuple[int, grpc.StatusCode]] = {
    "BODY_UNREADABLE": (400, grpc.StatusCode.INVALID_ARGUMENT),
    "TIMEOUT_OUT_OF_RANGE": (400, grpc.StatusCode.INVALID_ARGUMENT),
    "CROSS_SITE_REQUEST": (403, grpc.StatusCode.PERMISSION_DENIED),
    "ROUTE_NOT_FOUND": (404, grpc.StatusCode.NOT_FOUND),
    "METHOD_NOT_ALLOWED": (405, grpc.StatusCode.UNIMPLEMENTED),
    "REQUEST_TIMEOUT": (408, grpc.StatusCode.DEADLINE_EXCEEDED),
    "REQUEST_TOO_LARGE": (413, grpc.StatusCode.RESOURCE_EXHAUSTED),
    "CONTENT_TYPE_UNSUPPORTED": (415, grpc.StatusCode.INVALID_ARGUMENT),
}
"""Reasons whose HTTP status is not that of a gRPC code: those of HTTP alone, and 413, which says "do not retry" where
429 says "retry"."""

_FALLBACK_REASONS = {
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "TOO_BUSY",
    grpc.StatusCode.CANCELLED: "MODEL_UNAVAILABLE",
    grpc.StatusCode.UNAVAILABLE: "MODEL_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_TOO_SHORT",
}
"""Reasons of errors that gRPC itself gives to a call; INTERNAL for all other codes."""
_FALLBACK_MESSAGES = {
    "UNAUTHENTICATED": "unauthenticated",
    "TOO_BUSY": "the service is overloaded; try again",
    "MODEL_UNAVAILABLE": "no gateway process answers now; try again",
    "DEADLINE_TOO_SHORT": "no answer in time; allow more in x-timeout-ms",
    "INTERNAL": "the service failed; report it to the operator",
}
"""Their messages: those of gRPC are about sockets."""
_DEFAULT_RETRY_S = 1.0
"""Delay before a retry of what is unavailable, where the service suggests none."""


@dataclass(kw_only=True, eq=False)
class HttpRefusal(Exception):
    """A request that is refused before a gateway process sees it."""

    reason: str
    """A key of `HTTP_ERRORS`, or a reason of the service."""
    message: str
    """For people: what, which value, what to do."""
    violations: Sequence[FieldViolation] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_delay_s: float | None = None

    def __str__(self) -> str:
        return self.message

    def to_response(self) -> JSONResponse:
        _log.info("refused: %s: %.300r", self.reason, self.message)  # it may quote what the caller sent
        return error_response(
            self.reason,
            self.message,
            violations=self.violations,
            metadata=self.metadata,
            retry_delay_s=self.retry_delay_s,
            headers=self.headers,
        )


def get_statuses(reason: str) -> tuple[int, grpc.StatusCode]:
    """Return the HTTP status and the gRPC status of a reason of ErrorReason that ends a request."""
    code = CODES.get(reason, grpc.StatusCode.INTERNAL)
    return HTTP_ERRORS.get(reason) or (STATUSES_BY_CODE[code], code)


def error_response(
    reason: str,
    message: str,
    *,
    violations: Sequence[FieldViolation] = (),
    metadata: Mapping[str, object] | None = None,
    retry_delay_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    statuses: tuple[int, grpc.StatusCode] | None = None,
) -> JSONResponse:
    """Return `{"error": {"code", "status", "reason", "message", "violations", "metadata", "retryDelayMs"}}`.

    Args:
        statuses: of HTTP and gRPC; default: those of the reason.
    """
    http_status, code = statuses or get_statuses(reason)
    error: dict[str, Any] = {"code": http_status, "status": code.name, "reason": reason, "message": message}
    if violations:
        error["violations"] = [
            {"field": _to_json_name(one.field), "reason": one.reason, "description": one.description}
            for one in violations
        ]
    if metadata:
        error["metadata"] = {key: str(value) for key, value in metadata.items()}
    headers = dict(headers or {})
    if retry_delay_s is None and http_status == 503:
        retry_delay_s = _DEFAULT_RETRY_S
    if retry_delay_s is not None:
        error["retryDelayMs"] = round(1000 * retry_delay_s)
        headers["Retry-After"] = str(math.ceil(retry_delay_s))
    if http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error}, http_status, headers)


def from_grpc_error(error: grpc.aio.AioRpcError) -> JSONResponse:
    """Return the service's error with reason, violations, metadata and retry delay."""
    details = read_error_details(error)
    if not details.reason:
        reason = _FALLBACK_REASONS.get(error.code(), "INTERNAL")
        return error_response(reason, _FALLBACK_MESSAGES[reason])
    # A gateway of another version may have reasons that are not known here.
    statuses = HTTP_ERRORS.get(details.reason) or (STATUSES_BY_CODE.get(error.code(), 500), error.code())
    return error_response(
        details.reason,
        error.details() or "",
        violations=details.violations,
        metadata=details.metadata,
        retry_delay_s=details.retry_delay_s,
        statuses=statuses,
    )


def _to_json_name(path: str) -> str:
    """Return a field's path by the names of JSON: `photo.language_code` is `photo.languageCode`."""
    return re.sub(r"_([a-z0-9])", lambda found: found.group(1).upper(), path)
