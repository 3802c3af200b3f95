"""A listing's request, parsed without copying its photos.

protobuf copies each photo when it parses the message and again when its bytes are read. For a message of 60 MiB this
blocks the event loop, and with it all other callers of the process, for tens of milliseconds. Here photos are views of
the message.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.limits import MAX_PHOTOS
from vision.images import EncodedPhoto

__all__ = ["ListingRequest", "NumberedRequest"]

MAX_FIELDS = 1000
"""Limit for a message that is parsed here; protobuf parses one with more, in C."""
MAX_OTHER_BYTES = 1 << 20
"""Limit for all but the photos, and for a message that is not parsed here: protobuf copies it, unknown fields too."""
MIN_VIEWED_SHARE = 0.5
"""Views keep the whole message in memory; where the photos are a smaller share of it, they are copied."""
MAX_TAG_BYTES = 5
_LENGTH_DELIMITED = 2
_CONTENT_TAG = pb.Photo.CONTENT_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


@dataclass(frozen=True, eq=False)
class ListingRequest:
    """A `ClassifyListingRequest` as received."""

    fields: pb.ClassifyListingRequest
    """All other fields; the photos too where protobuf parsed the whole message."""
    contents: list[EncodedPhoto]
    """Encoded photos; empty where a URI, or nothing, is given instead."""
    uris: dict[int, str]
    """URIs by photo index."""

    @property
    def num_photo_bytes(self) -> int:
        return sum(map(len, self.contents))

    @classmethod
    def parse(cls, message: bytes | memoryview) -> "ListingRequest":
        """Raises DecodeError: it is no such message, or has more than `MAX_OTHER_BYTES` beside its photos."""
        photos, rest = _split(message, pb.ClassifyListingRequest.PHOTOS_FIELD_NUMBER)
        request = cls.create(pb.ClassifyListingRequest.FromString(rest))
        if len(photos) > MAX_PHOTOS:  # they are refused by their number
            return cls(request.fields, list(photos), {})
        for serialized in photos:
            content = _find_content(serialized)
            if content is None:
                request._add_photo(pb.Photo.FromString(bytes(serialized)))
            else:
                request.contents.append(content)
        if request.num_photo_bytes < MIN_VIEWED_SHARE * len(message):
            request.contents[:] = map(bytes, request.contents)
        return request

    @classmethod
    def create(cls, request: pb.ClassifyListingRequest) -> "ListingRequest":
        created = cls(request, [], {})
        for photo in request.photos:
            created._add_photo(photo)
        return created

    def _add_photo(self, photo: pb.Photo) -> None:
        if photo.WhichOneof("source") == "uri":
            self.uris[len(self.contents)] = photo.uri
        self.contents.append(photo.content)


@dataclass(frozen=True, eq=False)
class NumberedRequest:
    """A `ClassifyListingsRequest` as received."""

    sequence: int
    request: ListingRequest

    @classmethod
    def parse(cls, message: bytes | memoryview) -> "NumberedRequest":
        """Raises DecodeError: as for `ListingRequest`."""
        requests, rest = _split(message, pb.ClassifyListingsRequest.REQUEST_FIELD_NUMBER)
        if len(requests) == 1:
            return cls(pb.ClassifyListingsRequest.FromString(rest).sequence, ListingRequest.parse(requests[0]))
        # Several are parts of one.
        whole = pb.ClassifyListingsRequest.FromString(_check_other_bytes(bytes(message)))
        return cls(whole.sequence, ListingRequest.create(whole.request))


def _find_content(photo: memoryview) -> memoryview | None:
    """Return the content of a serialised `Photo` that has nothing else; None: it is another one."""
    try:
        tag, _, begin, end = next(_scan(photo), (0, 0, 0, 0))
    except ValueError:
        return None
    return photo[begin:end] if tag == _CONTENT_TAG and end == len(photo) else None


def _split(message: bytes | memoryview, number: int) -> tuple[list[memoryview], bytes]:
    """Return the payloads of a length-delimited field, and the message without it; nothing and the whole message where
    that is for protobuf to parse, or to reject.

    Raises:
        DecodeError: what is for protobuf has more than `MAX_OTHER_BYTES`.
    """
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
        return [], _check_other_bytes(bytes(message))
    return payloads, _check_other_bytes(b"".join(others))


def _check_other_bytes(message: bytes) -> bytes:
    if len(message) > MAX_OTHER_BYTES:
        raise DecodeError(
            f"{len(message)} bytes beside the photos, or in more than {MAX_FIELDS} fields, exceed the limit of "
            f"{MAX_OTHER_BYTES}"
        )
    return message


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
