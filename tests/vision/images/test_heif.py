import struct

import numpy as np
import pytest
from PIL import Image

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image, mean_difference
from vision.images import decode_photo
from vision.images.colour import find_srgb_transform
from vision.images.heif import read_heif_aspect
from vision.images.profiles import build_code_point_profile


def encode(format, primaries, transfer, icc_profile=None):
    """The scene's values, which these code points and this profile interpret."""
    points = b"nclx" + struct.pack(">HHHB", primaries, transfer, 6, 0x80)
    if format == "HEIF":
        profile = [files.box(b"colr", b"prof" + icc_profile)] if icc_profile else []
        return files.heif(files.hevc_item(files.box(b"colr", points), *profile))
    data = encode_image(create_scene(), "AVIF", quality=95, **({"icc_profile": icc_profile} if icc_profile else {}))
    at = data.index(b"nclx")
    return data[:at] + points + data[at + len(points) :]


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
@pytest.mark.parametrize("points", [(12, 13), (9, 16), (9, 18), (1, 8)])
def test_code_points_are_heeded(format, points):
    plain = decode_photo(encode(format, 1, 13), at_least_px=64)
    assert mean_difference(plain, np.asarray(create_scene())) < 3
    transform = find_srgb_transform(build_code_point_profile(*points, is_grey=False), "RGB")
    shown = decode_photo(encode(format, *points), at_least_px=64)
    assert mean_difference(shown, np.asarray(transform.apply(Image.fromarray(plain)))) < 1
    assert mean_difference(shown, plain) > 3


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_a_profile_has_precedence(format):
    profile = files.display_p3_profile()
    one, other = (
        decode_photo(encode(format, *points, icc_profile=profile), at_least_px=64) for points in ((9, 16), (1, 13))
    )
    assert (one == other).all()


def test_a_container_that_libheif_cannot_read_is_shown_in_srgb():
    data = encode("AVIF", 1, 13)
    expected = decode_photo(data, at_least_px=64)
    at = data.index(b"nclx")
    broken = data[:at] + b"xxxx" + data[at + 4 :]
    assert (decode_photo(broken, at_least_px=64) == expected).all()


def test_proportions_are_those_of_the_upright_photo():
    width, height = create_scene().size
    assert width != height
    upright = files.heif(files.hevc_item())
    assert read_heif_aspect(upright) == pytest.approx(width / height)
    for quarter_turns, aspect in ((1, height / width), (2, width / height), (3, height / width)):
        turned = files.heif(files.hevc_item(files.rotation_property(quarter_turns)))
        assert read_heif_aspect(turned) == pytest.approx(aspect)
    assert read_heif_aspect(b"no photo") == 1
