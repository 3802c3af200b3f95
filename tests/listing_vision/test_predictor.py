import numpy as np
import pytest

from listing_vision.predictor import Predictor
from tests.support.helpers import create_scene, encode_image
from vision.errors import ListingVisionError, PhotoError


@pytest.fixture(scope="module")
def predictor(bundle):
    return Predictor(bundle)


def test_paths_bytes_and_arrays_of_a_photo_give_the_same(predictor, bundle, tmp_path):
    scene = create_scene(200, 150)
    data = encode_image(scene, "PNG")
    (tmp_path / "photo.png").write_bytes(data)
    found = [predictor.predict([photo]) for photo in (data, tmp_path / "photo.png", np.asarray(scene.convert("RGB")))]
    assert found[0].category_path == found[1].category_path == found[2].category_path
    assert Predictor(bundle.folder).predict([data]).category_path == found[0].category_path


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_an_array_that_is_no_photo_says_what_to_give(predictor, array):
    with pytest.raises(ListingVisionError, match=r"is no photo: give \(H, W, 3\) uint8"):
        predictor.predict([array])


def test_a_missing_file_is_named(predictor, tmp_path):
    with pytest.raises(ListingVisionError, match=r"none\.jpg cannot be read"):
        predictor.predict([tmp_path / "none.jpg"])


def test_no_usable_photo_names_each(predictor):
    with pytest.raises(PhotoError, match="photo 0: 0 bytes"):
        predictor.predict([b""])
