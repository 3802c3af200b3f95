"""Limits of what a photo may cost to decode: bytes, pixels, segments and scans, checked before anything is
allocated."""

import struct
from dataclasses import dataclass
from typing import TypeAlias

from vision.errors import PhotoEmpty, PhotoTooManyBytes, PhotoTooManyPixels, PhotoTooSmall, PhotoUnreadable
from vision.images.jpeg_segments import (
    FRAME_MARKERS,
    PROGRESSIVE_MARKERS,
    SCAN_MARKER,
    SEQUENTIAL_MARKERS,
    iterate_jpeg_segments,
)

__all__ = ["EncodedPhoto", "PhotoLimits", "check_bytes", "check_cost", "check_pixels", "check_short_side"]

EncodedPhoto: TypeAlias = bytes | memoryview
"""The bytes of a photo's file; a view may belong to a message that has more photos."""

_MAX_JPEG_SEGMENTS = 1000
"""Pillow reads them one by one and joins those of EXIF, in time that grows with their square. Phones write some dozens;
16 MiB of the largest are 256."""
_MAX_SCANNED_PIXELS = 1_000_000_000
"""Scans of a JPEG times its pixels: twice the ten scans of a usual encoder at the pixel limit, decoded in 0.4 s. A scan
of ten bytes costs up to 22 ms at 50 megapixels, so that 16 MiB of them would take half a day; measured on one core."""


@dataclass(frozen=True, kw_only=True)
class PhotoLimits:
    """Limits checked on a photo's header before anything is allocated."""

    max_bytes: int = 16 << 20
    max_pixels: int = 50_000_000
    """Width times height as stored; imgproxy ships the same default."""
    min_side_px: int = 8
    rendition_px: int | None = None
    """Maximum short side where guarantees hold for renditions of that size alone; None: photos are originals."""


def check_bytes(data: EncodedPhoto, limits: PhotoLimits) -> None:
    """Check the size in bytes of an encoded photo.

    Raises:
        PhotoEmpty, PhotoTooManyBytes: as `decode_photo` says.
    """
    if not len(data):
        raise PhotoEmpty("0 bytes; send the photo's encoded bytes")
    if len(data) > limits.max_bytes:
        raise PhotoTooManyBytes(
            f"{len(data)} bytes exceed the limit of {limits.max_bytes}; send a smaller or more compressed photo"
        )


def check_pixels(width: int, height: int, limits: PhotoLimits) -> None:
    if width * height > limits.max_pixels:
        raise PhotoTooManyPixels(
            f"{width}x{height} = {width * height / 1e6:.1f} MP exceed the limit of {limits.max_pixels / 1e6:g} MP; "
            "send a smaller photo"
        )


def check_short_side(width: int, height: int, limits: PhotoLimits) -> None:
    if min(width, height) < limits.min_side_px:
        raise PhotoTooSmall(f"{width}x{height}: each side must be at least {limits.min_side_px} px")
    # What `training.data.renditions.create_rendition` leaves as it is passes here.
    if limits.rendition_px and min(width, height) > limits.rendition_px:
        raise PhotoTooManyPixels(
            f"{width}x{height} is no rendition of {limits.rendition_px} px: its short side is longer; give a copy of "
            f"that size (`data shard --max-px {limits.rendition_px}` makes some), or leave --rendition out"
        )


def check_cost(data: bytes, format_: str, limits: PhotoLimits) -> None:
    """Refuse files whose header alone is expensive to read, or that cost far more than their pixels suggest."""
    if format_ == "JPEG":
        _check_scans(data, limits)
    elif format_ == "WEBP" and (
        canvas := _read_webp_canvas(data)
    ):  # allocated four times over by Pillow when it opens it
        check_pixels(*canvas, limits)


def _check_scans(data: bytes, limits: PhotoLimits) -> None:
    num_scans = num_pixels = 0
    num_components, one_scan = b"", False
    for number, (marker, at) in enumerate(iterate_jpeg_segments(data)):
        if number == _MAX_JPEG_SEGMENTS:
            raise PhotoUnreadable(f"it has more than {_MAX_JPEG_SEGMENTS} segments; save it again as JPEG")
        if marker in FRAME_MARKERS:
            if marker not in SEQUENTIAL_MARKERS | PROGRESSIVE_MARKERS:
                raise PhotoUnreadable("it is a lossless or hierarchical JPEG; save it again as plain JPEG")
            height, width = struct.unpack(">HH", data[at + 3 : at + 7].ljust(4, b"\0"))
            check_pixels(width, height, limits)
            num_pixels, num_components = width * height, data[at + 7 : at + 8]
            one_scan = marker in SEQUENTIAL_MARKERS
        elif marker == SCAN_MARKER:
            if one_scan and data[at + 2 : at + 3] == num_components:
                return  # no decoder looks for another one
            num_scans += 1
            if num_scans * num_pixels > _MAX_SCANNED_PIXELS:
                raise PhotoUnreadable(
                    f"more than {num_scans - 1} scans of {num_pixels / 1e6:.1f} MP; save it again as plain JPEG"
                )


def _read_webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Return width and height stated by the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
