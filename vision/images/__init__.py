"""Photos: decode, limits, preprocessing."""

from vision.images.decoding import (
    ALLOWED_FORMATS,
    Photo,
    PhotoLimits,
    Preprocessing,
    check_bytes,
    decode_photo,
    prepare_photo,
    resize_photo,
    size_px,
)

__all__ = [
    "ALLOWED_FORMATS",
    "Photo",
    "PhotoLimits",
    "Preprocessing",
    "check_bytes",
    "decode_photo",
    "prepare_photo",
    "resize_photo",
    "size_px",
]
