"""Convert gRPC errors to HTTP errors, details included."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import grpc
from starlette.responses import JSONResponse

from listing_vision_client.errors import FieldViolation, read_error_details

__all__ = ["error_response", "from_grpc_error"]

_HTTP_STATUS = {
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


def error_response(
    http_status: int,
    message: str,
    *,
    reason: str,
    violations: Sequence[FieldViolation] = (),
    metadata: Mapping[str, str] | None = None,
    retry_delay_s: float | None = None,
    status: str = "INVALID_ARGUMENT",
) -> JSONResponse:
    """`{"error": {"code", "status", "reason", "message", "violations", "retryDelayMs"}}`."""
    error: dict[str, Any] = {"code": http_status, "status": status, "reason": reason, "message": message}
    if violations:
        error["violations"] = [asdict(violation) for violation in violations]
    if metadata:
        error["metadata"] = metadata
    headers = {}
    if retry_delay_s is not None:
        error["retryDelayMs"] = round(1000 * retry_delay_s)
        headers["Retry-After"] = str(math.ceil(retry_delay_s))
    if http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error}, http_status, headers)


def from_grpc_error(error: grpc.aio.AioRpcError) -> JSONResponse:
    """Return the service's error with reason, violations and retry delay."""
    code = error.code()
    details = read_error_details(error)
    is_ours = details.is_from_service or code == grpc.StatusCode.UNIMPLEMENTED
    message = error.details() if is_ours else _PLAIN_MESSAGES.get(code)
    return error_response(
        _HTTP_STATUS.get(code, 500),
        message or code.name.lower().replace("_", " "),
        reason=details.reason or code.name,
        violations=details.violations,
        metadata=dict(details.metadata),
        retry_delay_s=details.retry_delay_s,
        status=code.name,
    )


_PLAIN_MESSAGES = {
    grpc.StatusCode.UNAVAILABLE: "no gateway process answers now; try again",
    grpc.StatusCode.DEADLINE_EXCEEDED: "no answer in time; allow more in x-timeout-ms",
}
"""Messages for calls that gRPC itself failed, whose own messages are about sockets."""
