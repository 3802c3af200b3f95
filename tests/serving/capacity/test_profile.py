"""Costs: checked, interpolated, measured, kept."""

import math

import pytest

from serving.capacity.profile import Profile, measure_profile
from tests.support.capacity import create_profile
from tests.support.helpers import create_scene, encode_image
from vision.errors import ListingVisionError


@pytest.mark.parametrize("wrong", [{"decode_ms": -1.0}, {"decode_ms": math.nan}, {"model_ms": {0: 1.0}}])
def test_costs_that_cannot_be_are_refused(wrong):
    with pytest.raises(ListingVisionError, match="profile: "):
        create_profile(**wrong)


def test_costs_between_measured_batches_lie_on_a_line_and_beyond_them_grow_by_the_photo():
    profile = create_profile(model_ms={1: 10.0, 9: 18.0})
    assert [profile.batch_ms(n) for n in (1, 5, 9, 18)] == [10.0, 14.0, 18.0, 36.0]


def test_costs_are_measured_and_read_again(bundle, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(ListingVisionError, match="holds no photos"):
        measure_profile(bundle, photos, gateway_ms=1.5)
    (photos / "a.jpg").write_bytes(encode_image(create_scene(640, 480)))
    profile = measure_profile(bundle, photos, gateway_ms=1.5)
    assert profile.decode_ms > 0
    assert profile.model_ms[1] > 0
    assert profile.gateway_ms == 1.5
    assert profile.photo.startswith("1 of photos, ")
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"model_ms": {"one": 1}}'])
def test_another_file_is_no_profile(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ListingVisionError, match=r"other\.json is no profile"):
        Profile.load(tmp_path / "other.json")
    with pytest.raises(ListingVisionError, match=r"gone\.json cannot be read: No such file"):
        Profile.load(tmp_path / "gone.json")
