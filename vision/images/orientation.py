"""Turn a photo upright by its EXIF block, as browsers and libvips do; what XMP or a text chunk says is not heeded."""

import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

__all__ = ["TRANSPOSITIONS", "turn_upright"]

_ORIENTATION_TAG = 0x0112  # TIFF 6.0, tag 274
_INTEGER_FORMATS = {3: "H2x", 4: "I"}
"""struct formats of SHORT and LONG in the four bytes of a TIFF value."""
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_upright(image: Image.Image, format_: str) -> Image.Image:
    # libheif applies its own boxes; the EXIF tag beside them is a copy for other readers.
    transposition = None if format_ == "HEIF" else _read_orientation(image.info)
    return image.transpose(TRANSPOSITIONS[transposition]) if transposition in TRANSPOSITIONS else image


def _read_orientation(info: Mapping[str | tuple[int, int], Any]) -> int | None:
    """Return the EXIF orientation; None, treated as upright, if there is none or it cannot be read, as viewers do.

    Pillow's reader reads every other tag too, and its `exif_transpose` fails where one of them is malformed.
    """
    exif = info.get("exif")
    try:
        return _parse_exif_orientation(exif) if isinstance(exif, bytes) else None
    except (KeyError, struct.error):
        return None


def _parse_exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in the first directory (TIFF 6.0, section 2)."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if not tiff:
        return None
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (at,) = struct.unpack(f"{order}I", tiff[4:8])
    (num_entries,) = struct.unpack(f"{order}H", tiff[at : at + 2])
    entries = tiff[at + 2 : at + 2 + 12 * num_entries]
    orientation = None
    for tag, kind, count, value in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        if tag == _ORIENTATION_TAG and kind in _INTEGER_FORMATS and 0 < count <= 2:
            orientation = struct.unpack(order + _INTEGER_FORMATS[kind], value)[0]
    return orientation
