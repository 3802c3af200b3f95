"""Convert a decoded photo to 8-bit sRGB without transparency."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

__all__ = ["build_srgb_transform", "convert_to_srgb", "paste_on_white_screen"]

_MAX_ICC_PROFILE_BYTES = 1 << 20
_NUM_CACHED_TRANSFORMS = 32
"""Phones, cameras and editors embed a handful of profiles. Building the transform of one takes 0.4 ms (grey) to 20 ms
(inks), where a photo of 1.5 megapixels takes 3; measured on one core with tests/support/photo_files.py."""
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
    if isinstance(profile, bytes) and len(profile) <= _MAX_ICC_PROFILE_BYTES:
        transform = build_srgb_transform(profile, image.mode)
        if transform:
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


@lru_cache(_NUM_CACHED_TRANSFORMS)
def build_srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from `profile` to sRGB; None if it is sRGB, broken, or does not fit `mode`."""
    if mode not in ("RGB", "CMYK", "L"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        return ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
    # Browsers ignore a broken profile too.
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
