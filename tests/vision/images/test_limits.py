import pytest

from tests.support.helpers import create_scene, encode_image
from vision.errors import (
    PhotoTooManyBytes,
    PhotoTooManyPixels,
)
from vision.images import (
    Preprocessing,
    decode_photo,
    prepare_photo,
)
from vision.images.limits import PhotoLimits

PREPROCESSING = Preprocessing(input_px=64)
JPEG = encode_image(create_scene(400, 300))


@pytest.mark.parametrize(("pixels", "fits"), [(96 * 64 - 1, False), (96 * 64, True)])
def test_the_pixel_limit_is_exact(pixels, fits):
    limits = PhotoLimits(max_pixels=pixels)
    if fits:
        assert decode_photo(encode_image(create_scene()), at_least_px=64, limits=limits).shape == (64, 96, 3)
    else:
        with pytest.raises(PhotoTooManyPixels, match="send a smaller photo"):
            decode_photo(encode_image(create_scene()), at_least_px=64, limits=limits)


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
@pytest.mark.parametrize(("size", "fits"), [((500, 320), True), ((200, 100), True), ((321, 500), False)])
def test_the_short_side_of_renditions_is_exact(format_, size, fits):
    photo, limits = encode_image(create_scene(*size), format_), PhotoLimits(rendition_px=320)
    if fits:
        assert prepare_photo(photo, PREPROCESSING, limits).shape == (64, 64, 3)
    else:
        with pytest.raises(PhotoTooManyPixels, match=r"^321x500 is no rendition of 320 px.* --max-px 320"):
            prepare_photo(photo, PREPROCESSING, limits)


def test_the_byte_limit_is_exact():
    assert prepare_photo(JPEG, PREPROCESSING, PhotoLimits(max_bytes=len(JPEG))).shape == (64, 64, 3)
    with pytest.raises(PhotoTooManyBytes, match=f"{len(JPEG)} bytes exceed the limit of {len(JPEG) - 1}"):
        prepare_photo(JPEG, PREPROCESSING, PhotoLimits(max_bytes=len(JPEG) - 1))
