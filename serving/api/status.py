"""The one table from what went wrong to the gRPC status that a client sees."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Never

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from listing_vision_client.errors import FieldViolation

__all__ = ["CODES", "DOMAIN", "FieldViolation", "Refusal", "abort", "build_status"]

DOMAIN = "listing.vision"

CODES: Mapping[str, grpc.StatusCode] = {
    "NO_PHOTOS": grpc.StatusCode.INVALID_ARGUMENT,
    "TOO_MANY_PHOTOS": grpc.StatusCode.INVALID_ARGUMENT,
    "REQUEST_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "NO_USABLE_PHOTO": grpc.StatusCode.INVALID_ARGUMENT,
    "PHOTOS_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "LISTING_ID_TOO_LONG": grpc.StatusCode.INVALID_ARGUMENT,
    "ALTERNATIVE_COUNT_OUT_OF_RANGE": grpc.StatusCode.INVALID_ARGUMENT,
    "LANGUAGE_CODE_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "ANCESTOR_UNKNOWN": grpc.StatusCode.INVALID_ARGUMENT,
    "PHOTO_URI_NOT_ALLOWED": grpc.StatusCode.INVALID_ARGUMENT,
    "PHOTO_URIS_DISABLED": grpc.StatusCode.UNIMPLEMENTED,
    "OUTCOME_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "OUTCOMES_NOT_RECORDED": grpc.StatusCode.UNIMPLEMENTED,
    "TAXONOMY_UNKNOWN": grpc.StatusCode.NOT_FOUND,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_BUSY": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "DEADLINE_TOO_SHORT": grpc.StatusCode.DEADLINE_EXCEEDED,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "MODEL_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "MODEL_BROKEN": grpc.StatusCode.INTERNAL,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
"""Reasons of ErrorReason with which a call ends. The other reasons are of fields, or of HTTP alone."""


# Not frozen: Python itself writes an exception's traceback and cause.
@dataclass(kw_only=True, eq=False)
class Refusal(Exception):
    """A call that ends with an error."""

    reason: str
    """Stable, for machines; a key of the table."""
    message: str
    """For people: what, which value, what to do."""
    violations: Sequence[FieldViolation] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Limits and counts, for machines."""
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def code(self) -> grpc.StatusCode:
        return CODES[self.reason]


def build_status(refusal: Refusal) -> status_pb2.Status:
    """Return the refusal's status with its details (AIP-193)."""
    metadata = {key: str(value) for key, value in refusal.metadata.items()}
    packed = [_pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=metadata))]
    if refusal.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=one.field, reason=one.reason, description=one.description)
            for one in refusal.violations
        ]
        packed.append(_pack(error_details_pb2.BadRequest(field_violations=violations)))
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(refusal.retry_after_s * 1000))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=refusal.code.value[0], message=refusal.message, details=packed)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", refusal: Refusal) -> Never:
    """End the call with the refusal's status and details."""
    # grpc.aio has no abort_with_status; this is the metadata that it would send.
    details = (("grpc-status-details-bin", build_status(refusal).SerializeToString()),)
    try:
        await context.abort(refusal.code, refusal.message, details)
    except grpc.aio.InternalError as error:
        # The caller has gone, and gRPC has ended the call before us: there is nobody to tell, and nothing to log.
        raise asyncio.CancelledError from error


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]  # google.rpc's messages carry no types
    return packed
