"""The one table from what went wrong to the gRPC status that a client sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Never

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

__all__ = ["CODES", "DOMAIN", "Refusal", "abort"]

DOMAIN = "listing.vision"

CODES: Mapping[str, grpc.StatusCode] = {
    "LISTING_ID_TOO_LONG": grpc.StatusCode.INVALID_ARGUMENT,
    "ALTERNATIVE_COUNT_OUT_OF_RANGE": grpc.StatusCode.INVALID_ARGUMENT,
    "PHOTO_URI_NOT_ALLOWED": grpc.StatusCode.INVALID_ARGUMENT,
    "OUTCOME_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "OUTCOMES_NOT_RECORDED": grpc.StatusCode.UNIMPLEMENTED,
    "NO_PHOTOS": grpc.StatusCode.INVALID_ARGUMENT,
    "TOO_MANY_PHOTOS": grpc.StatusCode.INVALID_ARGUMENT,
    "NO_USABLE_PHOTO": grpc.StatusCode.INVALID_ARGUMENT,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_BUSY": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "DEADLINE_TOO_SHORT": grpc.StatusCode.DEADLINE_EXCEEDED,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "MODEL_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "MODEL_BROKEN": grpc.StatusCode.INTERNAL,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}


# Not frozen: Python itself writes an exception's traceback and cause.
@dataclass(kw_only=True, eq=False)
class Refusal(Exception):
    """A call that ends with an error."""

    reason: str
    """Stable, for machines; a key of the table."""
    message: str
    """For people: what, which value, what to do."""
    violations: Mapping[str, str] = field(default_factory=dict)
    """Field of the request to what is wrong with it."""
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def code(self) -> grpc.StatusCode:
        return CODES[self.reason]


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", refusal: Refusal) -> Never:
    """End the call with the refusal's status and details (AIP-193)."""
    packed = [_pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN))]
    if refusal.violations:
        violation = error_details_pb2.BadRequest.FieldViolation
        packed.append(
            _pack(
                error_details_pb2.BadRequest(
                    field_violations=[violation(field=f, description=d) for f, d in refusal.violations.items()]
                )
            )
        )
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(refusal.retry_after_s * 1000))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code, message = refusal.code, refusal.message
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    # grpc.aio has no abort_with_status; this is the metadata that it would send.
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]  # google.rpc's messages carry no types
    return packed
