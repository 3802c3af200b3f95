"""Decode a photo's bytes to pixels: the one decoder that training and serving share."""

import io
import struct
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pi_heif
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from vision.errors import (
    PhotoDecoderCrashed,
    PhotoError,
    PhotoNotAnImage,
    PhotoTooManyPixels,
    PhotoTooSmall,
    PhotoTruncated,
    PhotoUnreadable,
)
from vision.images.colour import convert_to_srgb, paste_on_white_screen
from vision.images.limits import PhotoLimits, check_bytes, check_cost, check_pixels, has_scan
from vision.images.orientation import turn_upright
from vision.images.preprocessing import Preprocessing

__all__ = ["ALLOWED_FORMATS", "Photo", "decode_photo", "prepare_photo", "read_size_px"]

Photo = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, sRGB, upright."""

# Decode the photo only, without thumbnails, depth maps and gain maps, and on one thread: other cores decode other
# photos.
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Pillow's warnings about metadata would fill a server's log. Set once for the process:
# `warnings.catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class _JpegFile(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing: Pillow would read the whole EXIF block, whose 65,535 entries may each claim all of its bytes."""


# Few formats on purpose: each further one is attack surface. By their own classes, not by Image.open, which swallows
# what they say of a broken header, parses the directory of phones' MPO files (a JPEG with more behind it), and counts
# pixels by a limit of its own.
_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": _JpegFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "HEIF": pi_heif.HeifImageFile,
}
ALLOWED_FORMATS = tuple(_READERS)
"""Accepted formats by Pillow's names."""


def prepare_photo(data: bytes, preprocessing: Preprocessing, limits: PhotoLimits | None = None) -> Photo:
    """Return the model's input for one encoded photo, (input_px, input_px, 3) uint8.

    Raises:
        PhotoError: one of its subclasses, as `decode_photo` says.
    """
    side = preprocessing.input_px
    return np.array(_resize(_decode(data, at_least_px=side, limits=limits or PhotoLimits()), side))


def decode_photo(data: bytes, *, at_least_px: int, limits: PhotoLimits | None = None) -> Photo:
    """Decode to (H, W, 3) uint8, sRGB, upright, transparent parts on white, first frame only.

    JPEG is scaled down while decoding (1/2, 1/4, 1/8 in the DCT domain) as far as both sides stay at
    least `at_least_px`; other formats keep their size.

    Raises:
        PhotoEmpty: no bytes.
        PhotoTooManyBytes, PhotoTooManyPixels, PhotoTooSmall: outside `limits`.
        PhotoNotAnImage: not one of `ALLOWED_FORMATS`.
        PhotoTruncated: the file ends before the last pixel.
        PhotoUnreadable: the decoder refused it for another reason, or decoding would take very long.
        PhotoDecoderCrashed: decoding needs more memory than this process may use.
    """
    return np.array(_decode(data, at_least_px=at_least_px, limits=limits or PhotoLimits()))


def read_size_px(data: bytes) -> tuple[int, int]:
    """Return width and height of an encoded photo as stored, from its header.

    Raises:
        PhotoNotAnImage, PhotoTooManyPixels, PhotoTruncated, PhotoUnreadable: as `decode_photo` says.
    """
    with _open(data, _detect_format(data), PhotoLimits()) as opened:
        return opened.size


def _resize(photo: Image.Image, side: int) -> Image.Image:
    return photo if photo.size == (side, side) else photo.resize((side, side), Image.Resampling.BICUBIC)


def _decode(data: bytes, *, at_least_px: int, limits: PhotoLimits) -> Image.Image:
    check_bytes(data, limits)
    format_ = _detect_format(data)
    with _open(data, format_, limits) as opened:
        if min(opened.size) < limits.min_side_px:
            raise PhotoTooSmall(f"{opened.width}x{opened.height}: each side must be at least {limits.min_side_px} px")
        try:
            if format_ == "JPEG":
                opened.draft(opened.mode, (at_least_px, at_least_px))
            frame_box = opened.tile[0].extents if format_ == "GIF" else None
            opened.load()
            photo = convert_to_srgb(turn_upright(opened, format_))
            return paste_on_white_screen(photo, frame_box) if frame_box else photo
        # A decoder meets hostile bytes here: whatever it raises is the photo's fault, never the service's.
        except Exception as error:
            raise _to_photo_error(error, data, format_, "the file ends early") from error


def _open(data: bytes, format_: str, limits: PhotoLimits) -> ImageFile.ImageFile:
    """Open the photo and read its header; at most `max_pixels` large."""
    check_cost(data, format_, limits)
    try:
        opened = _READERS[format_](io.BytesIO(data))
    except Exception as error:
        ending = f"it begins like {format_} but its header is cut short"
        raise _to_photo_error(error, data, format_, ending) from error
    check_pixels(*opened.size, limits)
    return opened


def _to_photo_error(error: Exception, data: bytes, format_: str, ending: str) -> PhotoError:
    if isinstance(error, MemoryError):
        return PhotoDecoderCrashed("decoding it takes more memory than there is; send a smaller photo")
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, when a GIF's frame outgrows its screen
        return PhotoTooManyPixels(f"{error}; send a smaller photo")
    if _is_truncated(data, format_, error):
        return PhotoTruncated(f"{ending} ({error}); upload it again")
    return PhotoUnreadable(f"the decoder refused it: {error!r}; save it again as JPEG")


def _detect_format(data: bytes) -> str:
    """Return which of `ALLOWED_FORMATS` the first bytes show; the file name is not used."""
    for name, head in {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8"}.items():
        if data.startswith(head):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        # A still is often of brand mif1, of which both formats are kinds; the compatible brands tell.
        box = data[8 : min(int.from_bytes(data[:4]), 4096)]
        brands = {box[at : at + 4] for at in range(0, len(box), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIF"
    raise PhotoNotAnImage(
        f"its first bytes {data[:8].hex()} are those of no accepted format ({', '.join(ALLOWED_FORMATS)})"
    )


def _is_truncated(data: bytes, format_: str, error: Exception) -> bool:
    """Return whether the photo is unreadable because its last bytes are missing."""
    if format_ == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if format_ in ("AVIF", "HEIF"):
        return _has_truncated_box(data)
    # Pillow wraps what a header without an end raises in a SyntaxError. Of the pixels it has no exception type for
    # this: ImageFile.load and the plugins raise OSError with these words.
    if isinstance(error.__cause__ or error, EOFError | IndexError | struct.error):
        return True
    if format_ == "JPEG" and not has_scan(data):
        return True
    return any(word in str(error) for word in ("truncated", "broken data stream", "unexpected end", "Truncated"))


def _has_truncated_box(data: bytes) -> bool:
    """Return whether a box extends beyond the end of the file (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        if size < 8:  # 0: it goes on to the end
            return False
        at += size
    return at > len(data)
