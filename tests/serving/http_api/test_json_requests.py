import base64
import json

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.http_api.errors import HttpRefusal
from serving.http_api.json_requests import parse_json, parse_query

requests = st.builds(
    pb.ClassifyListingRequest,
    listing_id=st.text(max_size=5),
    photos=st.lists(
        st.builds(pb.Photo, content=st.binary(max_size=9)) | st.builds(pb.Photo, uri=st.text()), max_size=3
    ),
    alternative_count=st.none() | st.integers(-(2**31), 2**31 - 1),
    include_embedding=st.booleans(),
)


def parse(value, message_class=pb.ClassifyListingRequest):
    message = message_class()
    parse_json(json.dumps(value).encode() if not isinstance(value, bytes) else value, message)
    return message


def find_violations(value, message_class=pb.ClassifyListingRequest):
    with pytest.raises(HttpRefusal) as caught:
        parse(value, message_class)
    assert caught.value.reason == "BODY_UNREADABLE"
    return [(one.field, one.reason) for one in caught.value.violations]


@given(requests, st.booleans())
def test_what_protobuf_writes_is_read(request, by_proto_names):
    text = json_format.MessageToJson(request, preserving_proto_field_name=by_proto_names)
    assert parse(text.encode()) == request


@given(st.binary(max_size=50), st.booleans(), st.booleans(), st.sampled_from(["", "data:image/jpeg;base64,"]))
def test_base64_of_either_alphabet_is_read_padded_or_not(content, is_url_safe, is_padded, prefix):
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(content).decode()
    text = prefix + (text if is_padded else text.rstrip("="))
    assert parse({"photos": [{"content": text}]}).photos[0].content == content


@given(st.binary(min_size=3, max_size=50), st.sampled_from("*\n é,=\x00"), st.data())
def test_damaged_base64_names_its_photo(content, letter, data):
    text = base64.b64encode(content).decode().rstrip("=")
    position = data.draw(st.integers(0, len(text) - 2))
    damaged = text[:position] + letter + text[position + 1 :]
    assert find_violations({"photos": [{"uri": "a"}, {"content": damaged}]}) == [("photos[1].content", "FIELD_INVALID")]


@pytest.mark.parametrize(
    "text", ["A", "AAAAA", "AA=", "AAA==", "AAAA=", "====", "data:image/jpeg,AAAA", "data:;base64,AAAA"]
)
def test_base64_of_an_impossible_length_is_refused(text):
    assert find_violations({"photos": [{"content": text}]}) == [("photos[0].content", "FIELD_INVALID")]


@pytest.mark.parametrize(
    ("value", "violations"),
    [
        ({"colour": 1}, [("colour", "FIELD_UNKNOWN")]),
        ({"\ud800": 1}, [("?", "FIELD_UNKNOWN")]),
        ({"photos": [{"file": 1}, {"a": 2}]}, [("photos[0].file", "FIELD_UNKNOWN"), ("photos[1].a", "FIELD_UNKNOWN")]),
        ({"photos": [{"content": "", "uri": "a"}]}, [("photos[0].uri", "FIELD_INVALID")]),
        ({"photos": {}}, [("photos", "FIELD_INVALID")]),
        ({"photos": [None, "AAAA"]}, [("photos[0]", "FIELD_INVALID"), ("photos[1]", "FIELD_INVALID")]),
        ({"photos": [{"content": 5}]}, [("photos[0].content", "FIELD_INVALID")]),
        ({"alternativeCount": 2.5}, [("alternativeCount", "FIELD_INVALID")]),
        ({"alternativeCount": 2**40}, [("alternativeCount", "FIELD_INVALID")]),
        ({"listingId": 5}, [("listingId", "FIELD_INVALID")]),
        ({"listingId": "\ud800"}, [("listingId", "FIELD_INVALID")]),
        ({"listingId": "a", "listing_id": "a"}, [("listing_id", "FIELD_INVALID")]),
        ({"includeEmbedding": "true"}, [("includeEmbedding", "FIELD_INVALID")]),
    ],
    ids=str,
)  # fmt: skip
def test_each_wrong_field_is_named(value, violations):
    assert find_violations(value) == violations


def test_an_enum_is_one_of_its_names_and_a_message_an_object():
    assert find_violations({"target": "SHAPE"}, pb.ExplainPhotoRequest) == [("target", "FIELD_INVALID")]
    assert find_violations({"photo": "AAAA"}, pb.ExplainPhotoRequest) == [("photo", "FIELD_INVALID")]
    found = parse({"target": "EXPLANATION_TARGET_BRAND", "photo": {}}, pb.ExplainPhotoRequest)
    assert found.target == pb.EXPLANATION_TARGET_BRAND
    assert found.HasField("photo")


def test_null_is_the_default_value():
    assert parse({"listingId": None, "photos": None, "alternativeCount": None}) == pb.ClassifyListingRequest()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"\xff\xfe{}", b'{"a":' * 5000, b'{"listingId":"a","listingId":"b"}', b"9" * 5000],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body):
    assert find_violations(body) == []


def test_query_parameters_are_fields():
    message = pb.GetTaxonomyRequest()
    parse_query([("taxonomyVersion", "a"), ("language_code", "ja")], message)
    assert message == pb.GetTaxonomyRequest(taxonomy_version="a", language_code="ja")


def test_wrong_query_parameters_are_named():
    with pytest.raises(HttpRefusal) as caught:
        parse_query([("version", "a"), ("languageCode", "ja"), ("language_code", "en")], pb.GetTaxonomyRequest())
    found = [(one.field, one.reason) for one in caught.value.violations]
    assert found == [("version", "FIELD_UNKNOWN"), ("language_code", "FIELD_INVALID")]
