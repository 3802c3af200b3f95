"""Check a request before anything is spent on it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.limits import (
    DEFAULT_ALTERNATIVES,
    MAX_ALTERNATIVES,
    MAX_LISTING_ID_CHARS,
    MAX_PHOTOS,
    MAX_REQUEST_ID_CHARS,
    REQUEST_LIMIT_BYTES,
)
from serving.api.listing_request import ListingRequest
from serving.api.responses import ResponseOptions
from serving.api.status import FieldViolation, Refusal
from vision.images import EncodedPhoto
from vision.taxonomy import Taxonomy

__all__ = [
    "ValidListing",
    "check_ancestor",
    "check_language_code",
    "check_photo_uris",
    "read_request_id",
    "validate_listing",
]

_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,6}")
"""The shape of RFC 5646 tags; whether a subtag is registered is not checked."""
REQUEST_ID_HEADER = "x-request-id"
RESERVED_BYTES_PER_URI = 8 << 20
"""Reserved for a photo that is still to be fetched: twice what phones make, half of the limit."""


@dataclass(frozen=True, kw_only=True)
class ValidListing:
    """A listing whose request keeps to the contract."""

    contents: list[EncodedPhoto]
    """Encoded photos; empty where a URI is given instead."""
    uris: dict[int, str]
    """URIs of the photos to fetch, by photo index."""
    options: ResponseOptions

    @property
    def photo_fields(self) -> list[str]:
        """Path of the field that holds each photo."""
        return [f"photos[{i}].{'uri' if i in self.uris else 'content'}" for i in range(self.num_photos)]

    @property
    def num_photos(self) -> int:
        return len(self.contents)

    @property
    def num_bytes(self) -> int:
        """Memory to reserve for the photos."""
        return sum(map(len, self.contents)) + len(self.uris) * RESERVED_BYTES_PER_URI


def validate_listing(
    request: ListingRequest, *, check_uris: Callable[[Mapping[str, str]], None] | None
) -> ValidListing:
    """Return the listing of a request.

    Args:
        request: as received.
        check_uris: raises Refusal for URIs that must not be fetched; None: no URI is allowed.

    Raises:
        Refusal: INVALID_ARGUMENT, naming the field.
    """
    fields = request.fields
    _check_listing_id(fields.listing_id)
    _check_photo_count(len(request.contents))
    check_language_code(fields.language_code)
    num_alternatives = _read_alternative_count(fields)
    _check_size(request.num_photo_bytes)
    check_photo_uris({f"photos[{i}].uri": uri for i, uri in request.uris.items()}, check_uris)
    return ValidListing(
        contents=request.contents,
        uris=request.uris,
        options=ResponseOptions(
            listing_id=fields.listing_id,
            num_alternatives=num_alternatives,
            language=fields.language_code,
            with_embedding=fields.include_embedding,
            ancestor_id=fields.ancestor_category_id,
        ),
    )


def check_photo_uris(uris: Mapping[str, str], check_uris: Callable[[Mapping[str, str]], None] | None) -> None:
    """Check URIs by the path of their field.

    Raises:
        Refusal: PHOTO_URIS_DISABLED, or as `check_uris`.
    """
    if not uris:
        return
    if check_uris is None:
        detail = "this service fetches no photos; send their bytes as content"
        violations = [FieldViolation(field=field, reason="PHOTO_URIS_DISABLED", description=detail) for field in uris]
        raise Refusal(reason="PHOTO_URIS_DISABLED", message=detail, violations=violations)
    check_uris(uris)


def check_language_code(code: str) -> None:
    """Raises Refusal: LANGUAGE_CODE_INVALID."""
    if code and not _LANGUAGE_TAG.fullmatch(code):
        detail = f"{code[:40]!r} is not a BCP 47 language tag, such as ja or en-GB"
        raise _field_refusal("language_code", "LANGUAGE_CODE_INVALID", detail)


def check_ancestor(category_id: str, taxonomy: Taxonomy) -> None:
    """Raises Refusal: ANCESTOR_UNKNOWN."""
    if category_id and category_id not in taxonomy.node_index:
        detail = f"{category_id[:100]!r} is not in taxonomy {taxonomy.version}; GetTaxonomy lists the categories"
        raise _field_refusal("ancestor_category_id", "ANCESTOR_UNKNOWN", detail)


def read_request_id(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Return the caller's `x-request-id`, which joins its logs with ours; empty if it sent none."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID_HEADER and isinstance(value, str):
            return value[:MAX_REQUEST_ID_CHARS]
    return ""


def _check_listing_id(listing_id: str) -> None:
    if len(listing_id) > MAX_LISTING_ID_CHARS:
        detail = f"{len(listing_id)} characters exceed the limit of {MAX_LISTING_ID_CHARS}; shorten it"
        raise _field_refusal(
            "listing_id", "LISTING_ID_TOO_LONG", detail, limit=MAX_LISTING_ID_CHARS, value=len(listing_id)
        )


def _check_size(num_bytes: int) -> None:
    if num_bytes > REQUEST_LIMIT_BYTES:
        detail = f"{num_bytes} bytes of photos exceed the limit of {REQUEST_LIMIT_BYTES}; send fewer or smaller photos"
        raise _field_refusal("photos", "REQUEST_TOO_LARGE", detail, limit=REQUEST_LIMIT_BYTES, value=num_bytes)


def _check_photo_count(num_photos: int) -> None:
    if num_photos == 0:
        detail = f"the request has no photos; give 1 to {MAX_PHOTOS}"
        raise _field_refusal("photos", "NO_PHOTOS", detail, limit=MAX_PHOTOS, value=0)
    if num_photos > MAX_PHOTOS:
        detail = f"{num_photos} photos exceed the limit of {MAX_PHOTOS}; send the first {MAX_PHOTOS}"
        raise _field_refusal("photos", "TOO_MANY_PHOTOS", detail, limit=MAX_PHOTOS, value=num_photos)


def _read_alternative_count(request: pb.ClassifyListingRequest) -> int:
    if not request.HasField("alternative_count"):
        return DEFAULT_ALTERNATIVES
    count = request.alternative_count
    if not 0 <= count <= MAX_ALTERNATIVES:
        detail = f"{count} is outside 0..{MAX_ALTERNATIVES}"
        raise _field_refusal(
            "alternative_count", "ALTERNATIVE_COUNT_OUT_OF_RANGE", detail, limit=MAX_ALTERNATIVES, value=count
        )
    return count


def _field_refusal(field: str, reason: str, detail: str, **metadata: object) -> Refusal:
    return Refusal(
        reason=reason,
        message=f"{field}: {detail}",
        violations=[FieldViolation(field=field, reason=reason, description=detail)],
        metadata=metadata,
    )
