"""Read the details of a failed call (AIP-193): ErrorInfo, BadRequest and RetryInfo."""

from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

__all__ = ["ErrorDetails", "read_error_details"]


@dataclass(frozen=True, kw_only=True)
class ErrorDetails:
    reason: str = ""
    """Stable, such as `NO_USABLE_PHOTO`; empty when gRPC itself failed the call."""
    violations: dict[str, str] = field(default_factory=dict)
    """Field of the request to what is wrong with it."""
    retry_delay_ms: int | None = None
    is_from_service: bool = False
    """Whether the service ended the call; gRPC's own errors carry no status details."""


def read_error_details(error: grpc.RpcError) -> ErrorDetails:
    status = rpc_status.from_call(error)
    reason, violations, retry_delay_ms = "", {}, None
    for detail in status.details if status else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            violations = {violation.field: violation.description for violation in bad.field_violations}
        elif detail.Unpack(retry):
            retry_delay_ms = retry.retry_delay.ToMilliseconds()
    return ErrorDetails(
        reason=reason, violations=violations, retry_delay_ms=retry_delay_ms, is_from_service=status is not None
    )
