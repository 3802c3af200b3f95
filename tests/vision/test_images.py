import contextlib
import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.helpers import encoded, scene
from vision.errors import (
    PhotoEmpty,
    PhotoError,
    PhotoNotAnImage,
    PhotoTooManyBytes,
    PhotoTooManyPixels,
    PhotoTooSmall,
    PhotoTruncated,
)
from vision.images import PhotoLimits, Preprocessing, decode_photo, prepare_photo, resize_photo, size_px

PREPROCESSING = Preprocessing(input_px=64)


def mean_difference(a, b) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_turned_by_its_tag_equals_one_turned_beforehand(orientation):
    # The inverse of each EXIF orientation (TIFF 6.0, tag 274), applied to the stored pixels.
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = scene()
    turned = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = prepare_photo(encoded(turned, quality=97, exif=exif), PREPROCESSING)
    wanted = prepare_photo(encoded(upright, quality=97), PREPROCESSING)
    assert mean_difference(got, wanted) < 1.5


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_every_accepted_format_gives_the_same_scene(format):
    photo = prepare_photo(encoded(scene(), format), PREPROCESSING)
    assert photo.shape == (64, 64, 3)
    assert photo.dtype == np.uint8
    wanted = resize_photo(np.asarray(scene()), PREPROCESSING)
    assert mean_difference(photo, wanted) < 12  # GIF has 256 colours


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_every_pixel_mode_becomes_rgb(mode):
    format = "JPEG" if mode in ("L", "CMYK") else "PNG"
    photo = decode_photo(encoded(scene().convert(mode), format), at_least_px=64)
    assert photo.shape == (64, 96, 3)
    reference = scene().convert(mode).convert("RGB")
    assert mean_difference(photo, np.asarray(reference)) < 4


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    assert (decode_photo(encoded(clear, "PNG"), at_least_px=32) == 255).all()


def test_sixteen_bit_greys_are_scaled_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, 64), (64, 1)).astype(np.uint16)
    photo = decode_photo(encoded(Image.fromarray(ramp), "PNG"), at_least_px=64)
    assert np.abs(photo[0, :, 0].astype(int) - np.linspace(0, 255, 64)).max() <= 1


def test_srgb_broken_and_mismatched_profiles_change_nothing():
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert "sRGB" in ImageCms.getProfileDescription(srgb)
    wanted = decode_photo(encoded(scene(), "PNG"), at_least_px=64)
    for profile in (srgb.tobytes(), b"not a profile", ImageCms.ImageCmsProfile(lab).tobytes()):
        assert (decode_photo(encoded(scene(), "PNG", icc_profile=profile), at_least_px=64) == wanted).all()


def test_only_the_first_frame_is_read():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_photo(data, at_least_px=40)[0, 0].tolist() == [255, 0, 0]


def test_jpeg_is_scaled_while_decoding_but_never_below_what_is_asked():
    data = encoded(scene(1600, 1200), quality=90)
    assert decode_photo(data, at_least_px=200).shape == (300, 400, 3)
    assert decode_photo(data, at_least_px=301).shape == (600, 800, 3)


def test_scaled_decoding_changes_pixels_little():
    data = encoded(scene(1600, 1200), quality=95)
    fast = prepare_photo(data, PREPROCESSING)
    slow = resize_photo(np.asarray(Image.open(io.BytesIO(data))), PREPROCESSING)
    assert mean_difference(fast, slow) < 1.5


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 black pixels in its header, and a few bytes of body."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    side = (40_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


JPEG = encoded(scene(400, 300))


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", PhotoEmpty, "0 bytes"),
        (b"hello, I am a text file", PhotoNotAnImage, "68656c6c6f2c2049 are those of no accepted format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", PhotoNotAnImage, "no accepted format"),
        (encoded(scene(), "BMP"), PhotoNotAnImage, "no accepted format"),
        (JPEG[: len(JPEG) // 2], PhotoTruncated, "ends early"),
        (JPEG[:-400], PhotoTruncated, "ends early"),
        (JPEG[:20], PhotoTruncated, "header is cut short"),
        (encoded(scene(), "PNG")[:300], PhotoTruncated, "ends early"),
        (bomb(), PhotoTooManyPixels, "1600.0 MP exceed|exceeds limit"),
        (encoded(scene(7, 40), "PNG"), PhotoTooSmall, "7x40: each side must be at least 8 px"),
    ],
)
def test_hostile_photos_get_their_own_error(data, error, said):
    with pytest.raises(error, match=said):
        decode_photo(data, at_least_px=64)


@pytest.mark.parametrize(("pixels", "fits"), [(96 * 64 - 1, False), (96 * 64, True)])
def test_the_pixel_limit_is_exact(pixels, fits):
    limits = PhotoLimits(max_pixels=pixels)
    if fits:
        assert decode_photo(encoded(scene()), at_least_px=64, limits=limits).shape == (64, 96, 3)
    else:
        with pytest.raises(PhotoTooManyPixels, match="send a smaller photo"):
            decode_photo(encoded(scene()), at_least_px=64, limits=limits)


def test_the_byte_limit_is_exact():
    assert prepare_photo(JPEG, PREPROCESSING, PhotoLimits(max_bytes=len(JPEG))).shape == (64, 64, 3)
    with pytest.raises(PhotoTooManyBytes, match=f"{len(JPEG)} bytes exceed the limit of {len(JPEG) - 1}"):
        prepare_photo(JPEG, PREPROCESSING, PhotoLimits(max_bytes=len(JPEG) - 1))


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "AVIF"]), st.data())
def test_damaged_bytes_give_a_photo_or_a_photo_error_and_nothing_else(format, data):
    damaged = bytearray(encoded(scene(), format))
    for _ in range(data.draw(st.integers(1, 12))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PhotoError):
        photo = prepare_photo(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), PREPROCESSING)
        assert photo.shape == (64, 64, 3)


def test_the_fingerprint_follows_the_pixels():
    assert Preprocessing(input_px=64).fingerprint() == Preprocessing(input_px=64).fingerprint()
    assert Preprocessing(input_px=64).fingerprint() != Preprocessing(input_px=65).fingerprint()


def test_another_decoder_revision_is_refused():
    with pytest.raises(ValueError, match="decoder_revision 0"):
        Preprocessing(input_px=64, decoder_revision=0)


def test_the_size_is_read_from_the_header_alone():
    assert size_px(encoded(scene(300, 200), "PNG")[:100]) == (300, 200)
    with pytest.raises(PhotoNotAnImage):
        size_px(b"no photo at all")
