import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.http_api.errors import HttpRefusal
from serving.http_api.form_requests import MAX_PARTS, parse_form

TYPE = "multipart/form-data; boundary=b-1"


def build(*parts):
    return b"".join(b"--b-1\r\n" + part + b"\r\n" for part in parts) + b"--b-1--\r\n"


def part(name, content, rest=b""):
    return b'Content-Disposition: form-data; name="' + name + b'"' + rest + b"\r\n\r\n" + content


def parse(body, content_type=TYPE):
    message = pb.ClassifyListingRequest()
    parse_form(body, content_type, message)
    return message


@pytest.mark.parametrize("name", [b"photos", b"photos[]", b"photo"])
@pytest.mark.parametrize("rest", [b"", b'; filename="p.jpg"', b"; filename*=UTF-8''%e3%81%82.jpg", b'; filename=""'])
def test_photos_are_parts_with_or_without_a_file_name(name, rest):
    body = build(part(name, b"\x00\r\n--b-12\r\n", rest), part(name, b""))
    assert [photo.content for photo in parse(body).photos] == [b"\x00\r\n--b-12\r\n", b""]


@given(st.lists(st.binary() | st.sampled_from([b"\r\n", b"--b-1x", b"\r\n--b-", b"\r\n--b-1x", b"--"]), max_size=5))
def test_photos_are_read_byte_for_byte(contents):
    assert [photo.content for photo in parse(build(*(part(b"photos", one) for one in contents))).photos] == contents


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda rest: build(part(b"photos", b"x"))[:-9] + rest))
def test_any_other_body_is_refused_or_read(body):
    with contextlib.suppress(HttpRefusal):
        parse(body)


def test_header_names_may_have_any_case():
    body = b'--b-1 \r\nCONTENT-type: image/jpeg\r\ncontent-DISPOSITION: Form-Data; NAME="photos"\r\n\r\nx\r\n--b-1--'
    assert parse(body, 'Multipart/Form-Data; charset=utf-8; BOUNDARY="b-1"').photos[0].content == b"x"


@pytest.mark.parametrize(
    "names",
    [
        ("listing_id", "language_code", "alternative_count", "include_embedding"),
        ("listingId", "languageCode", "alternativeCount", "includeEmbedding"),
    ],
)
def test_fields_have_the_names_of_the_proto_or_of_json(names):
    values = ("あ", "ja", "3", "true")
    body = build(*(part(name.encode(), value.encode()) for name, value in zip(names, values, strict=True)))
    assert parse(body) == pb.ClassifyListingRequest(
        listing_id="あ", language_code="ja", alternative_count=3, include_embedding=True
    )


@pytest.mark.parametrize(
    ("parts", "field", "reason"),
    [
        ([part(b"colour", b"red")], "colour", "FIELD_UNKNOWN"),
        ([part(b"alternative_count", b"two")], "alternative_count", "FIELD_INVALID"),
        ([part(b"include_embedding", b"yes")], "include_embedding", "FIELD_INVALID"),
        ([part(b"listing_id", b"a"), part(b"listingId", b"a")], "listingId", "FIELD_INVALID"),
    ],
)
def test_wrong_fields_are_named(parts, field, reason):
    with pytest.raises(HttpRefusal) as caught:
        parse(build(*parts))
    (violation,) = caught.value.violations
    assert (caught.value.reason, violation.field, violation.reason) == ("BODY_UNREADABLE", field, reason)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "ends before its last boundary"),
        (build(part(b"photos", b"x"))[:-6], "ends before its last boundary"),
        (build(b"x"), "no headers"),
        (build(b"Content-Type: image/jpeg\r\n\r\nx"), "no name"),
        (build(*[part(b"photos", b"x")] * (MAX_PARTS + 1)), "more than 100 parts"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(body, detail):
    with pytest.raises(HttpRefusal, match=detail) as caught:
        parse(body)
    assert caught.value.reason == "BODY_UNREADABLE"


def test_as_many_parts_as_are_read_are_left_to_the_service():
    assert len(parse(build(*[part(b"photos", b"x")] * MAX_PARTS)).photos) == MAX_PARTS


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=あ"]
)
def test_a_form_needs_a_boundary(content_type):
    with pytest.raises(HttpRefusal, match="no boundary"):
        parse(b"x", content_type)
