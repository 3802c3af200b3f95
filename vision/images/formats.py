"""Which format a file is of, by its first bytes."""

from vision.errors import PhotoNotAnImage

__all__ = ["ALLOWED_FORMATS", "detect_format"]

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")
"""Accepted formats by Pillow's names: what phones and browsers upload. Each further one is attack surface."""
_MAX_BRANDS_BYTES = 4096
_REFUSED = {
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "ICO": (b"\0\0\1\0",),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG 2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
    "PSD": (b"8BPS",),
    "PDF": (b"%PDF-",),
    "SVG": (b"<svg",),
}
"""First bytes of formats that are sent by mistake or by old programs."""


def detect_format(data: bytes) -> str:
    """Return which of `ALLOWED_FORMATS` the first bytes show; the file name is not used.

    Raises:
        PhotoNotAnImage: none of them.
    """
    for name, head in {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8"}.items():
        if data.startswith(head):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        # A still is often of brand mif1, of which both formats are kinds; the compatible brands tell.
        box = data[8 : min(int.from_bytes(data[:4]), _MAX_BRANDS_BYTES)]
        brands = {box[at : at + 4] for at in range(0, len(box), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIF"
    accepted = ", ".join(ALLOWED_FORMATS)
    for name, heads in _REFUSED.items():
        if data.startswith(heads):
            raise PhotoNotAnImage(f"it is of format {name}, and {accepted} are accepted; save it as JPEG or PNG")
    raise PhotoNotAnImage(f"its first bytes {data[:8].hex()} are those of no accepted format ({accepted})")
