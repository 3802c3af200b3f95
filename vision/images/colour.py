"""Convert a decoded photo to 8-bit sRGB without transparency."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

__all__ = ["build_srgb_transform", "convert_to_srgb", "find_srgb_transform", "paste_on_white_screen"]

_MAX_ICC_PROFILE_BYTES = 1 << 20
_NUM_CACHED_TRANSFORMS = 32
"""Phones, cameras and editors embed a handful of profiles. Building the transform of one takes 0.4 ms (grey) to 20 ms
(inks), where a photo of 1.5 megapixels takes 3; measured on one core with tests/support/photo_files.py."""
_MAX_ROUNDING = 1
"""Grey values by which the transform of a profile that is sRGB may differ from none."""
MAX_COMPOSITED_PIXELS = 1 << 20
"""Pixels composited on white at a time, so that a large photo is not held in memory four times."""


def convert_to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _composite_on_white(image)
    elif image.mode == "P":
        image = image.convert("RGB")
    if transform := find_srgb_transform(profile, image.mode):
        return transform.apply_in_place(image) if image.mode == "RGB" else transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(grey: Image.Image) -> Image.Image:
    # Pillow's own conversion to 8 bits clips everything above 255 to white.
    values = np.asarray(grey)
    eight_bits = (values >> 8).astype(np.uint8)
    if (clear := grey.info.get("transparency")) is not None:
        eight_bits[values == clear] = 255
    return Image.fromarray(eight_bits)


def _composite_on_white(image: Image.Image) -> Image.Image:
    """Composite on white; a grey photo stays grey, so that its profile still fits, any other becomes RGB."""
    mode = "L" if image.mode in ("L", "LA") else "RGB"
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    photo = Image.new(mode, image.size)
    num_rows = max(1, MAX_COMPOSITED_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        band = image.crop((0, top, image.width, min(top + num_rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        photo.paste(Image.alpha_composite(white, band).convert(mode), (0, top))
    return photo


def paste_on_white_screen(frame: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Paste the first frame of a GIF on a white screen, which it need not cover."""
    if box == (0, 0, *frame.size):
        return frame
    screen = Image.new("RGB", frame.size, "white")
    screen.paste(frame.crop(box), box)
    return screen


def find_srgb_transform(profile: object, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a photo's profile to sRGB; None if its pixels are taken for sRGB as they are."""
    if not isinstance(profile, bytes) or len(profile) > _MAX_ICC_PROFILE_BYTES:
        return None
    return build_srgb_transform(profile, mode)


@lru_cache(_NUM_CACHED_TRANSFORMS)
def build_srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from `profile` to sRGB; None if it changes nothing, is broken, or does not fit `mode`."""
    if mode not in ("RGB", "CMYK", "L"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
    # Browsers ignore a broken profile too.
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return None if _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether colours stay as they are, but for rounding. A profile's name says little of its curves."""
    if mode == "CMYK":
        return False
    values = np.arange(0, 256, 17 if mode == "RGB" else 1, dtype=np.uint8)
    samples = np.stack(np.meshgrid(values, values, values), axis=-1) if mode == "RGB" else values
    stored = Image.fromarray(samples.reshape(1, -1, 3) if mode == "RGB" else samples[None])
    shown = np.asarray(transform.apply(stored)).astype(int)
    return bool(np.abs(shown - np.asarray(stored.convert("RGB"))).max() <= _MAX_ROUNDING)
