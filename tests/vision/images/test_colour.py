from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image, mean_difference
from vision.images import (
    colour,
    decode_photo,
)
from vision.images.colour import build_srgb_transform, find_srgb_transform


def convert_p3_to_srgb(photo):
    """(H, W, 3) Display P3 values of gamma 2.2 in sRGB; the matrix is SMPTE EG 432-1 to IEC 61966-2-1, both at D65."""
    matrix = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]
    linear = np.clip((photo / 255) ** 2.2 @ np.transpose(matrix), 0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


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
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wanted = decode_photo(encode_image(create_scene(), "PNG"), at_least_px=64)
    for profile in (srgb, files.srgb_profile("c2"), b"not a profile", lab, files.grey_profile()):
        assert find_srgb_transform(profile, "RGB") is None
        assert (decode_photo(encode_image(create_scene(), "PNG", icc_profile=profile), at_least_px=64) == wanted).all()


@pytest.mark.parametrize("name", ["GIMP built-in Linear sRGB", "sRGB-elle-V2-g10", "sRGB"])
def test_a_profile_is_srgb_by_its_curves_and_not_by_its_name(name):
    data = encode_image(create_scene(), "PNG", icc_profile=files.srgb_profile(name, gamma=1.0))
    light = np.asarray(create_scene()) / 255
    wanted = 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    assert mean_difference(decode_photo(data, at_least_px=64), wanted) < 1


def test_a_profile_is_srgb_by_its_primaries_and_not_by_its_name():
    named = encode_image(create_scene(), "PNG", icc_profile=files.display_p3_profile("sRGB IEC61966-2.1"))
    plain = encode_image(create_scene(), "PNG", icc_profile=files.display_p3_profile())
    shown = decode_photo(named, at_least_px=64)
    assert (shown == decode_photo(plain, at_least_px=64)).all()
    assert mean_difference(shown, np.asarray(create_scene())) > 3


def test_a_profile_larger_than_is_read_is_ignored():
    assert find_srgb_transform(files.display_p3_profile() + bytes(1 << 20), "RGB") is None
