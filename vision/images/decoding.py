"""Decode a photo's bytes to pixels: the one decoder that training and serving share."""

import io
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
    WebPImagePlugin,
)

from vision.errors import (
    PhotoDecoderCrashed,
    PhotoError,
    PhotoTooManyPixels,
    PhotoTruncated,
    PhotoUnreadable,
)
from vision.images.colour import convert_to_srgb, paste_on_white_screen
from vision.images.formats import detect_format
from vision.images.heif import find_code_point_profile
from vision.images.jpeg import decode_jpeg
from vision.images.limits import PhotoLimits, check_bytes, check_cost, check_pixels, check_short_side
from vision.images.orientation import turn_upright
from vision.images.png import PngFile, load_png, open_png
from vision.images.preprocessing import Preprocessing
from vision.images.truncation import is_truncated

__all__ = ["Photo", "decode_photo", "prepare_photo", "read_size_px"]

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


# By their own classes, not by Image.open, which swallows what they say of a broken header, parses the directory of
# phones' MPO files (a JPEG with more behind it), and counts pixels by a limit of its own.
_READERS: dict[str, Callable[[bytes], ImageFile.ImageFile]] = {
    "JPEG": lambda data: _JpegFile(io.BytesIO(data)),
    "PNG": open_png,
    "WEBP": lambda data: WebPImagePlugin.WebPImageFile(io.BytesIO(data)),
    "GIF": lambda data: GifImagePlugin.GifImageFile(io.BytesIO(data)),
    "AVIF": lambda data: AvifImagePlugin.AvifImageFile(io.BytesIO(data)),
    "HEIF": lambda data: pi_heif.HeifImageFile(io.BytesIO(data)),
}


def prepare_photo(data: bytes, preprocessing: Preprocessing, limits: PhotoLimits | None = None) -> Photo:
    """Return the model's input for one encoded photo, (input_px, input_px, 3) uint8.

    Raises:
        PhotoError: one of its subclasses, as `decode_photo` says.
    """
    # More pixels than the input before resizing change 2.5 % of the answers, but not the accuracy, and take 1.5 times
    # as long: `benchmarks.jpeg_scale`.
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
        PhotoUnreadable: its pixels are damaged, the decoder refused it for another reason, or decoding would take very
            long.
        PhotoDecoderCrashed: decoding needs more memory than this process may use.
    """
    return np.array(_decode(data, at_least_px=at_least_px, limits=limits or PhotoLimits()))


def read_size_px(data: bytes) -> tuple[int, int]:
    """Return width and height of an encoded photo as stored, from its header.

    Raises:
        PhotoNotAnImage, PhotoTooManyPixels, PhotoTruncated, PhotoUnreadable: as `decode_photo` says.
    """
    with _open(data, detect_format(data), PhotoLimits()) as opened:
        return opened.size


def _resize(photo: Image.Image, side: int) -> Image.Image:
    return photo if photo.size == (side, side) else photo.resize((side, side), Image.Resampling.BICUBIC)


def _decode(data: bytes, *, at_least_px: int, limits: PhotoLimits) -> Image.Image:
    check_bytes(data, limits)
    format_ = detect_format(data)
    with _open(data, format_, limits) as opened:
        check_short_side(*opened.size, limits)
        try:
            frame_box = opened.tile[0].extents if format_ == "GIF" else None
            stored = _load(opened, data, format_, at_least_px)
            photo = convert_to_srgb(turn_upright(stored, format_))
            return paste_on_white_screen(photo, frame_box) if frame_box else photo
        # A decoder meets hostile bytes here: whatever it raises is the photo's fault, never the service's.
        except Exception as error:
            raise _to_photo_error(error, data, format_, "the file ends early") from error


def _load(opened: ImageFile.ImageFile, data: bytes, format_: str, at_least_px: int) -> Image.Image:
    """Return the photo as stored; its `info` has its profile and orientation."""
    if format_ in ("AVIF", "HEIF") and "icc_profile" not in opened.info:
        opened.info["icc_profile"] = find_code_point_profile(opened, data, format_)
    if format_ == "JPEG":
        stored = decode_jpeg(data, opened.mode, opened.size, at_least_px=at_least_px)
        stored.info = opened.info
        return stored
    if isinstance(opened, PngFile):
        return load_png(opened)
    opened.load()
    return opened


def _open(data: bytes, format_: str, limits: PhotoLimits) -> ImageFile.ImageFile:
    """Open the photo and read its header; at most `max_pixels` large."""
    check_cost(data, format_, limits)
    try:
        opened = _READERS[format_](data)
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
    if is_truncated(data, format_):
        return PhotoTruncated(f"{ending} ({error}); upload it again")
    return PhotoUnreadable(f"it is damaged, or of an unusual kind ({error!r}); save it again as JPEG")
