"""The one door through which a photo's bytes become pixels, in training and in serving alike."""

import hashlib
import io
import json
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pi_heif
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from vision.errors import (
    PhotoDecoderCrashed,
    PhotoEmpty,
    PhotoError,
    PhotoNotAnImage,
    PhotoTooManyBytes,
    PhotoTooManyPixels,
    PhotoTooSmall,
    PhotoTruncated,
    PhotoUnreadable,
)

__all__ = [
    "ALLOWED_FORMATS",
    "PhotoLimits",
    "Preprocessing",
    "check_bytes",
    "decode_photo",
    "prepare_photo",
    "resize_photo",
    "size_px",
]

Photo = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, sRGB, upright."""

_DECODER_REVISION = 2
"""Raised by hand whenever the same bytes would give other pixels; part of the fingerprint.

2: turned although the rest of its EXIF block is odd; transparency and profile of 16-bit greys; the grey profile of
greys with alpha; white around a GIF frame that is smaller than its screen.
"""

_MAX_ICC_PROFILE_BYTES = 1 << 20
_CACHED_TRANSFORMS = 32
"""Phones, cameras and editors embed a handful of profiles. Building the transform of one takes 0.4 ms (grey) to 20 ms
(inks), where a photo of 1.5 megapixels takes 3; measured on one core with tests/support/photo_files.py."""

_MAX_JPEG_SEGMENTS = 1000
"""Pillow reads them one by one and joins those of EXIF, in time that grows with their square. Phones write some dozens;
16 MiB of the largest are 256."""
_MAX_SCANNED_PIXELS = 1_000_000_000
"""Scans of a JPEG times its pixels: twice the ten scans of a usual encoder at the pixel limit, decoded in 0.4 s. A scan
of ten bytes costs up to 22 ms at 50 megapixels, so that 16 MiB of them would take half a day; measured on one core."""
_MAX_PNG_PROFILES = 16
"""The standard allows one. Pillow inflates each of them, up to 1 MiB, before it keeps the last."""
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""Of a JPEG's segments, those that have a length, and of its end: all but restarts and stuffed bytes."""
_END_MARKER, _SCAN_MARKER = 0xD9, 0xDA
_PROGRESSIVE_MARKERS = {0xC2, 0xC6, 0xCA, 0xCE}
_FRAME_MARKERS = {0xC0, 0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF} | _PROGRESSIVE_MARKERS
"""Start of frame; ITU-T T.81, table B.1."""

_PIXELS_AT_ONCE = 1 << 20
"""Composited on white at a time: a large photo need not lie in memory four times."""

_ORIENTATION = 0x0112  # TIFF 6.0, tag 274
_INTEGERS = {3: "H2x", 4: "I"}
"""SHORT and LONG, as they stand in the four bytes of a TIFF value."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Only the photo is wanted: thumbnails, depth maps and gain maps would be decoded with it. One thread, for the other
# cores have photos of their own.
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# What Pillow thinks of a photo's metadata concerns nobody here, and would fill a server's log. Set once and for all:
# `warnings.catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class _JpegFile(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nothing: it would read the whole EXIF block, whose 65,535 entries may each claim all of its bytes."""


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
"""As Pillow names them."""


@dataclass(frozen=True, kw_only=True)
class PhotoLimits:
    """What a photo may cost, checked on its header before anything is allocated."""

    max_bytes: int = 16 << 20
    max_pixels: int = 50_000_000
    """Width times height as stored; imgproxy ships the same default."""
    min_side_px: int = 8


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an upright photo becomes the model's input; stored in the bundle, hashed in certificates."""

    input_px: int
    """Side of the square uint8 input."""
    fit: Literal["squash"] = "squash"
    """The whole photo is kept and its aspect is not: a seller's product often touches the edge."""
    interpolation: Literal["bicubic"] = "bicubic"
    decoder_revision: int = _DECODER_REVISION

    def __post_init__(self) -> None:
        if not 32 <= self.input_px <= 1024:
            raise ValueError(f"input_px {self.input_px} is outside 32..1024")
        if self.decoder_revision != _DECODER_REVISION:
            raise ValueError(
                f"decoder_revision {self.decoder_revision} is not {_DECODER_REVISION}, the one this version "
                "decodes with; export the model again with this version"
            )

    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever the pixels that the model sees would change."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def prepare_photo(data: bytes, preprocessing: Preprocessing, limits: PhotoLimits | None = None) -> Photo:
    """The model's input for one encoded photo, (input_px, input_px, 3) uint8.

    Raises:
        PhotoError: one of its subclasses, as `decode_photo` says.
    """
    side = preprocessing.input_px
    # The same pixels as resize_photo(decode_photo(…)), without the whole photo passing through NumPy in between.
    return np.array(_resized(_decoded(data, at_least_px=side, limits=limits or PhotoLimits()), side))


def resize_photo(photo: Photo, preprocessing: Preprocessing) -> Photo:
    side = preprocessing.input_px
    if photo.shape == (side, side, 3):
        return photo
    return np.array(_resized(Image.fromarray(photo), side))


def decode_photo(data: bytes, *, at_least_px: int, limits: PhotoLimits | None = None) -> Photo:
    """An encoded photo as (H, W, 3) uint8, sRGB, upright, transparent parts on white, first frame only.

    JPEG is scaled down while decoding (1/2, 1/4, 1/8 in the DCT domain) as far as both sides stay at
    least `at_least_px`; other formats keep their size.

    Raises:
        PhotoEmpty: no bytes.
        PhotoTooManyBytes, PhotoTooManyPixels, PhotoTooSmall: outside `limits`.
        PhotoNotAnImage: not one of `ALLOWED_FORMATS`.
        PhotoTruncated: it ends before its last pixel.
        PhotoUnreadable: the decoder refused it for another reason, or it would take the decoder very long.
        PhotoDecoderCrashed: the memory that this process may have does not suffice.
    """
    return np.array(_decoded(data, at_least_px=at_least_px, limits=limits or PhotoLimits()))


def check_bytes(data: bytes | memoryview, limits: PhotoLimits) -> None:
    """What can be said of an encoded photo before it is looked at.

    Raises:
        PhotoEmpty, PhotoTooManyBytes: as `decode_photo` says.
    """
    if not len(data):
        raise PhotoEmpty("0 bytes; send the photo's encoded bytes")
    if len(data) > limits.max_bytes:
        raise PhotoTooManyBytes(
            f"{len(data)} bytes exceed the limit of {limits.max_bytes}; send a smaller or more compressed photo"
        )


def size_px(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded photo as stored, from its header.

    Raises:
        PhotoNotAnImage, PhotoTooManyPixels, PhotoTruncated, PhotoUnreadable: as `decode_photo` says.
    """
    with _open(data, _format(data), PhotoLimits()) as opened:
        return opened.size


def _resized(photo: Image.Image, side: int) -> Image.Image:
    return photo if photo.size == (side, side) else photo.resize((side, side), Image.Resampling.BICUBIC)


def _decoded(data: bytes, *, at_least_px: int, limits: PhotoLimits) -> Image.Image:
    check_bytes(data, limits)
    format_ = _format(data)
    with _open(data, format_, limits) as opened:
        if min(opened.size) < limits.min_side_px:
            raise PhotoTooSmall(f"{opened.width}x{opened.height}: each side must be at least {limits.min_side_px} px")
        try:
            if format_ == "JPEG":
                opened.draft(opened.mode, (at_least_px, at_least_px))
            frame_box = opened.tile[0].extents if format_ == "GIF" else None
            opened.load()
            photo = _to_srgb(_upright(opened, format_))
            return _on_white_screen(photo, frame_box) if frame_box else photo
        # A decoder meets hostile bytes here: whatever it raises is the photo's fault, never the service's.
        except Exception as error:
            raise _as_photo_error(error, data, format_, "the file ends early") from error


def _open(data: bytes, format_: str, limits: PhotoLimits) -> ImageFile.ImageFile:
    """The photo with its header read, at most `max_pixels` large."""
    _check_cost(data, format_, limits)
    try:
        opened = _READERS[format_](io.BytesIO(data))
    except Exception as error:
        ending = f"it begins like {format_} but its header is cut short"
        raise _as_photo_error(error, data, format_, ending) from error
    _check_pixels(*opened.size, limits)
    return opened


def _as_photo_error(error: Exception, data: bytes, format_: str, ending: str) -> PhotoError:
    if isinstance(error, MemoryError):
        return PhotoDecoderCrashed("decoding it takes more memory than there is; send a smaller photo")
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, when a GIF's frame outgrows its screen
        return PhotoTooManyPixels(f"{error}; send a smaller photo")
    if _ends_early(data, format_, error):
        return PhotoTruncated(f"{ending} ({error}); upload it again")
    return PhotoUnreadable(f"the decoder refused it: {error!r}; save it again as JPEG")


def _format(data: bytes) -> str:
    """Which of `ALLOWED_FORMATS` its first bytes show; what its name says counts for nothing."""
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


def _check_pixels(width: int, height: int, limits: PhotoLimits) -> None:
    if width * height > limits.max_pixels:
        raise PhotoTooManyPixels(
            f"{width}x{height} = {width * height / 1e6:.1f} MP exceed the limit of {limits.max_pixels / 1e6:g} MP; "
            "send a smaller photo"
        )


def _check_cost(data: bytes, format_: str, limits: PhotoLimits) -> None:
    """Refuse what costs time or memory as soon as its header is read, or far more than its pixels let expect."""
    if format_ == "JPEG":
        _check_scans(data, limits)
    elif format_ == "PNG" and data.count(b"iCCP") > _MAX_PNG_PROFILES:
        raise PhotoUnreadable("it has several colour profiles; save it again")
    elif format_ == "WEBP" and (canvas := _webp_canvas(data)):  # allocated four times over by Pillow when it opens it
        _check_pixels(*canvas, limits)


def _check_scans(data: bytes, limits: PhotoLimits) -> None:
    num_scans = num_pixels = 0
    num_components, one_scan = b"", False
    for number, (marker, at) in enumerate(_jpeg_segments(data)):
        if number == _MAX_JPEG_SEGMENTS:
            raise PhotoUnreadable(f"it has more than {_MAX_JPEG_SEGMENTS} segments; save it again as JPEG")
        if marker in _FRAME_MARKERS:
            height, width = struct.unpack(">HH", data[at + 3 : at + 7].ljust(4, b"\0"))
            _check_pixels(width, height, limits)
            num_pixels, num_components = width * height, data[at + 7 : at + 8]
            one_scan = marker not in _PROGRESSIVE_MARKERS
        elif marker == _SCAN_MARKER:
            if one_scan and data[at + 2 : at + 3] == num_components:
                return  # no decoder looks for another one
            num_scans += 1
            if num_scans * num_pixels > _MAX_SCANNED_PIXELS:
                raise PhotoUnreadable(
                    f"more than {num_scans - 1} scans of {num_pixels / 1e6:.1f} MP; save it again as plain JPEG"
                )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker of each segment, and where its length stands."""
    at = 2
    while (found := _MARKER.search(data, at)) and found[0][1] != _END_MARKER:
        yield found[0][1], found.end()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height that its first chunk states; RFC 9649, sections 2.5 to 2.7."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _ends_early(data: bytes, format_: str, error: Exception) -> bool:
    """Whether it could not be read because its last bytes are missing."""
    if format_ == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if format_ in ("AVIF", "HEIF"):
        return _boxes_end_early(data)
    # Pillow wraps what a header without an end raises in a SyntaxError. Of the pixels it has no exception type for
    # this: ImageFile.load and the plugins raise OSError with these words.
    if isinstance(error.__cause__ or error, EOFError | IndexError | struct.error):
        return True
    if format_ == "JPEG" and all(marker != _SCAN_MARKER for marker, _ in _jpeg_segments(data)):
        return True
    return any(word in str(error) for word in ("truncated", "broken data stream", "unexpected end", "Truncated"))


def _boxes_end_early(data: bytes) -> bool:
    """ISO/IEC 14496-12, section 4.2."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        if size < 8:  # 0: it goes on to the end
            return False
        at += size
    return at > len(data)


def _upright(image: Image.Image, format_: str) -> Image.Image:
    # libheif has turned it already, by its own boxes; the tag beside them is a copy for others.
    turn = None if format_ == "HEIF" else _orientation(image.info)
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def _orientation(info: Mapping[str | tuple[int, int], Any]) -> int | None:
    """What its EXIF block says of it, else its XMP; None, as if upright, where that cannot be read, as viewers do.

    Not Pillow's reader, which reads every other tag too, nor its `exif_transpose`, which fails where one of them is
    odd.
    """
    try:
        if (turn := _exif_orientation(_exif(info))) is not None:
            return turn
    except (KeyError, ValueError, struct.error):
        return None
    xmp = info.get("xmp")
    found = re.search(rb'tiff:Orientation(="|>)([0-9])', xmp) if isinstance(xmp, bytes) else None
    return int(found[2]) if found else None


def _exif(info: Mapping[str | tuple[int, int], Any]) -> bytes:
    exif = info.get("exif")
    if isinstance(exif, bytes):
        return exif
    # ImageMagick's way to keep it in a PNG: three lines of heading, then hex digits.
    return bytes.fromhex("".join(str(info.get("Raw profile type exif", "")).split("\n")[3:]))


def _exif_orientation(exif: bytes) -> int | None:
    """The value in its first directory; TIFF 6.0, section 2."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if not tiff:
        return None
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (at,) = struct.unpack(f"{order}I", tiff[4:8])
    (num_entries,) = struct.unpack(f"{order}H", tiff[at : at + 2])
    entries = tiff[at + 2 : at + 2 + 12 * num_entries]
    orientation = None
    for tag, kind, count, value in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        if tag == _ORIENTATION and kind in _INTEGERS and 0 < count <= 2:
            orientation = struct.unpack(order + _INTEGERS[kind], value)[0]
    return orientation


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _on_white(image)
    elif image.mode == "P":
        image = image.convert("RGB")
    if isinstance(profile, bytes) and len(profile) <= _MAX_ICC_PROFILE_BYTES:
        transform = _transform(profile, image.mode)
        if transform:
            return transform.apply_in_place(image) if image.mode == "RGB" else transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(grey: Image.Image) -> Image.Image:
    # Pillow's own conversion to 8 bits clips everything above 255 to white.
    values = np.asarray(grey)
    eight = (values >> 8).astype(np.uint8)
    if (clear := grey.info.get("transparency")) is not None:
        eight[values == clear] = 255
    return Image.fromarray(eight)


def _on_white(image: Image.Image) -> Image.Image:
    """Grey where it was grey, so that its profile still fits, else RGB."""
    mode = "L" if image.mode in ("L", "LA") else "RGB"
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    photo = Image.new(mode, image.size)
    num_rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, num_rows):
        band = image.crop((0, top, image.width, min(top + num_rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        photo.paste(Image.alpha_composite(white, band).convert(mode), (0, top))
    return photo


def _on_white_screen(frame: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The first frame of a GIF, which need not cover its screen; what it leaves is transparent."""
    if box == (0, 0, *frame.size):
        return frame
    screen = Image.new("RGB", frame.size, "white")
    screen.paste(frame.crop(box), box)
    return screen


@lru_cache(_CACHED_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB; None where it is sRGB already, broken, or of other colours than the photo."""
    if mode not in ("RGB", "CMYK", "L"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        return ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
    # Ignored, as browsers do.
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
