import json

import pytest

from listing_vision.classify import classify_with_bundle, format_suggestion, read_photos, to_json
from tests.support.helpers import create_scene, encode_image
from vision.errors import ListingVisionError, PhotoError

PHOTO = encode_image(create_scene(200, 150))


def test_a_table_shows_path_brand_and_each_photo(bundle):
    response = classify_with_bundle(bundle.folder, [PHOTO, b""])
    table = format_suggestion(response, ["front.jpg", "empty.jpg"])
    for step in response.category_path:
        assert step.name in table
    assert "brand: " in table
    assert "empty.jpg: not used, PHOTO_EMPTY: 0 bytes" in table
    assert bundle.info.model_version in table


def test_json_is_the_answer_on_the_wire(bundle):
    raw = json.loads(to_json(classify_with_bundle(bundle.folder, [PHOTO])))
    assert raw["category_path"][0]["category_id"]
    assert raw["model"]["version"] == bundle.info.model_version


def test_no_usable_photo_names_each(bundle):
    with pytest.raises(PhotoError, match="photo 0: 0 bytes"):
        classify_with_bundle(bundle.folder, [b""])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ListingVisionError, match=r"none\.jpg cannot be read"):
        read_photos([tmp_path / "none.jpg"])
