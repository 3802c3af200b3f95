import grpc
import pytest

from listing_vision_client.errors import CallFailed
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.limits import REQUEST_LIMIT_BYTES
from serving.api.listing_request import ListingRequest
from serving.api.status import Refusal
from serving.gateway.validation import validate_listing
from tests.support.gateway import PHOTO, call_gateway


@pytest.mark.parametrize(
    ("photos", "options", "reason", "field", "metadata"),
    [
        ([], {}, "NO_PHOTOS", "photos", {"limit": "20", "value": "0"}),
        ([PHOTO] * 21, {}, "TOO_MANY_PHOTOS", "photos", {"limit": "20", "value": "21"}),
        ([PHOTO], {"listing_id": "x" * 201}, "LISTING_ID_TOO_LONG", "listing_id", {"limit": "200", "value": "201"}),
        (
            [PHOTO],
            {"num_alternatives": 21},
            "ALTERNATIVE_COUNT_OUT_OF_RANGE",
            "alternative_count",
            {"limit": "20", "value": "21"},
        ),
        (
            [PHOTO],
            {"num_alternatives": -1},
            "ALTERNATIVE_COUNT_OUT_OF_RANGE",
            "alternative_count",
            {"limit": "20", "value": "-1"},
        ),
    ],
)
def test_bad_requests_name_the_field(bundle, photos, options, reason, field, metadata):
    with pytest.raises(CallFailed) as caught:
        call_gateway(bundle, photos, **options)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == reason
    assert [(one.field, one.reason) for one in caught.value.details.violations] == [(field, reason)]
    assert caught.value.details.metadata == metadata


@pytest.mark.parametrize("code", ["ja", "en-GB", "zh-Hant-TW", ""])
def test_a_language_tag_is_taken(code):
    request = pb.ClassifyListingRequest(photos=[{"content": PHOTO}], language_code=code)
    validate_listing(ListingRequest.create(request), check_uris=None)


@pytest.mark.parametrize("code", ["j", "日本語", "en_GB", "en-", "x" * 100])
def test_what_is_no_language_tag_is_named(code):
    request = pb.ClassifyListingRequest(photos=[{"content": PHOTO}], language_code=code)
    with pytest.raises(Refusal) as refused:
        validate_listing(ListingRequest.create(request), check_uris=None)
    assert refused.value.reason == refused.value.violations[0].reason == "LANGUAGE_CODE_INVALID"


def test_photos_beyond_the_limit_together_are_refused_with_the_limit():
    request = pb.ClassifyListingRequest(photos=[{"content": b"x" * (REQUEST_LIMIT_BYTES // 4 + 1)}] * 4)
    with pytest.raises(Refusal) as refused:
        validate_listing(ListingRequest.create(request), check_uris=None)
    assert (refused.value.reason, refused.value.code) == ("REQUEST_TOO_LARGE", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert refused.value.metadata == {"limit": REQUEST_LIMIT_BYTES, "value": REQUEST_LIMIT_BYTES + 4}


def test_a_service_that_fetches_nothing_names_each_uri():
    request = pb.ClassifyListingRequest(photos=[{"content": PHOTO}, {"uri": "https://example.com/a.jpg"}])
    with pytest.raises(Refusal) as refused:
        validate_listing(ListingRequest.create(request), check_uris=None)
    assert (refused.value.reason, refused.value.code) == ("PHOTO_URIS_DISABLED", grpc.StatusCode.UNIMPLEMENTED)
    assert [one.field for one in refused.value.violations] == ["photos[1].uri"]


def test_twenty_photos_are_taken(bundle):
    assert len(call_gateway(bundle, [PHOTO] * 20).photos) == 20
