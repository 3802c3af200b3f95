import contextlib
import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image, mean_difference
from vision.errors import (
    PhotoDecoderCrashed,
    PhotoEmpty,
    PhotoError,
    PhotoNotAnImage,
    PhotoTimedOut,
    PhotoTooManyPixels,
    PhotoTooSmall,
    PhotoTruncated,
)
from vision.images import (
    ALLOWED_FORMATS,
    Preprocessing,
    decode_photo,
    prepare_photo,
    read_size_px,
)

PREPROCESSING = Preprocessing(input_px=64)


def resize(photo: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC))


def create_heic_scene() -> bytes:
    return files.heif(files.hevc_item())


@pytest.mark.parametrize("format", ALLOWED_FORMATS)
def test_every_accepted_format_gives_the_same_scene(format):
    photo = prepare_photo(
        create_heic_scene() if format == "HEIF" else encode_image(create_scene(), format), PREPROCESSING
    )
    assert photo.shape == (64, 64, 3)
    assert photo.dtype == np.uint8
    wanted = resize(np.asarray(create_scene()), 64)
    assert mean_difference(photo, wanted) < 12  # GIF has 256 colours


def test_only_the_first_frame_is_read():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_photo(data, at_least_px=40)[0, 0].tolist() == [255, 0, 0]


def test_jpeg_is_scaled_while_decoding_but_never_below_what_is_asked():
    data = encode_image(create_scene(1600, 1200), quality=90)
    assert decode_photo(data, at_least_px=200).shape == (300, 400, 3)
    assert decode_photo(data, at_least_px=301).shape == (600, 800, 3)


def test_scaled_decoding_changes_pixels_little():
    data = encode_image(create_scene(1600, 1200), quality=95)
    fast = prepare_photo(data, PREPROCESSING)
    slow = resize(np.asarray(Image.open(io.BytesIO(data))), 64)
    assert mean_difference(fast, slow) < 1.5


@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "AVIF"]),
    st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"]),
    st.tuples(st.integers(8, 300), st.integers(8, 300)),
    st.sampled_from([32, 33, 64, 100]),
)
def test_preparing_is_decoding_and_resizing(format, mode, size, input_px):
    stored = create_scene(*size).convert(mode)
    if format == "JPEG" and mode not in ("RGB", "L", "CMYK"):
        stored = stored.convert("RGB")
    if format != "JPEG" and mode == "CMYK":
        stored = stored.convert("P")
    data, preprocessing = encode_image(stored, format), Preprocessing(input_px=input_px)
    prepared = prepare_photo(data, preprocessing)
    assert (prepared == resize(decode_photo(data, at_least_px=input_px), input_px)).all()
    assert prepared.flags.writeable
    assert prepared.flags.c_contiguous


def test_a_photo_too_large_for_the_memory_left_is_refused():
    code = """
import resource
from tests.support.photo_files import png
from vision.errors import PhotoDecoderCrashed
from vision.images import decode_photo
data = png(7000, 7000, (b"\\0" + bytes(7000)) * 7000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
try:
    decode_photo(data, at_least_px=64)
except PhotoDecoderCrashed as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "decoding it takes more memory than there is; send a smaller photo\n"


def test_what_an_isolated_decoder_says():
    assert PhotoDecoderCrashed.reason == "PHOTO_DECODER_CRASHED"
    assert PhotoTimedOut.reason == "PHOTO_TIMEOUT"


def create_png_bomb() -> bytes:
    """A PNG of 40,000 x 40,000 black pixels in its header, and a few bytes of body."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    side = (40_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


JPEG = encode_image(create_scene(400, 300))


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", PhotoEmpty, "0 bytes"),
        (b"hello, I am a text file", PhotoNotAnImage, "68656c6c6f2c2049 are those of no accepted format"),
        (encode_image(create_scene(), "BMP"), PhotoNotAnImage, "it is of format BMP"),
        (JPEG[: len(JPEG) // 2], PhotoTruncated, "ends early"),
        (JPEG[:-400], PhotoTruncated, "ends early"),
        (JPEG[:20], PhotoTruncated, "header is cut short"),
        (encode_image(create_scene(), "PNG")[:300], PhotoTruncated, "ends early"),
        (create_png_bomb(), PhotoTooManyPixels, "1600.0 MP exceed|exceeds limit"),
        (encode_image(create_scene(7, 40), "PNG"), PhotoTooSmall, "7x40: each side must be at least 8 px"),
    ],
)
def test_hostile_photos_get_their_own_error(data, error, said):
    with pytest.raises(error, match=said):
        decode_photo(data, at_least_px=64)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "AVIF"]), st.data())
def test_damaged_bytes_give_a_photo_or_a_photo_error_and_nothing_else(format, data):
    damaged = bytearray(encode_image(create_scene(), format))
    for _ in range(data.draw(st.integers(1, 12))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PhotoError):
        photo = prepare_photo(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), PREPROCESSING)
        assert photo.shape == (64, 64, 3)


def test_the_size_is_read_from_the_header_alone():
    assert read_size_px(encode_image(create_scene(300, 200), "PNG")[:100]) == (300, 200)
    with pytest.raises(PhotoNotAnImage):
        read_size_px(b"no photo at all")
