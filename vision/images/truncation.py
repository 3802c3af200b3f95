"""Whether a photo that cannot be decoded ends early, by the structure of its file.

A file whose structure is complete is damaged, and uploading it again does not help.
"""

from vision.images.jpeg_segments import has_end_marker

__all__ = ["is_truncated"]

_GIF_EXTENSION, _GIF_FRAME = 0x21, 0x2C
_GIF_HEADER_BYTES = 13


def is_truncated(data: bytes, format_: str) -> bool:
    """Return whether the last bytes of a file of one of `ALLOWED_FORMATS` are missing."""
    if format_ == "JPEG":
        return not has_end_marker(data)
    if format_ == "PNG":
        return not _has_last_chunk(data)
    if format_ == "GIF":
        return not _has_whole_frame(data)
    if format_ == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return _has_truncated_box(data)


def _has_last_chunk(data: bytes) -> bool:
    """Return whether the chunks of a PNG go on to the last one (W3C, third edition, section 5.3)."""
    at = 8
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4])
    return False


def _has_whole_frame(data: bytes) -> bool:
    """Return whether a GIF goes on behind its first frame, or to an end without a frame (GIF89a, appendix B)."""
    if len(data) < _GIF_HEADER_BYTES:
        return False
    at = _GIF_HEADER_BYTES + _compute_palette_bytes(data[10])
    while at < len(data):
        kind = data[at]
        if kind == _GIF_EXTENSION:
            at += 2
        elif kind == _GIF_FRAME and at + 10 < len(data):
            at += 11 + _compute_palette_bytes(data[at + 9])
        else:
            return kind != _GIF_FRAME
        while at < len(data) and (num_bytes := data[at]):
            at += 1 + num_bytes
        at += 1
        if kind == _GIF_FRAME:
            return at <= len(data)
    return False


def _compute_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _has_truncated_box(data: bytes) -> bool:
    """Return whether a box extends beyond the end of the file (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        if size < 8:  # 0: it goes on to the end
            return False
        at += size
    return at != len(data)
