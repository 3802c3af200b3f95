"""What the containers of AVIF and HEIC photos state: colours by code points (ISO/IEC 14496-12, box colr of kind nclx),
and proportions."""

import re

import pi_heif
from PIL import ImageFile

from vision.images.profiles import build_code_point_profile

__all__ = ["find_code_point_profile", "read_heif_aspect"]

_EXTENTS = re.compile(rb"\0\0\0\x14ispe\0{4}(.{4})(.{4})", re.DOTALL)
"""ISO/IEC 23008-12, section 6.5.3: size of an image item, before its rotation."""
_ROTATION = re.compile(rb"\0\0\0\x09irot(.)", re.DOTALL)
"""Section 6.5.10: number of quarter turns."""


def find_code_point_profile(opened: ImageFile.ImageFile, data: bytes, format_: str) -> bytes | None:
    """Return the profile of a photo without an ICC profile; None if it states no colours, or unknown ones."""
    points = _read_avif_code_points(data) if format_ == "AVIF" else opened.info.get("nclx_profile")
    if not points:
        return None
    primaries, transfer = points["color_primaries"], points["transfer_characteristics"]
    return build_code_point_profile(primaries, transfer, is_grey=opened.mode in ("L", "LA"))


def _read_avif_code_points(data: bytes) -> dict[str, int] | None:
    """Pillow does not read them. libheif reads the container, which both formats share, and decodes nothing."""
    try:
        points: dict[str, int] | None = pi_heif.open_heif(data).info.get("nclx_profile")
    except (EOFError, OSError, RuntimeError, SyntaxError, ValueError):
        # It is stricter than libavif, which decodes the photo: its colours are taken for sRGB.
        return None
    return points


def read_heif_aspect(photo: bytes) -> float:
    """Return width by height of a HEIC or AVIF photo when upright; 1 where it is not stated."""
    sizes = [(int.from_bytes(w), int.from_bytes(h)) for w, h in _EXTENTS.findall(photo)]
    # A phone's photo is a grid of tiles, and has a thumbnail: the largest item is the photo.
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(1, 1))
    turn = _ROTATION.search(photo)
    aspect = max(width, 1) / max(height, 1)
    return 1 / aspect if turn and turn.group(1)[0] % 2 else aspect
