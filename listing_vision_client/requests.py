"""Requests of the contract from Python values."""

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import grpc

from listing_vision_client.enums import ExplanationTarget, FormTreatment
from listing_vision_client.errors import CallFailed, ErrorDetails
from listing_vision_client.limits import REQUEST_LIMIT_BYTES
from listing_vision_client.protocol import listing_vision_pb2 as pb

__all__ = [
    "BrandChoice",
    "ListingToClassify",
    "PhotoSource",
    "build_classify_request",
    "build_explain_request",
    "build_outcome_request",
]

PhotoSource = bytes | str | os.PathLike[str]
"""A photo: the bytes of its file, a URI (a string with `://`) from which the service fetches it, or a path."""


@dataclass(frozen=True)
class ListingToClassify:
    """One listing to classify."""

    photos: Sequence[PhotoSource]
    """1 to 20, of 64 MiB together."""
    _: KW_ONLY
    listing_id: str = ""
    num_alternatives: int | None = None
    """Alternatives to return; None: 5."""
    language_code: str = ""
    """BCP 47 language tag of the names to return; empty: English."""
    include_embedding: bool = False
    ancestor_category_id: str = ""
    """A category that the product is known to belong below; nothing is then prefilled."""
    hidden: bool = False
    """Whether the seller is shown nothing of the response; drawn at random before the call, once for a listing."""


@dataclass(frozen=True, kw_only=True)
class BrandChoice:
    """The brand that the seller chose: exactly one of the three."""

    brand_id: str | None = None
    no_brand: bool = False
    other_name: str | None = None
    """A brand that the taxonomy does not list, as the seller wrote it."""

    def __post_init__(self) -> None:
        if (self.brand_id is not None) + self.no_brand + (self.other_name is not None) != 1:
            raise ValueError(f"{self}: give exactly one of brand_id, no_brand and other_name")


def build_classify_request(listing: ListingToClassify) -> pb.ClassifyListingRequest:
    """Return the request for a listing; photos that are paths are read.

    Raises:
        CallFailed: with the reason REQUEST_TOO_LARGE; nothing was sent.
        OSError: a photo cannot be read.
    """
    photos = [_build_photo(photo) for photo in listing.photos]
    num_bytes = sum(len(photo.content) for photo in photos)
    if num_bytes > REQUEST_LIMIT_BYTES:
        raise CallFailed(
            code=grpc.StatusCode.RESOURCE_EXHAUSTED,
            message=f"the photos together have {num_bytes} bytes, more than the limit of {REQUEST_LIMIT_BYTES}; "
            "send fewer or smaller photos",
            details=ErrorDetails(
                reason="REQUEST_TOO_LARGE", metadata={"limit": str(REQUEST_LIMIT_BYTES), "value": str(num_bytes)}
            ),
        )
    return pb.ClassifyListingRequest(
        listing_id=listing.listing_id,
        photos=photos,
        alternative_count=listing.num_alternatives,
        language_code=listing.language_code,
        include_embedding=listing.include_embedding,
        ancestor_category_id=listing.ancestor_category_id,
        hidden=listing.hidden,
    )


def build_explain_request(
    photo: PhotoSource, *, target: ExplanationTarget, language_code: str
) -> pb.ExplainPhotoRequest:
    """Return the request. Raises OSError: the photo cannot be read."""
    return pb.ExplainPhotoRequest(photo=_build_photo(photo), target=target.value, language_code=language_code)


def build_outcome_request(
    *,
    suggestion_id: str,
    listing_id: str,
    taxonomy_version: str,
    category_id: str | None,
    brand: BrandChoice | None,
    category_treatment: FormTreatment,
    brand_treatment: FormTreatment,
) -> pb.ReportOutcomeRequest:
    chosen = None
    if brand is not None:
        chosen = pb.BrandChoice(brand_id=brand.brand_id, no_brand=brand.no_brand or None, other_name=brand.other_name)
    return pb.ReportOutcomeRequest(
        suggestion_id=suggestion_id,
        listing_id=listing_id,
        taxonomy_version=taxonomy_version,
        category_id=category_id,
        brand=chosen,
        category_treatment=category_treatment.value,
        brand_treatment=brand_treatment.value,
    )


def _build_photo(photo: PhotoSource) -> pb.Photo:
    if isinstance(photo, bytes):
        return pb.Photo(content=photo)
    if isinstance(photo, str) and "://" in photo:
        return pb.Photo(uri=photo)
    return pb.Photo(content=Path(photo).read_bytes())
