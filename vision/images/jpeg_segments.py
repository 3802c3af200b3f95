"""The segments of a JPEG file (ITU-T T.81, annex B), without a look into its coded data."""

import re
from collections.abc import Iterator

__all__ = [
    "END_MARKER",
    "FRAME_MARKERS",
    "PROGRESSIVE_MARKERS",
    "SCAN_MARKER",
    "SEQUENTIAL_MARKERS",
    "has_all_components",
    "has_end_marker",
    "is_baseline",
    "iterate_jpeg_segments",
]

END_MARKER, SCAN_MARKER = 0xD9, 0xDA
BASELINE_MARKER = 0xC0
SEQUENTIAL_MARKERS = {BASELINE_MARKER, 0xC1, 0xC9}
"""Start of a sequential frame, by Huffman or arithmetic codes; table B.1."""
PROGRESSIVE_MARKERS = {0xC2, 0xCA}
FRAME_MARKERS = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF} | SEQUENTIAL_MARKERS | PROGRESSIVE_MARKERS
"""All of them, lossless and hierarchical ones too."""
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""Marker of a segment that has a length, or of the end: all but restarts and stuffed bytes."""


def iterate_jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment and the offset of its length; last the end marker, if there is one."""
    at = 2
    while found := _MARKER.search(data, at):
        marker = found[0][1]
        yield marker, found.end()
        if marker == END_MARKER:
            return
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])


def is_baseline(data: bytes) -> bool:
    """Return whether the first frame is sequential, by Huffman codes, of 8 bits: baseline in table B.1."""
    return next((found for found, _ in iterate_jpeg_segments(data) if found in FRAME_MARKERS), None) == BASELINE_MARKER


def has_end_marker(data: bytes) -> bool:
    return any(marker == END_MARKER for marker, _ in iterate_jpeg_segments(data))


def has_all_components(data: bytes) -> bool:
    """Return whether each component of the frame has a scan that begins with its mean, the coefficient 0."""
    wanted, found = set(), set()
    for marker, at in iterate_jpeg_segments(data):
        if marker in FRAME_MARKERS:
            num_components = int.from_bytes(data[at + 7 : at + 8])
            wanted = set(data[at + 8 : at + 8 + 3 * num_components : 3])
        elif marker == SCAN_MARKER:
            num_components = int.from_bytes(data[at + 2 : at + 3])
            if data[at + 3 + 2 * num_components : at + 4 + 2 * num_components] == b"\0":
                found |= set(data[at + 3 : at + 3 + 2 * num_components : 2])
            if found >= wanted:
                return True
    return False
