import random
import sys
from collections import Counter

import pytest
from google.protobuf.message import DecodeError

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.listing_request import MAX_FIELDS, MAX_OTHER_BYTES, ListingRequest, NumberedRequest

PHOTOS = [pb.Photo(content=b"first"), pb.Photo(uri="https://shop/a.jpg"), pb.Photo(), pb.Photo(content=b"x" * 300)]
REQUEST = pb.ClassifyListingRequest(
    listing_id="a", photos=PHOTOS, alternative_count=0, language_code="ja", include_embedding=True, hidden=True
)
MESSAGE = REQUEST.SerializeToString()
PHOTO_TAG, CONTENT_TAG, URI_TAG = b"\x12", b"\x0a", b"\x12"


def encode_field(tag, payload):
    return tag + bytes([len(payload)]) + payload


def read_by_protobuf(message):
    request = pb.ClassifyListingRequest.FromString(message)
    contents = [photo.content for photo in request.photos]
    uris = {i: photo.uri for i, photo in enumerate(request.photos) if photo.WhichOneof("source") == "uri"}
    request.ClearField("photos")
    return request, contents, uris


def read(message):
    try:
        request = ListingRequest.parse(message)
    except DecodeError:
        return None
    fields = pb.ClassifyListingRequest()
    fields.CopyFrom(request.fields)
    fields.ClearField("photos")
    return fields, list(map(bytes, request.contents)), request.uris


def test_a_request_is_read_as_protobuf_reads_it():
    assert read(MESSAGE) == read_by_protobuf(MESSAGE)
    assert ListingRequest.parse(MESSAGE).num_photo_bytes == 305


def test_photos_are_views_of_the_message():
    found = ListingRequest.parse(MESSAGE).contents
    assert found[0].obj is MESSAGE
    assert found[3].obj is MESSAGE


@pytest.mark.parametrize(
    "padding", [b"\x7a\x81\x08" + bytes(1025), encode_field(PHOTO_TAG, encode_field(b"\x7a", bytes(125))) * 9]
)
def test_photos_do_not_keep_a_message_that_is_mostly_something_else(padding):
    found = ListingRequest.parse(MESSAGE + padding).contents
    assert found[:4] == ListingRequest.parse(MESSAGE).contents
    assert all(isinstance(content, bytes) for content in found)


def test_too_many_large_photos_are_counted():
    photos = [pb.Photo(content=bytes(MAX_OTHER_BYTES // 100))] * 150
    assert len(ListingRequest.parse(pb.ClassifyListingRequest(photos=photos).SerializeToString()).contents) == 150


def test_what_is_no_plain_photo_is_left_to_protobuf_after_its_first_field():
    photo = pb.Photo(uri="u").SerializeToString() + b"\x40\x01" * 60
    message = encode_field(PHOTO_TAG, photo)
    num_calls = Counter()
    sys.setprofile(lambda frame, event, _: num_calls.update([frame.f_code.co_name] if event == "call" else []))
    try:
        uris = ListingRequest.parse(message).uris
    finally:
        sys.setprofile(None)
    assert uris == {0: "u"}
    assert num_calls["_read_varint"] == 4  # tag and length, twice


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE + b"\x7a\x80\x80\x40" + bytes(MAX_OTHER_BYTES),
        pb.ClassifyListingRequest(
            photos=[pb.Photo(content=bytes(MAX_OTHER_BYTES // MAX_FIELDS))] * (MAX_FIELDS + 1)
        ).SerializeToString(),
        MESSAGE + b"\x7b" + b"\x0a\x80\x80\x40" + bytes(MAX_OTHER_BYTES) + b"\x7c",
    ],
)
def test_a_large_message_that_is_not_photos_is_refused(message):
    with pytest.raises(
        DecodeError, match="bytes beside the photos, or in more than 1000 fields, exceed the limit of 1048576"
    ):
        ListingRequest.parse(message)
    with pytest.raises(DecodeError, match="exceed the limit"):
        NumberedRequest.parse(pb.ClassifyListingsRequest(sequence=1).SerializeToString() + message)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        encode_field(PHOTO_TAG, encode_field(CONTENT_TAG, b"a") + encode_field(CONTENT_TAG, b"b")),
        encode_field(PHOTO_TAG, encode_field(CONTENT_TAG, b"a") + encode_field(URI_TAG, b"u")),
        encode_field(PHOTO_TAG, encode_field(URI_TAG, b"u") + encode_field(CONTENT_TAG, b"a")),
        encode_field(PHOTO_TAG, encode_field(CONTENT_TAG, b"")),
        encode_field(PHOTO_TAG, b""),
        encode_field(PHOTO_TAG, b"\x08\x05"),  # content as a number: an unknown field
        b"\x10\x05" + MESSAGE,  # photos as a number
        MESSAGE + b"\x7a\x01z",  # an unknown field
        MESSAGE + b"\x79" + b"8 bytes!" + b"\x7d" + b"4byt",
        MESSAGE + b"\x7b\x08\x01\x7c",  # a group
        MESSAGE * 3,
        b"\x92\x00" + encode_field(b"", encode_field(CONTENT_TAG, b"a")),  # a tag longer than it need be
    ],
)
def test_odd_requests_are_read_as_protobuf_reads_them(message):
    assert read(message) == read_by_protobuf(message)


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE[:-1],
        PHOTO_TAG,
        PHOTO_TAG + b"\xff" * 11,
        b"\x00\x01",
        b"\x7f",
        b"\x92\x80\x80\x80\x80\x00" + encode_field(b"", encode_field(CONTENT_TAG, b"a")),  # a tag of six bytes
        encode_field(PHOTO_TAG, CONTENT_TAG + b"\x05abc"),
        encode_field(PHOTO_TAG, encode_field(URI_TAG, b"\xff\xfe")),
    ],
)
def test_what_protobuf_rejects_is_rejected(message):
    with pytest.raises(DecodeError):
        pb.ClassifyListingRequest.FromString(message)
    with pytest.raises(DecodeError):
        ListingRequest.parse(message)


def test_damaged_requests_are_read_as_protobuf_reads_them():
    draw = random.Random(0)
    num_read = 0
    for _ in range(5000):
        damaged = bytearray(MESSAGE)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        message = bytes(damaged[: draw.randint(len(damaged) // 2, len(damaged))])
        try:
            expected = read_by_protobuf(message)
        except DecodeError:
            expected = None
        assert read(message) == expected, message
        num_read += expected is not None
    assert 100 < num_read < 4900


def test_a_message_of_very_many_fields_is_left_to_protobuf():
    message = pb.ClassifyListingRequest(photos=[pb.Photo(content=b"a")] * (MAX_FIELDS + 1)).SerializeToString()
    assert len(ListingRequest.parse(message).contents) == MAX_FIELDS + 1
    assert isinstance(ListingRequest.parse(message).contents[0], bytes)


@pytest.mark.parametrize(
    "message",
    [
        pb.ClassifyListingsRequest(sequence=7, request=REQUEST).SerializeToString(),
        pb.ClassifyListingsRequest(sequence=7).SerializeToString(),
        pb.ClassifyListingsRequest(sequence=7, request=REQUEST).SerializeToString() * 2,
    ],
)
def test_a_numbered_request_is_read_as_protobuf_reads_it(message):
    expected = pb.ClassifyListingsRequest.FromString(message)
    found = NumberedRequest.parse(message)
    assert found.sequence == expected.sequence
    assert list(map(bytes, found.request.contents)) == [photo.content for photo in expected.request.photos]
    assert found.request.fields.listing_id == expected.request.listing_id
