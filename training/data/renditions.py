"""Smaller copies of photos, as marketplaces keep them beside the originals."""

import io

from PIL import Image

from vision.images import decode_photo, read_size_px

__all__ = ["create_rendition"]

JPEG_QUALITY = 90


def create_rendition(data: bytes, *, max_px: int) -> bytes:
    """Return the photo as a JPEG whose short side has `max_px`; as it is if that side is not longer.

    Raises:
        PhotoError: it cannot be decoded.
    """
    if min(read_size_px(data)) <= max_px:
        return data
    photo = Image.fromarray(decode_photo(data, at_least_px=max_px))
    scale = max_px / min(photo.size)
    size = round(photo.width * scale), round(photo.height * scale)
    encoded = io.BytesIO()
    photo.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()
