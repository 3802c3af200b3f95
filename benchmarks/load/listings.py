"""Serialised requests, and the comparison of a response with the expected one."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from listing_vision_client.protocol import listing_vision_pb2 as pb

__all__ = ["ExpectedResponse", "Listing", "make_listings"]


@dataclass(frozen=True, kw_only=True)
class Listing:
    request: bytes
    """A `ClassifyListingRequest`, serialised once, since serialising 300 KB per call would slow the generator."""
    num_photos: int
    """Number of good photos."""
    hostile_index: int | None = None
    """Index of the request's photo that must be rejected."""


class _ResponseSummary(NamedTuple):
    """What callers act on, without probabilities, whose last digits depend on the batch."""

    category_id: str
    actions: tuple[int, ...]
    brand: tuple[int, str, int]
    photos: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class ExpectedResponse:
    """The response of an idle server to a listing."""

    response: bytes
    summary: _ResponseSummary

    @classmethod
    def from_response(cls, listing: Listing, response: bytes) -> "ExpectedResponse":
        """Parse a response. Raises ValueError where it does not fit the listing."""
        try:
            summary = _summarize(response)
        except (DecodeError, IndexError) as error:
            raise ValueError(f"not a response to a listing: {response[:80]!r}") from error
        at_error = [index for index, (_, _, error) in enumerate(summary.photos) if error]
        expected = [] if listing.hostile_index is None else [listing.hostile_index]
        if at_error != expected or len(summary.photos) != listing.num_photos + len(expected):
            raise ValueError(
                f"{len(summary.photos)} photos are in the response, those at {at_error} with an error; the request has "
                f"{listing.num_photos} good photos and hostile ones at {expected}"
            )
        return cls(response, summary)

    def find_difference(self, response: bytes) -> str:
        """Return the fields in which another response differs; empty: none."""
        if response == self.response:
            return ""
        try:
            summary = _summarize(response)
        except (DecodeError, IndexError):
            return "not an answer"
        different = [
            name for name, mine, other in zip(self.summary._fields, self.summary, summary, strict=True) if mine != other
        ]
        return different[0] if different else ""


def make_listings(
    photos: Sequence[bytes], *, num_photos_per_listing: int = 1, hostile: Sequence[bytes] = ()
) -> tuple[list[Listing], list[Listing]]:
    """Return listings that share the photos, and for each hostile photo one that holds it among good ones."""
    if not photos:
        raise ValueError("there are no photos to send")
    turns = itertools.cycle(photos)
    good = [
        [next(turns) for _ in range(num_photos_per_listing)]
        for _ in range(max(1, len(photos) // num_photos_per_listing))
    ]
    clean = [
        Listing(request=_request(f"listing-{number}", contents), num_photos=len(contents))
        for number, contents in enumerate(good)
    ]
    mixed = []
    for number, content in enumerate(hostile):
        contents = list(good[number % len(good)])
        index = number % (len(contents) + 1)
        contents.insert(index, content)
        request = _request(f"hostile-{number}", contents)
        mixed.append(Listing(request=request, num_photos=len(contents) - 1, hostile_index=index))
    return clean, mixed


def _request(listing_id: str, contents: Sequence[bytes]) -> bytes:
    photos = [pb.Photo(content=content) for content in contents]
    return pb.ClassifyListingRequest(listing_id=listing_id, photos=photos).SerializeToString()


def _summarize(response: bytes) -> _ResponseSummary:
    answer = pb.ClassifyListingResponse.FromString(response)
    return _ResponseSummary(
        category_id=answer.category_path[-1].category_id,
        actions=tuple(step.action for step in answer.category_path),
        brand=(answer.brand.kind, answer.brand.brand_id, answer.brand.action),
        photos=tuple(
            (photo.recognition.category_id, photo.recognition.brand_id, photo.error.reason) for photo in answer.photos
        ),
    )
