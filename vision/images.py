"""The one door through which a photo's bytes become pixels, in training and in serving alike."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from vision.errors import (
    PhotoEmpty,
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
    "decode_photo",
    "prepare_photo",
    "resize_photo",
    "size_px",
]

Photo = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, sRGB, upright."""

# Few formats on purpose: each further Pillow plugin is attack surface. JPEG also opens phones' MPO files;
# naming "MPO" itself makes Pillow raise KeyError.
ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")

_DECODER_REVISION = 1
"""Raised by hand whenever the same bytes would give other pixels; part of the fingerprint."""

_MAX_ICC_PROFILE_BYTES = 1 << 20


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
    photo = decode_photo(data, at_least_px=preprocessing.input_px, limits=limits)
    return resize_photo(photo, preprocessing)


def resize_photo(photo: Photo, preprocessing: Preprocessing) -> Photo:
    side = preprocessing.input_px
    if photo.shape == (side, side, 3):
        return photo
    resized = Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC)
    return np.array(resized)


def decode_photo(data: bytes, *, at_least_px: int, limits: PhotoLimits | None = None) -> Photo:
    """An encoded photo as (H, W, 3) uint8, sRGB, upright, transparent parts on white, first frame only.

    JPEG is scaled down while decoding (1/2, 1/4, 1/8 in the DCT domain) as far as both sides stay at
    least `at_least_px`; other formats keep their size.

    Raises:
        PhotoEmpty: no bytes.
        PhotoTooManyBytes, PhotoTooManyPixels, PhotoTooSmall: outside `limits`.
        PhotoNotAnImage: not one of `ALLOWED_FORMATS`.
        PhotoTruncated: it ends before its last pixel.
        PhotoUnreadable: the decoder refused it for another reason.
    """
    limits = limits or PhotoLimits()
    if not data:
        raise PhotoEmpty("0 bytes; send the photo's encoded bytes")
    if len(data) > limits.max_bytes:
        raise PhotoTooManyBytes(
            f"{len(data)} bytes exceed the limit of {limits.max_bytes}; send a smaller or more compressed photo"
        )
    with _open(data) as opened:
        _check_size(opened.size, limits)
        if opened.format in ("JPEG", "MPO"):
            opened.draft(opened.mode, (at_least_px, at_least_px))
        try:
            opened.load()
            image = _upright(opened)
            return np.array(_to_srgb(image))
        except Image.DecompressionBombError as error:
            raise PhotoTooManyPixels(f"{error}; send a smaller photo") from error
        except OSError as error:
            if _is_truncation(error):
                raise PhotoTruncated(f"the file ends early ({error}); upload it again") from error
            raise PhotoUnreadable(f"the decoder refused it: {error}; save it again as JPEG") from error
        # A decoder meets hostile bytes here: whatever it raises is the photo's fault, never the service's.
        except Exception as error:
            raise PhotoUnreadable(f"the decoder refused it: {error!r}; save it again as JPEG") from error


def size_px(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded photo as stored, from its header.

    Raises:
        PhotoNotAnImage, PhotoTooManyPixels, PhotoTruncated, PhotoUnreadable: as `decode_photo` says.
    """
    with _open(data) as opened:
        return opened.size


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoTooManyPixels(f"{error}; send a smaller photo") from error
    except UnidentifiedImageError:
        known = _sniff(data)
        if known:
            raise PhotoTruncated(f"it begins like {known} but its header is cut short; upload it again") from None
        raise PhotoNotAnImage(
            f"its first bytes {data[:8].hex()} are those of no accepted format ({', '.join(ALLOWED_FORMATS)})"
        ) from None
    except Exception as error:
        raise PhotoUnreadable(f"the decoder refused its header: {error!r}; save it again as JPEG") from error


def _check_size(size: tuple[int, int], limits: PhotoLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise PhotoTooManyPixels(
            f"{width}x{height} = {width * height / 1e6:.1f} MP exceed the limit of {limits.max_pixels / 1e6:g} MP; "
            "send a smaller photo"
        )
    if min(width, height) < limits.min_side_px:
        raise PhotoTooSmall(f"{width}x{height}: each side must be at least {limits.min_side_px} px")


def _sniff(data: bytes) -> str | None:
    heads = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8"}
    for name, head in heads.items():
        if data.startswith(head):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "AVIF"
    return None


def _is_truncation(error: OSError) -> bool:
    # Pillow has no exception type for this; ImageFile.load and the plugins raise OSError with these words.
    return any(word in str(error) for word in ("truncated", "broken data stream", "unexpected end", "Truncated"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # Broken EXIF blocks raise many types (struct.error, KeyError, SyntaxError, …); a photo whose tag
    # cannot be read is taken as upright, as viewers do.
    except Exception:
        return image


def _to_srgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        # Pillow's own conversion to 8 bits clips everything above 255 to white.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        profile = image.info.get("icc_profile")
        image = Image.alpha_composite(white, image).convert("RGB")
        if profile:
            image.info["icc_profile"] = profile
    return _apply_profile(image)


def _apply_profile(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile and len(profile) <= _MAX_ICC_PROFILE_BYTES and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                if converted is not None:
                    return converted
        # A broken or mismatched profile is ignored, as browsers do.
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")
