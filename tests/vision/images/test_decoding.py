import contextlib
import io
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from vision.errors import (
    PhotoDecoderCrashed,
    PhotoEmpty,
    PhotoError,
    PhotoNotAnImage,
    PhotoTimedOut,
    PhotoTooManyBytes,
    PhotoTooManyPixels,
    PhotoTooSmall,
    PhotoTruncated,
)
from vision.images import (
    ALLOWED_FORMATS,
    PhotoLimits,
    Preprocessing,
    colour,
    decode_photo,
    prepare_photo,
    size_px,
)
from vision.images.colour import build_srgb_transform
from vision.images.orientation import TRANSPOSITIONS

PREPROCESSING = Preprocessing(input_px=64)

# The inverse of each EXIF orientation (TIFF 6.0, tag 274), applied to the stored pixels.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def resize(photo: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC))


def mean_difference(a, b) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_turned_by_its_tag_equals_one_turned_beforehand(orientation):
    stored = STORED[orientation]
    upright = create_scene()
    turned = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = prepare_photo(encode_image(turned, quality=97, exif=exif), PREPROCESSING)
    wanted = prepare_photo(encode_image(upright, quality=97), PREPROCESSING)
    assert mean_difference(got, wanted) < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_without_loss_not_a_pixel_differs(orientation, format, options):
    stored = STORED[orientation]
    turned = create_scene() if stored is None else create_scene().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_photo(encode_image(turned, format, exif=exif, **options), at_least_px=64)
    assert (got == np.asarray(create_scene())).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_and_heif_are_turned_once_by_their_own_properties(orientation):
    stored = STORED[orientation]
    turned = create_scene() if stored is None else create_scene().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Pillow writes an AVIF's orientation as the properties irot and imir.
    got = decode_photo(encode_image(turned, "AVIF", exif=exif, quality=95), at_least_px=64)
    assert mean_difference(got, np.asarray(create_scene())) < 3

    quarters, mirrored = {1: (0, 0), 2: (2, 1), 3: (2, 0), 4: (0, 1), 5: (1, 1), 6: (3, 0), 7: (3, 1), 8: (1, 0)}[
        orientation
    ]
    properties = [files.rotation_property(quarters)] + [files.box(b"imir", b"\0")] * mirrored
    tag = files.exif_item(2, files.exif(files.short_tag(0x0112, orientation)))
    data = files.heif(files.hevc_item(*properties), tag, references=[(b"cdsc", 2, [1])])
    shown = {value: create_scene().transpose(turn) for value, turn in TRANSPOSITIONS.items()} | {1: create_scene()}
    got = decode_photo(data, at_least_px=64)
    assert got.shape == np.asarray(shown[orientation]).shape
    assert mean_difference(got, np.asarray(shown[orientation])) < 3


def test_the_accepted_formats():
    assert ALLOWED_FORMATS == ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")


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


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_every_pixel_mode_becomes_rgb(mode):
    format = "JPEG" if mode in ("L", "CMYK") else "PNG"
    photo = decode_photo(encode_image(create_scene().convert(mode), format), at_least_px=64)
    assert photo.shape == (64, 96, 3)
    reference = create_scene().convert(mode).convert("RGB")
    assert mean_difference(photo, np.asarray(reference)) < 4


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    assert (decode_photo(encode_image(clear, "PNG"), at_least_px=32) == 255).all()


def test_alpha_that_hides_nothing_changes_nothing():
    opaque = create_scene().copy()
    opaque.putalpha(255)
    assert (decode_photo(encode_image(opaque, "PNG"), at_least_px=64) == np.asarray(create_scene())).all()


def test_a_large_photo_on_white_is_the_same_in_bands(monkeypatch):
    clear = create_scene().copy()
    clear.putalpha(create_scene().convert("L").rotate(180))
    data = encode_image(clear, "PNG")
    whole = decode_photo(data, at_least_px=64)
    white = Image.new("RGBA", clear.size, "white")
    assert (whole == np.asarray(Image.alpha_composite(white, clear).convert("RGB"))).all()
    monkeypatch.setattr(colour, "MAX_COMPOSITED_PIXELS", 5 * 96)
    assert (decode_photo(data, at_least_px=64) == whole).all()


def test_sixteen_bit_greys_are_scaled_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, 64), (64, 1)).astype(np.uint16)
    photo = decode_photo(encode_image(Image.fromarray(ramp), "PNG"), at_least_px=64)
    assert np.abs(photo[0, :, 0].astype(int) - np.linspace(0, 255, 64)).max() <= 1


def convert_p3_to_srgb(photo):
    """(H, W, 3) Display P3 values of gamma 2.2 in sRGB; the matrix is SMPTE EG 432-1 to IEC 61966-2-1, both at D65."""
    matrix = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]
    linear = np.clip((photo / 255) ** 2.2 @ np.transpose(matrix), 0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_a_wide_gamut_photo_is_shown_in_srgb(format):
    profile = files.display_p3_profile()
    plain, wide = (
        files.heif(files.hevc_item(*colour))
        if format == "HEIF"
        else encode_image(create_scene(), format, icc_profile=icc)
        for icc, colour in ((None, []), (profile, [files.box(b"colr", b"prof" + profile)]))
    )
    plain, wide = (decode_photo(data, at_least_px=64) for data in (plain, wide))
    assert mean_difference(wide, convert_p3_to_srgb(plain)) < 1
    assert mean_difference(wide, plain) > 3


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_greys_are_shown_by_their_profile(mode):
    grey = create_scene().convert("L")
    sixteen_bits = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    stored = sixteen_bits if mode == "I;16" else grey.convert(mode)
    photo = decode_photo(encode_image(stored, "PNG", icc_profile=files.grey_profile(1.0)), at_least_px=64)
    light = np.asarray(grey) / 255
    wanted = 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    assert (photo == photo[..., :1]).all()
    assert mean_difference(photo[..., 0], wanted) < 1


def test_profiles_are_read_once_and_forgotten_in_time():
    build_srgb_transform.cache_clear()
    data = encode_image(create_scene(), icc_profile=files.display_p3_profile())
    photos = [decode_photo(data, at_least_px=64) for _ in range(3)]
    assert all((photo == photos[0]).all() for photo in photos)
    assert build_srgb_transform.cache_info()[:2] == (2, 1)
    for number in range(100):
        decode_photo(encode_image(create_scene(), icc_profile=files.display_p3_profile(f"P{number}")), at_least_px=64)
    assert build_srgb_transform.cache_info().currsize <= 32


def test_many_threads_share_the_profiles():
    photos = [
        encode_image(create_scene(), icc_profile=files.display_p3_profile(f"P{number % 50}")) for number in range(400)
    ]
    alone = decode_photo(photos[0], at_least_px=64)
    build_srgb_transform.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        for photo in pool.map(lambda data: decode_photo(data, at_least_px=64), photos):
            assert (photo == alone).all()


def test_srgb_broken_and_mismatched_profiles_change_nothing():
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert "sRGB" in ImageCms.getProfileDescription(srgb)
    wanted = decode_photo(encode_image(create_scene(), "PNG"), at_least_px=64)
    for profile in (srgb.tobytes(), b"not a profile", ImageCms.ImageCmsProfile(lab).tobytes()):
        assert (decode_photo(encode_image(create_scene(), "PNG", icc_profile=profile), at_least_px=64) == wanted).all()


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
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", PhotoNotAnImage, "no accepted format"),
        (encode_image(create_scene(), "BMP"), PhotoNotAnImage, "no accepted format"),
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


@pytest.mark.parametrize(("pixels", "fits"), [(96 * 64 - 1, False), (96 * 64, True)])
def test_the_pixel_limit_is_exact(pixels, fits):
    limits = PhotoLimits(max_pixels=pixels)
    if fits:
        assert decode_photo(encode_image(create_scene()), at_least_px=64, limits=limits).shape == (64, 96, 3)
    else:
        with pytest.raises(PhotoTooManyPixels, match="send a smaller photo"):
            decode_photo(encode_image(create_scene()), at_least_px=64, limits=limits)


def test_the_byte_limit_is_exact():
    assert prepare_photo(JPEG, PREPROCESSING, PhotoLimits(max_bytes=len(JPEG))).shape == (64, 64, 3)
    with pytest.raises(PhotoTooManyBytes, match=f"{len(JPEG)} bytes exceed the limit of {len(JPEG) - 1}"):
        prepare_photo(JPEG, PREPROCESSING, PhotoLimits(max_bytes=len(JPEG) - 1))


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "AVIF"]), st.data())
def test_damaged_bytes_give_a_photo_or_a_photo_error_and_nothing_else(format, data):
    damaged = bytearray(encode_image(create_scene(), format))
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
    assert size_px(encode_image(create_scene(300, 200), "PNG")[:100]) == (300, 200)
    with pytest.raises(PhotoNotAnImage):
        size_px(b"no photo at all")
