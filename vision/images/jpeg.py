"""Decode the pixels of a JPEG strictly: damage that libjpeg only warns of is an error.

Pillow discards libjpeg's warnings and shows grey or wrong colours from the damage on; simplejpeg reports them.
"""

import io
import re

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, JpegImagePlugin

from vision.images.jpeg_segments import (
    END_MARKER,
    PROGRESSIVE_MARKERS,
    SCAN_MARKER,
    SEQUENTIAL_MARKERS,
    has_all_components,
    iterate_jpeg_segments,
)

__all__ = ["choose_jpeg_scale", "decode_jpeg"]

_SCALES = (8, 4, 2, 1)
_COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\2\0\0\1\0\1\0\0"
_JFIF_MARKER, _ADOBE_MARKER = 0xE0, 0xEE
_ADOBE_TRANSFORMS = (b"\0", b"\1", b"\2")
_TABLE_MARKERS = {0xC4, 0xCC, 0xDB, 0xDD}
"""Huffman tables, conditions of arithmetic codes, quantization tables, restart interval."""
_KEPT_MARKERS = _TABLE_MARKERS | SEQUENTIAL_MARKERS | PROGRESSIVE_MARKERS
_WHOLE_SPECTRUM = b"\0\x3f\0"
_MIN_SCAN_HEADER_BYTES = 10
_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_PREFETCHED_BYTES = 8
"""libjpeg reads up to so many bytes behind the last code, and does not count them as extraneous."""


def choose_jpeg_scale(width: int, height: int, at_least_px: int) -> int:
    """Return the divisor, 8, 4, 2 or 1, that leaves both sides at least `at_least_px`."""
    largest = min(width, height) // at_least_px
    return next((scale for scale in _SCALES if scale <= largest), 1)


def decode_jpeg(data: bytes, mode: str, size: tuple[int, int], *, at_least_px: int) -> Image.Image:
    """Decode, scaled down in the DCT domain as far as both sides stay at least `at_least_px`.

    A missing end marker is forgiven, as is what precedes the coded data or follows it and no pixel needs.

    Args:
        data: the encoded photo.
        mode: the mode in its header, L, RGB or CMYK; that of what is returned.
        size: width and height in its header.
        at_least_px: as in `decode_photo`.

    Raises:
        ValueError, OSError: the coded data is damaged, or a part of it is missing.
        MemoryError: there is too little memory.
    """
    coded = _extract_coded_data(data)
    if not has_all_components(coded):
        raise ValueError("a colour or the lightness is missing")
    scale = choose_jpeg_scale(*size, at_least_px)
    try:
        try:
            pixels = _decode_strictly(coded, mode, size, scale)
        except ValueError as error:
            padding = _PADDING.search(str(error))
            if not padding:
                raise
            pixels = _decode_strictly(_remove_padding(coded, int(padding[1]), error), mode, size, scale)
    except ValueError as error:
        if "Could not determine subsampling" in str(error):
            return _decode_with_pillow(coded, at_least_px)
        raise
    if mode == "CMYK":
        np.invert(pixels, out=pixels)  # stored as Adobe does it
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode)


def _extract_coded_data(data: bytes) -> bytes:
    """Return the segments that pixels need, and all that follows the first scan's header, with an end marker.

    libjpeg warns of the rest, such as bytes between segments or a JFIF version that it does not know. A lossless frame
    is left out: simplejpeg writes beyond its buffer when it scales one. So that libjpeg finds no other segments than
    are found here, each must be as long as it says.

    Raises:
        ValueError: a segment is cut short, or there is no scan of a frame.
    """
    kept, frame = [_START], None
    for marker, at in iterate_jpeg_segments(data):
        end = at + int.from_bytes(data[at : at + 2])
        segment = data[at - 2 : end]
        if marker == END_MARKER:
            break
        if end < at + 2 or end > len(data):
            raise ValueError("a segment is cut short")
        if marker == SCAN_MARKER and frame is not None:
            if len(segment) < _MIN_SCAN_HEADER_BYTES:
                raise ValueError("the header of a scan is cut short")
            # Some cameras state another spectrum, which a sequential frame does not have.
            header = segment[:-3] + _WHOLE_SPECTRUM if frame in SEQUENTIAL_MARKERS else segment
            return b"".join((*kept, header, memoryview(data)[end:], _END))
        if marker in SEQUENTIAL_MARKERS | PROGRESSIVE_MARKERS:
            frame = marker
        if marker in _KEPT_MARKERS or (marker == _ADOBE_MARKER and _is_adobe_segment(segment)):
            kept.append(segment)
        elif marker == _JFIF_MARKER and segment[4:9] == b"JFIF\0":
            kept.append(_JFIF)
    raise ValueError("no frame of pixels")


def _is_adobe_segment(segment: bytes) -> bool:
    return segment[4:9] == b"Adobe" and segment[15:16] in _ADOBE_TRANSFORMS


def _decode_strictly(coded: bytes, mode: str, size: tuple[int, int], scale: int) -> npt.NDArray[np.uint8]:
    width, height = size
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            coded, _COLOUR_SPACES[mode], min_width=-(-width // scale), min_height=-(-height // scale)
        )
    except ValueError as error:
        if "Insufficient memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
    return pixels


def _remove_padding(coded: bytes, num_bytes: int, warning: ValueError) -> bytes:
    """Remove the bytes of one value before the end marker with which a camera filled up a block of its card.

    Where more of that value precede them, they were decoded as pixels: the rest of a file that was never written.

    Raises:
        ValueError: they are no padding, but coded data that no pixel used. It is `warning`.
    """
    end = next(at - len(_END) for marker, at in iterate_jpeg_segments(coded) if marker == END_MARKER)
    padding = coded[end - num_bytes : end]
    before = coded[end - num_bytes - _MAX_PREFETCHED_BYTES - 1 : end - num_bytes]
    if len(set(padding)) > 1 or set(padding) == set(before):
        raise warning
    return coded[: end - num_bytes] + _END


def _decode_with_pillow(coded: bytes, at_least_px: int) -> Image.Image:
    """Decode rare samplings of colours, which TurboJPEG lacks, with the same library but without its warnings."""
    photo = JpegImagePlugin.JpegImageFile(io.BytesIO(coded))
    photo.draft(photo.mode, (at_least_px, at_least_px))
    photo.load()
    return photo
