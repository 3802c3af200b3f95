import pytest

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from vision.images.formats import ALLOWED_FORMATS
from vision.images.truncation import is_truncated

WHOLE = {format: encode_image(create_scene(), format) for format in ALLOWED_FORMATS if format != "HEIF"}
WHOLE["HEIF"] = files.heif(files.hevc_item())


@pytest.mark.parametrize("format", ALLOWED_FORMATS)
def test_a_whole_file_is_not_truncated_and_each_part_of_it_is(format):
    whole = WHOLE[format]
    assert not is_truncated(whole, format)
    behind_pixels = {"PNG": 12, "GIF": 2}.get(format, 1)
    for num_bytes in [*range(12, len(whole) - behind_pixels, 7), len(whole) - behind_pixels]:
        # The end of a box of a HEIF or AVIF file is not to be told from that of the file.
        if format in ("AVIF", "HEIF") and whole[num_bytes + 4 : num_bytes + 8] in (b"meta", b"mdat"):
            continue
        assert is_truncated(whole[:num_bytes], format), num_bytes


@pytest.mark.parametrize("format", ALLOWED_FORMATS)
def test_a_damaged_file_is_not(format):
    whole = WHOLE[format]
    assert not is_truncated(whole[:-60] + bytes(40) + whole[-20:], format)


def test_a_gif_may_end_without_a_frame():
    assert not is_truncated(files.gif([], 16, 16), "GIF")
    assert not is_truncated(files.gif([files.gif_frame(10, 10)], 10, 10, before=files.gif_comment(b"a" * 700)), "GIF")


def test_the_end_marker_within_a_thumbnail_is_not_the_photos():
    segment = files.jpeg_segment(0xE1, b"Exif\0\0" + WHOLE["JPEG"])
    cut = files.with_segments(WHOLE["JPEG"], segment)[: -len(WHOLE["JPEG"]) // 2]
    assert is_truncated(cut, "JPEG")
