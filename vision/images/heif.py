"""Colours of AVIF and HEIC photos that are stated by code points (ISO/IEC 14496-12, box colr of kind nclx)."""

import pi_heif
from PIL import ImageFile

from vision.images.profiles import build_code_point_profile

__all__ = ["find_code_point_profile"]


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
