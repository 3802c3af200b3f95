"""Renditions are small, and look like the photo."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.helpers import create_scene, encode_image
from training.data.renditions import create_rendition
from vision.errors import PhotoNotAnImage
from vision.images import PhotoLimits, Preprocessing, prepare_photo


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "wanted"), [((800, 600), (427, 320)), ((600, 800), (320, 427)), ((900, 321), (897, 320))]
)
def test_the_short_side_has_the_size_and_the_picture_stays(format_, size, wanted):
    photo = encode_image(create_scene(*size), format_)
    rendition = create_rendition(photo, max_px=320)
    with Image.open(io.BytesIO(rendition)) as opened:
        assert (opened.format, opened.size) == ("JPEG", wanted)
    preprocessing = Preprocessing(input_px=64)
    limits = PhotoLimits(rendition_px=320)
    difference = prepare_photo(rendition, preprocessing, limits).astype(int) - prepare_photo(photo, preprocessing)
    assert np.abs(difference).mean() < 3


def test_a_photo_that_lies_on_its_side_is_upright_afterwards():
    lying = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    create_scene(800, 600).save(lying, "JPEG", exif=exif)
    with Image.open(io.BytesIO(create_rendition(lying.getvalue(), max_px=300))) as opened:
        assert opened.size == (300, 400)
        assert not opened.getexif()


@pytest.mark.parametrize("size", [(320, 500), (200, 100)])
def test_a_small_photo_stays_as_it_is(size):
    photo = encode_image(create_scene(*size), "PNG")
    assert create_rendition(photo, max_px=320) == photo


def test_what_cannot_be_decoded_is_an_error():
    with pytest.raises(PhotoNotAnImage):
        create_rendition(b"no photo", max_px=320)
