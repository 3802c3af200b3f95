import grpc
import pytest

from listing_vision_client import BrandChoice, CallFailed, FormTreatment, ListingToClassify
from listing_vision_client.limits import REQUEST_LIMIT_BYTES
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.requests import build_classify_request, build_outcome_request


def test_a_photo_is_bytes_a_path_or_a_uri(tmp_path):
    path = tmp_path / "front.jpg"
    path.write_bytes(b"front")
    photos = [b"bytes", path, str(path), "https://photos.example/a.jpg"]
    request = build_classify_request(ListingToClassify(photos, language_code="ja", include_embedding=True))
    assert [photo.content for photo in request.photos] == [b"bytes", b"front", b"front", b""]
    assert request.photos[3].uri == "https://photos.example/a.jpg"
    assert (request.language_code, request.include_embedding) == ("ja", True)
    assert not request.HasField("alternative_count")


def test_a_missing_file_is_the_callers_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        build_classify_request(ListingToClassify([tmp_path / "none.jpg"]))


def test_photos_beyond_the_limit_are_refused_with_the_limit():
    half = b"x" * (REQUEST_LIMIT_BYTES // 2)
    assert build_classify_request(ListingToClassify([half, half])).photos
    with pytest.raises(CallFailed, match=f"more than the limit of {REQUEST_LIMIT_BYTES}") as caught:
        build_classify_request(ListingToClassify([half, half, b"x"]))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    limits = {"limit": str(REQUEST_LIMIT_BYTES), "value": str(REQUEST_LIMIT_BYTES + 1)}
    assert caught.value.details.metadata == limits
    assert not caught.value.details.is_from_service


@pytest.mark.parametrize(
    ("chosen", "brand"),
    [
        (BrandChoice(brand_id="stella"), pb.BrandChoice(brand_id="stella")),
        (BrandChoice(no_brand=True), pb.BrandChoice(no_brand=True)),
        (BrandChoice(other_name="Hand made"), pb.BrandChoice(other_name="Hand made")),
        (None, None),
    ],
)
def test_an_outcome_has_what_the_seller_chose(chosen, brand):
    request = build_outcome_request(
        suggestion_id="s",
        listing_id="",
        taxonomy_version="",
        category_id="bags",
        brand=chosen,
        category_treatment=FormTreatment.PREFILLED,
        brand_treatment=FormTreatment.UNSPECIFIED,
    )
    expected = pb.ReportOutcomeRequest(
        suggestion_id="s", category_id="bags", brand=brand, category_treatment=pb.FORM_TREATMENT_PREFILLED
    )
    assert request == expected


@pytest.mark.parametrize("chosen", [{}, {"brand_id": "a", "no_brand": True}, {"brand_id": "a", "other_name": "b"}])
def test_a_brand_is_exactly_one_of_three(chosen):
    with pytest.raises(ValueError, match="exactly one"):
        BrandChoice(**chosen)
