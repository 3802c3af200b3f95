import io

import numpy as np
import pytest
from PIL import Image

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from vision.images.jpeg import choose_jpeg_scale, decode_jpeg
from vision.images.jpeg_segments import SCAN_MARKER, iterate_jpeg_segments


@pytest.mark.parametrize(
    ("size", "at_least_px", "scale"),
    [
        ((1440, 1080), 224, 4),
        ((1440, 1080), 270, 4),
        ((1440, 1080), 271, 2),
        ((1440, 1080), 541, 1),
        ((99, 99), 224, 1),
        ((9000, 9000), 64, 8),
    ],
)
def test_the_scale_leaves_as_many_pixels_as_are_asked_for(size, at_least_px, scale):
    assert choose_jpeg_scale(*size, at_least_px) == scale
    assert min(size) // scale >= min(at_least_px, *size)


def decode_with_pillow(data, mode, at_least_px):
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft(mode, (at_least_px, at_least_px))
        return np.asarray(opened)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
@pytest.mark.parametrize("size", [(8, 9), (97, 83), (331, 401)])
@pytest.mark.parametrize("at_least_px", [8, 40, 200, 1000])
def test_pixels_of_a_whole_file_are_pillows(mode, options, size, at_least_px):
    data = encode_image(create_scene(*size).convert(mode), quality=90, **options)
    photo = decode_jpeg(data, mode, size, at_least_px=at_least_px)
    assert photo.mode == mode
    assert (np.asarray(photo) == decode_with_pillow(data, mode, at_least_px)).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_each_missing_byte_of_coded_data_is_noticed(options):
    whole = encode_image(create_scene(), quality=90, **options)
    last_scan = max(at for marker, at in iterate_jpeg_segments(whole) if marker == SCAN_MARKER)
    assert decode_jpeg(whole[:-2], "RGB", (96, 64), at_least_px=64)
    for end in range(last_scan + 20, len(whole) - 2):
        for closing in (b"", b"\xff\xd9"):
            with pytest.raises(ValueError, match="Corrupt JPEG data"):
                decode_jpeg(whole[:end] + closing, "RGB", (96, 64), at_least_px=64)


def test_a_component_without_a_scan_is_noticed():
    scans = [files.jpeg_scan(number, data=files.zero_bits(96)) for number in (1, 2, 3)]
    whole = files.jpeg_by_scans(96, 64, scans, num_components=3)
    assert decode_jpeg(whole, "RGB", (96, 64), at_least_px=64)
    for some in (scans[:2], scans[1:], [*scans[:2], files.jpeg_scan(3, spectrum=(1, 63), data=files.empty_blocks(96))]):
        part = files.jpeg_by_scans(96, 64, some, num_components=3)
        with pytest.raises(ValueError, match="is missing"):
            decode_jpeg(part, "RGB", (96, 64), at_least_px=64)


@pytest.mark.parametrize("num_bytes", [1, 5, 9, 10, 500])
def test_padding_is_forgiven_and_a_part_that_was_never_written_is_not(num_bytes):
    whole = encode_image(create_scene(300, 200), quality=90)
    expected = np.asarray(decode_jpeg(whole, "RGB", (300, 200), at_least_px=300))
    padded = whole[:-2] + bytes(num_bytes) + b"\xff\xd9"
    assert (np.asarray(decode_jpeg(padded, "RGB", (300, 200), at_least_px=300)) == expected).all()
    # Restarts let libjpeg find the end of the photo although the rest of it is zeros.
    whole = encode_image(create_scene(300, 200), quality=90, restart_marker_blocks=4)
    half = len(whole) // 2
    zeroed = whole[:half] + bytes(len(whole) - half + num_bytes) + b"\xff\xd9"
    with pytest.raises(ValueError, match=r"extraneous|premature"):
        decode_jpeg(zeroed, "RGB", (300, 200), at_least_px=300)


def test_a_lossless_frame_never_reaches_the_decoder():
    """simplejpeg writes beyond its buffer when it scales one."""
    lossless = files.jpeg_by_scans(1600, 1600, [files.jpeg_scan(spectrum=(1, 0), data=bytes(9000))], frame=0xC3)
    with pytest.raises(ValueError, match="no frame"):
        decode_jpeg(lossless, "L", (1600, 1600), at_least_px=64)


@pytest.mark.parametrize("length", [0, 1])
def test_a_segment_without_a_length_hides_no_other_frame(length):
    """libjpeg would take the marker behind it for its length, skip that many bytes, and find the lossless frame."""
    hidden = files.jpeg_by_scans(1600, 1600, [files.jpeg_scan(spectrum=(1, 0), data=bytes(9000))], frame=0xC3)[2:-2]
    plain = files.jpeg_by_scans(1600, 1600, [files.jpeg_scan(data=files.zero_bits(40_000))], frame=0xC0)
    header, scan = plain[2 : plain.index(b"\xff\xda")], plain[plain.index(b"\xff\xda") :]
    data = plain[:2] + b"\xff\xdb\0" + bytes([length]) + header + files.jpeg_segment(0xDB, hidden) + scan
    with pytest.raises(ValueError, match="a segment is cut short"):
        decode_jpeg(data, "L", (1600, 1600), at_least_px=64)


@pytest.mark.parametrize("num_bytes", [2, 3, 7])
def test_a_scan_header_that_is_too_short_is_refused(num_bytes):
    whole = encode_image(create_scene())
    at = whole.index(b"\xff\xda") + 2
    short = whole[:at] + num_bytes.to_bytes(2) + whole[at + 2 :]
    with pytest.raises(ValueError, match="cut short"):
        decode_jpeg(short, "RGB", (96, 64), at_least_px=64)


def test_a_header_without_a_scan_has_no_pixels():
    whole = encode_image(create_scene())
    with pytest.raises(ValueError, match="no frame"):
        decode_jpeg(whole[: whole.index(b"\xff\xda")], "RGB", (96, 64), at_least_px=64)
