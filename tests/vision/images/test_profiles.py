import numpy as np
import pytest
from PIL import Image

from vision.images.colour import find_srgb_transform
from vision.images.profiles import build_code_point_profile, build_gamma_profile

# Red, green and blue of BT.2020 and Display P3 in those of sRGB; ITU-R BT.2087 and SMPTE EG 432-1.
TO_SRGB = {
    1: np.eye(3),
    9: np.array([[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]),
    12: np.array([[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]),
}
SCENE = np.random.default_rng(0).random((64, 64, 3)) ** 1.5
"""Linear light in sRGB, relative to its white."""


def encode_srgb(light):
    return np.where(light > 0.0031308, 1.055 * np.clip(light, 0.003, 1) ** (1 / 2.4) - 0.055, 12.92 * light)


def encode_pq(light):
    power = (light * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def encode_hlg(light):
    """The inverse of the display's curve, from the luminance of BT.2020, then that of the camera."""
    shown = light * 203 / 1000
    luminance = (shown @ [0.2627, 0.6780, 0.0593])[..., None]
    scene = shown * luminance ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(12 * np.maximum(scene, 1 / 12) - 0.28466892) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


ENCODERS = {
    1: encode_srgb,
    4: lambda light: light ** (1 / 2.2),
    5: lambda light: light ** (1 / 2.8),
    8: lambda light: light,
    13: encode_srgb,
    16: encode_pq,
    18: encode_hlg,
}


def show(codes, profile):
    """8-bit codes by the profile in sRGB."""
    stored = Image.fromarray(np.round(np.clip(codes, 0, 1) * 255).astype(np.uint8))
    transform = find_srgb_transform(profile, "RGB")
    return np.asarray(transform.apply(stored) if transform else stored)


@pytest.mark.parametrize("primaries", TO_SRGB)
@pytest.mark.parametrize("transfer", ENCODERS)
def test_a_scene_in_other_colours_is_shown_as_it_is(primaries, transfer):
    scene = SCENE * 0.8  # below where high dynamic range is compressed
    codes = ENCODERS[transfer](scene @ np.linalg.inv(TO_SRGB[primaries]).T)
    shown = show(codes, build_code_point_profile(primaries, transfer, is_grey=False))
    difference = np.abs(shown - 255 * encode_srgb(scene))
    # Eight bits of linear light are few in the dark, and those of PQ and HLG everywhere.
    assert difference.mean() < (1.5 if transfer in (8, 16, 18) else 1)


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_compressed_in_order(transfer):
    nits = np.array([0, 1, 50, 100, 162, 203, 300, 500, 800, 1000])
    codes = ENCODERS[transfer](np.maximum(nits, 1e-6)[:, None, None] / 203 * np.ones(3))
    grey = show(codes, build_code_point_profile(9, transfer, is_grey=False))[:, 0].astype(int)
    assert (np.ptp(grey, axis=1) <= 1).all()
    assert (np.diff(grey[:, 0]) > 0).all()
    linear = 255 * encode_srgb(nits / 203)
    assert np.abs(grey[:5, 0] - linear[:5]).max() <= 4
    assert 235 < grey[5, 0] < 250
    assert grey[-1, 0] >= 254


def test_unknown_code_points_have_no_profile():
    assert build_code_point_profile(2, 2, is_grey=False) is None
    assert build_code_point_profile(99, 13, is_grey=False) is None
    assert build_code_point_profile(1, 17, is_grey=False) is None
    srgb = build_code_point_profile(1, 13, is_grey=False)
    assert build_code_point_profile(1, 2, is_grey=False) == build_code_point_profile(2, 13, is_grey=False) == srgb
    assert find_srgb_transform(srgb, "RGB") is None


def test_a_grey_profile_is_for_greys():
    profile = build_gamma_profile(1.0, None, is_grey=True)
    assert find_srgb_transform(profile, "RGB") is None
    grey = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    shown = np.asarray(find_srgb_transform(profile, "L").apply(grey))[0]
    assert np.abs(shown - 255 * encode_srgb(np.arange(256) / 255)[:, None]).mean() < 1


D65 = (0.3127, 0.3290)


@pytest.mark.parametrize(
    "impossible",
    [
        (D65, (0.3, 0.3), (0.3, 0.3), (0.3, 0.3)),
        ((0.3, 0), (0.64, 0.33), (0.3, 0.6), (0.15, 0.06)),
        (D65, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
        (D65, (0.64, 0.33), (0.3, 0.6), (0.47, 0.46500001)),
        ((42949.67, 42949.67), (0.64, 0.33), (0.3, 0.6), (0.15, 0.06)),
    ],
)
def test_impossible_colours_have_no_profile(impossible):
    assert build_gamma_profile(2.2, impossible, is_grey=False) is None
