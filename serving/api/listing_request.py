"""A listing's request, parsed without copying its photos.

protobuf copies each photo when it parses the message and again when its bytes are read. For a message of 60 MiB this
blocks the event loop, and with it all other callers of the process, for tens of milliseconds. Here photos are views of
the message.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from listing_vision_client.protocol import listing_vision_pb2 as pb
from vision.images import EncodedPhoto

__all__ = ["ListingRequest", "NumberedRequest"]

MAX_FIELDS = 100
"""Limit for a message that is parsed here; protobuf parses one with more, in C."""
MAX_TAG_BYTES = 5
_LENGTH_DELIMITED = 2
_CONTENT_TAG = pb.Photo.CONTENT_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


@dataclass(frozen=True)
class ListingRequest:
    """A `ClassifyListingRequest` as received."""

    fields: pb.ClassifyListingRequest
    """All fields but the photos."""
    contents: list[EncodedPhoto]
    """Encoded photos; empty where a URI, or nothing, is given instead."""
    uris: dict[int, str]
    """URIs by photo index."""

    @property
    def num_photo_bytes(self) -> int:
        return sum(map(len, self.contents))

    @classmethod
    def parse(cls, message: bytes | memoryview) -> "ListingRequest":
        """Raises DecodeError: it is no such message."""
        photos, rest = _split(message, pb.ClassifyListingRequest.PHOTOS_FIELD_NUMBER)
        return cls.create(pb.ClassifyListingRequest.FromString(rest), photos)

    @classmethod
    def create(cls, fields: pb.ClassifyListingRequest, photos: list[memoryview] | None = None) -> "ListingRequest":
        """Args: photos: as `Photo` messages, before those of `fields`. Raises DecodeError: one is no such message."""
        contents: list[EncodedPhoto] = []
        uris: dict[int, str] = {}
        for serialized in photos or ():
            content = _find_content(serialized)
            if content is None:
                _add_photo(pb.Photo.FromString(bytes(serialized)), contents, uris)
            else:
                contents.append(content)
        for photo in fields.photos:
            _add_photo(photo, contents, uris)
        return cls(fields, contents, uris)


@dataclass(frozen=True)
class NumberedRequest:
    """A `ClassifyListingsRequest` as received."""

    sequence: int
    request: ListingRequest

    @classmethod
    def parse(cls, message: bytes | memoryview) -> "NumberedRequest":
        """Raises DecodeError: it is no such message."""
        requests, rest = _split(message, pb.ClassifyListingsRequest.REQUEST_FIELD_NUMBER)
        if len(requests) == 1:
            return cls(pb.ClassifyListingsRequest.FromString(rest).sequence, ListingRequest.parse(requests[0]))
        # Several are parts of one.
        whole = pb.ClassifyListingsRequest.FromString(bytes(message))
        return cls(whole.sequence, ListingRequest.create(whole.request))


def _add_photo(photo: pb.Photo, contents: list[EncodedPhoto], uris: dict[int, str]) -> None:
    if photo.WhichOneof("source") == "uri":
        uris[len(contents)] = photo.uri
    contents.append(photo.content)


def _find_content(photo: memoryview) -> memoryview | None:
    """Return the content of a serialised `Photo` that has nothing else; None: it is another one."""
    try:
        (tag, _, begin, end), *others = _scan(photo)
    except ValueError:
        return None
    return photo[begin:end] if tag == _CONTENT_TAG and not others else None


def _split(message: bytes | memoryview, number: int) -> tuple[list[memoryview], bytes]:
    """Return the payloads of a length-delimited field, and the message without it; nothing and the whole message where
    that is for protobuf to parse, or to reject."""
    view = memoryview(message)
    payloads: list[memoryview] = []
    others: list[memoryview] = []
    try:
        for tag, start, begin, end in _scan(view):
            if tag == number << 3 | _LENGTH_DELIMITED:
                payloads.append(view[begin:end])
            else:
                others.append(view[start:end])
    except ValueError:
        return [], bytes(message)
    return payloads, b"".join(others)


def _scan(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield the tag of each field, where it starts, and where its payload begins and ends: protobuf.dev/
    programming-guides/encoding.

    Raises:
        ValueError: it is not for this parser: too many fields, groups, or not valid.
    """
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(message):
            return
        start = at
        tag, at = _read_varint(message, at, max_bytes=MAX_TAG_BYTES)
        begin = at
        match tag & 7:
            case 0:
                _, at = _read_varint(message, at)
            case 1:
                at += 8
            case 2:
                num_bytes, begin = _read_varint(message, at)
                at = begin + num_bytes
            case 5:
                at += 4
            case wire_type:
                raise ValueError(f"wire type {wire_type}")
        if at > len(message):
            raise ValueError("truncated")
        yield tag, start, begin, at
    if at != len(message):
        raise ValueError("too many fields")


def _read_varint(message: memoryview, at: int, *, max_bytes: int = 10) -> tuple[int, int]:
    """Return the number and where it ends."""
    number = 0
    for i, byte in enumerate(message[at : at + max_bytes]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, at + i + 1
    raise ValueError("no varint")
