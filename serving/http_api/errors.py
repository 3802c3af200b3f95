"""From gRPC's errors to HTTP's, details included."""

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from starlette.responses import JSONResponse

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
"""As google/rpc/code.proto pairs them."""


def error_response(
    http_status: int,
    message: str,
    *,
    reason: str,
    violations: dict[str, str] | None = None,
    retry_delay_ms: int | None = None,
    status: str = "INVALID_ARGUMENT",
) -> JSONResponse:
    """`{"error": {"code", "status", "reason", "message", "violations", "retryDelayMs"}}`."""
    error: dict[str, Any] = {"code": http_status, "status": status, "reason": reason, "message": message}
    if violations:
        error["violations"] = [{"field": field, "description": text} for field, text in violations.items()]
    headers = {}
    if retry_delay_ms is not None:
        error["retryDelayMs"] = retry_delay_ms
        headers["Retry-After"] = str(-(-retry_delay_ms // 1000))
    if http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error}, http_status, headers)


def from_grpc_error(error: grpc.aio.AioRpcError) -> JSONResponse:
    """What the service answered, its reason, its violations and its delay."""
    code = error.code()
    reason, violations, retry_delay_ms = "", {}, None
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            violations = {violation.field: violation.description for violation in bad.field_violations}
        elif detail.Unpack(retry):
            retry_delay_ms = retry.retry_delay.ToMilliseconds()
    is_ours = status is not None or code == grpc.StatusCode.UNIMPLEMENTED
    message = error.details() if is_ours else _PLAIN_MESSAGES.get(code)
    return error_response(
        _HTTP_STATUS.get(code, 500),
        message or code.name.lower().replace("_", " "),
        reason=reason or code.name,
        violations=violations,
        retry_delay_ms=retry_delay_ms,
        status=code.name,
    )


_PLAIN_MESSAGES = {
    grpc.StatusCode.UNAVAILABLE: "no gateway process answers now; try again",
    grpc.StatusCode.DEADLINE_EXCEEDED: "no answer in time; allow more in x-timeout-ms",
}
"""Where gRPC itself failed the call, its words are of sockets and of no use to a caller."""
