"""Errors of calls: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo (AIP-193), as Python values."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from listing_vision_client.limits import REQUEST_LIMIT_BYTES

__all__ = [
    "CallFailed",
    "ErrorDetails",
    "FieldViolation",
    "choose_retry_delay_s",
    "convert_rpc_error",
    "convert_status",
    "parse_status",
    "read_error_details",
]

_STATUS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, kw_only=True)
class FieldViolation:
    """What is wrong with one field of a request."""

    field: str
    """Path of the field, such as `photos[3].content`."""
    reason: str
    """A name of ErrorReason or, for photos, of PhotoErrorReason."""
    description: str
    """For people; may change."""


@dataclass(frozen=True, kw_only=True)
class ErrorDetails:
    """Details of a failed call; all empty when gRPC itself failed it."""

    reason: str = ""
    """A name of ErrorReason, such as `NO_USABLE_PHOTO`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Limits and counts, such as `limit` and `value`."""
    violations: tuple[FieldViolation, ...] = ()
    retry_delay_s: float | None = None
    """Delay before a retry; None: the service suggests none."""
    is_from_service: bool = False
    """Whether the service ended the call; gRPC's own errors carry no status details."""


# Not frozen: Python itself writes an exception's traceback and cause.
@dataclass(kw_only=True, eq=False)
class CallFailed(Exception):
    """A call that the service refused or that did not reach it."""

    code: grpc.StatusCode
    message: str
    details: ErrorDetails

    @property
    def reason(self) -> str:
        """A name of ErrorReason; empty when gRPC itself failed the call."""
        return self.details.reason

    @property
    def retry_delay_s(self) -> float | None:
        """Delay before a retry; None: the service suggests none."""
        return self.details.retry_delay_s

    def __str__(self) -> str:
        named = "".join(f"\n  {one.field}: {one.reason}: {one.description}" for one in self.details.violations)
        return f"{self.reason or self.code.name}: {self.message}{named}"


def parse_status(status: status_pb2.Status) -> ErrorDetails:
    reason, retry_delay_s = "", None
    metadata: dict[str, str] = {}
    violations: tuple[FieldViolation, ...] = ()
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = tuple(
                FieldViolation(field=one.field, reason=one.reason, description=one.description)
                for one in bad.field_violations
            )
        elif detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToNanoseconds() / 1e9
    return ErrorDetails(
        reason=reason, metadata=metadata, violations=violations, retry_delay_s=retry_delay_s, is_from_service=True
    )


def read_error_details(error: grpc.RpcError) -> ErrorDetails:
    """Return the details that a failed call carries in its trailing metadata."""
    metadata: Iterable[Any] = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _STATUS_KEY and isinstance(value, bytes):
            return parse_status(status_pb2.Status.FromString(value))
    return ErrorDetails()


def convert_rpc_error(error: grpc.RpcError) -> CallFailed:
    """Return the failure of a call that gRPC raised."""
    code, message, details = error.code(), error.details() or "", read_error_details(error)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and not details.reason:
        limit = f"{REQUEST_LIMIT_BYTES >> 20} MiB"
        message = f"{message}; the photos of a request may have {limit} together: send fewer or smaller photos"
    return CallFailed(code=code, message=message, details=details)


def convert_status(status: status_pb2.Status) -> CallFailed:
    """Return the failure of one listing of a stream."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return CallFailed(code=code, message=status.message, details=parse_status(status))


def choose_retry_delay_s(failed: CallFailed, *, num_retries_left: int, time_left_s: float) -> float | None:
    """Return the delay before a refused call is repeated; None: it is not repeated.

    Only what the service refused for lack of capacity or quota, and with a delay, is repeated here: gRPC itself repeats
    what was UNAVAILABLE. Delays are up to a fifth longer, so that calls which were refused together do not come back
    together.
    """
    delay_s = failed.retry_delay_s
    if failed.code != grpc.StatusCode.RESOURCE_EXHAUSTED or delay_s is None or num_retries_left <= 0:
        return None
    delay_s *= random.uniform(1.0, 1.2)
    return delay_s if delay_s < time_left_s else None
