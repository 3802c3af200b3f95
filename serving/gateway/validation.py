"""Check a request before anything is spent on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from serving.api.limits import (
    DEFAULT_ALTERNATIVES,
    MAX_ALTERNATIVES,
    MAX_LISTING_ID_CHARS,
    MAX_PHOTOS,
    MAX_REQUEST_ID_CHARS,
)
from serving.api.status import Refusal
from serving.protocol import listing_vision_pb2 as pb

__all__ = ["ValidListing", "read_request_id", "validate_listing"]

REQUEST_ID_HEADER = "x-request-id"
RESERVED_BYTES_PER_URI = 8 << 20
"""Reserved for a photo that is still to be fetched: twice what phones make, half of the limit."""


@dataclass(frozen=True, kw_only=True)
class ValidListing:
    """A listing whose request keeps to the contract."""

    listing_id: str
    contents: list[bytes]
    """Encoded photos; empty where a URI is given instead."""
    uris: dict[int, str]
    """URIs of the photos to fetch, by photo index."""
    num_alternatives: int

    @property
    def num_photos(self) -> int:
        return len(self.contents)

    @property
    def num_bytes(self) -> int:
        """Memory to reserve for the photos."""
        return sum(map(len, self.contents)) + len(self.uris) * RESERVED_BYTES_PER_URI


def validate_listing(
    request: pb.ClassifyListingRequest, *, check_uris: Callable[[dict[int, str]], None] | None
) -> ValidListing:
    """Return the listing of a request.

    Args:
        request: as received.
        check_uris: raises Refusal for URIs that must not be fetched; None: no URI is allowed.

    Raises:
        Refusal: INVALID_ARGUMENT, naming the field.
    """
    _check_listing_id(request.listing_id)
    _check_photo_count(len(request.photos))
    num_alternatives = _read_alternative_count(request)
    uris = {i: photo.uri for i, photo in enumerate(request.photos) if photo.WhichOneof("source") == "uri"}
    if uris and check_uris is None:
        detail = "this service fetches no photos; send their bytes as content"
        raise Refusal(
            reason="PHOTO_URI_NOT_ALLOWED", message=detail, violations={f"photos[{i}].uri": detail for i in uris}
        )
    if uris and check_uris is not None:
        check_uris(uris)
    return ValidListing(
        listing_id=request.listing_id,
        contents=[photo.content for photo in request.photos],
        uris=uris,
        num_alternatives=num_alternatives,
    )


def read_request_id(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Return the caller's `x-request-id`, which joins its logs with ours; empty if it sent none."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID_HEADER and isinstance(value, str):
            return value[:MAX_REQUEST_ID_CHARS]
    return ""


def _check_listing_id(listing_id: str) -> None:
    if len(listing_id) > MAX_LISTING_ID_CHARS:
        detail = f"{len(listing_id)} characters exceed the limit of {MAX_LISTING_ID_CHARS}"
        raise Refusal(
            reason="LISTING_ID_TOO_LONG", message=f"listing_id: {detail}; shorten it", violations={"listing_id": detail}
        )


def _check_photo_count(num_photos: int) -> None:
    if num_photos == 0:
        detail = f"give 1 to {MAX_PHOTOS} photos"
        raise Refusal(reason="NO_PHOTOS", message=f"the request has no photos; {detail}", violations={"photos": detail})
    if num_photos > MAX_PHOTOS:
        detail = f"{num_photos} photos exceed the limit of {MAX_PHOTOS}"
        raise Refusal(
            reason="TOO_MANY_PHOTOS", message=f"{detail}; send the first {MAX_PHOTOS}", violations={"photos": detail}
        )


def _read_alternative_count(request: pb.ClassifyListingRequest) -> int:
    if not request.HasField("alternative_count"):
        return DEFAULT_ALTERNATIVES
    if not 0 <= request.alternative_count <= MAX_ALTERNATIVES:
        detail = f"{request.alternative_count} is outside 0..{MAX_ALTERNATIVES}"
        raise Refusal(
            reason="ALTERNATIVE_COUNT_OUT_OF_RANGE",
            message=f"alternative_count: {detail}",
            violations={"alternative_count": detail},
        )
    return request.alternative_count
