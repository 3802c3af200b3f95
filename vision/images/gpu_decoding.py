"""Decode, crop and resize plain JPEGs in batches on a device, for nodes with too few CPUs.

Used in training and, where Triton's model decodes on a GPU, in serving.
"""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, get_args

import torch
from PIL import Image
from torch.nn import functional

from vision.errors import DeviceDecoderUnavailable
from vision.images.colour import find_srgb_transform
from vision.images.jpeg import choose_jpeg_scale
from vision.images.jpeg_segments import is_baseline
from vision.images.limits import PhotoLimits, check_cost

__all__ = [
    "DECODER_LIBRARIES",
    "Box",
    "DecoderLibrary",
    "DeviceCrop",
    "DeviceDecoder",
    "find_plain_crop",
    "get_whole_box",
]

_JPEG_END_MARKER = b"\xff\xd9"
_APP1, _APP9, _FIRST_RESTART, _END_OF_IMAGE, _START_OF_SCAN = 0xE1, 0xE9, 0xD0, 0xD9, 0xDA
_ORIENTATION_TAG = 0x0112
_UPRIGHT_ORIENTATIONS = (None, 0, 1)

_LUMA_SAMPLINGS = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)}
"""4:4:4, 4:2:2, 4:4:0, 4:2:0 and 4:1:1, a subset of `nvjpegChromaSubsampling_t`."""

DecoderLibrary = Literal["torchvision", "torchcodec"]
DECODER_LIBRARIES: tuple[DecoderLibrary, ...] = get_args(DecoderLibrary)
"""torchvision's decoder is deprecated since 0.29 and has been measured; TorchCodec, from 0.17, succeeds it."""

_TORCHVISION_LOCK = threading.Lock()
"""torchvision has one decoder per process; the next call would overwrite its buffers during decoding. TorchCodec has
several."""

_OUT_OF_MEMORY = re.compile(r"out of memory|[Ff]ailed to decode batch: 5\b")
"""CUDA's words, and TorchCodec's for nvJPEG's status of a failed allocation."""

MAX_PIXELS_PER_CALL = 100_000_000
"""Pixels decoded at full size at a time, 3 bytes each: 300 MB, or two photos of the largest allowed size."""


class DeviceCrop(NamedTuple):
    """The crop of one plain JPEG that the device computes; the box is in pixels of the scaled-down photo."""

    num_bytes: int
    num_pixels: int
    """As stored."""
    scale: int
    """1, 2, 4 or 8: the divisor of both sides that `decode_photo` would use."""
    top: int
    left: int
    height: int
    width: int


class Box(NamedTuple):
    """Pixels of a photo, after it was scaled down."""

    top: int
    left: int
    height: int
    width: int


def get_whole_box(photo: Image.Image) -> Box:
    """Return the box of the whole photo."""
    return Box(0, 0, photo.height, photo.width)


def find_plain_crop(
    data: bytes,
    *,
    at_least_px: int,
    choose_box: Callable[[Image.Image], Box] = get_whole_box,
    limits: PhotoLimits | None = None,
) -> DeviceCrop | None:
    """Return the crop that the photo would get from `decode_photo`, from its header alone.

    None for whatever is not an upright sRGB or grey baseline JPEG with an end marker that any decoder reads alike,
    within the limits: such photos, and what is wrong with them, are left to `decode_photo`. Damage between the header
    and the end marker is not seen here, and a device shows it as grey or wrong colours.

    Args:
        data: the encoded photo.
        at_least_px: as in `decode_photo`.
        choose_box: chooses from the size that a photo has after it was scaled down; called at most once.
        limits: default: `PhotoLimits`.
    """
    limits = limits or PhotoLimits()
    # A device decodes a cut file to grey; `decode_photo` tells it from one that only lacks its end marker.
    if len(data) > limits.max_bytes or not data.endswith(_JPEG_END_MARKER):
        return None
    try:
        check_cost(data, "JPEG", limits)
        # A card's JPEG hardware decodes no others (nvJPEG's documentation, 1.1).
        if not is_baseline(data):
            return None
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
            if not _is_plain(opened, limits):
                return None
            width, height = opened.size
            opened.draft(opened.mode, (at_least_px, at_least_px))
            scale = choose_jpeg_scale(width, height, at_least_px)
            box = choose_box(opened)
    # Header and EXIF of hostile bytes raise many types; `decode_photo` gives each its name.
    except Exception:
        return None
    return DeviceCrop(len(data), width * height, scale, *box)


def _is_plain(opened: Image.Image, limits: PhotoLimits) -> bool:
    width, height = opened.size
    if width * height > limits.max_pixels or min(width, height) < limits.min_side_px:
        return False
    # An MPO opens here too: several JPEGs in one file.
    if opened.format != "JPEG" or opened.getexif().get(_ORIENTATION_TAG) not in _UPRIGHT_ORIENTATIONS:
        return False
    return _has_plain_components(opened) and not find_srgb_transform(opened.info.get("icc_profile"), opened.mode)


def _has_plain_components(opened: Image.Image) -> bool:
    """Return whether it is grey or declared YCbCr; decoders guess differently where a file does not say."""
    layers: list[tuple[int, int, int, int]] = opened.layer  # type: ignore[attr-defined]  # JpegImageFile's
    samplings = [layer[1:3] for layer in layers]
    if len(layers) == 1:
        return samplings == [(1, 1)]
    declares_ycbcr = "jfif" in opened.info or [layer[0] for layer in layers] == [1, 2, 3]
    return (
        declares_ycbcr
        and opened.info.get("adobe_transform", 1) == 1
        and samplings[0] in _LUMA_SAMPLINGS
        and samplings[1:] == [(1, 1), (1, 1)]
    )


class DeviceDecoder:
    """Decodes on one device; on a CPU too, where it is slow and the same."""

    def __init__(self, device: torch.device, library: DecoderLibrary | None = None) -> None:
        """Args:
            device: that decodes.
            library: that decodes; None: the first of `DECODER_LIBRARIES` that can.

        Raises:
            DeviceDecoderUnavailable: no such library can decode on this device.
            torch.OutOfMemoryError: the device has no memory left.
            torch.AcceleratorError: the device itself failed.
        """
        self._device = device
        self.decodes_with: DecoderLibrary
        # torchvision's decoder allocates on the current stream and writes on another one that does not wait for it, so
        # that it overwrites what the current stream has yet to read (pytorch/vision#9606). Photos have a stream, and
        # with it memory, of their own here, which is empty whenever the decoder begins; so decoding also goes on
        # beside the step before.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        failures: dict[DecoderLibrary, Exception] = {}
        for tried in (library,) if library else DECODER_LIBRARIES:
            self.decodes_with = tried
            try:
                self.decode_files(_create_probe_files())
                return
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            # OSError: TorchCodec lacks one of the libraries that it needs.
            except (AttributeError, ImportError, OSError, RuntimeError) as error:
                failures[tried] = error
        named = "; ".join(f"{tried}: {_get_first_line(error)}" for tried, error in failures.items())
        raise DeviceDecoderUnavailable(f"no JPEG can be decoded on {device} ({named})") from ExceptionGroup(
            "errors of the libraries", [*failures.values()]
        )

    def decode_crops(
        self, encoded: torch.Tensor, crops: Sequence[DeviceCrop | None], others_nhwc: torch.Tensor, *, photo_px: int
    ) -> tuple[torch.Tensor, list[int]]:
        """A batch on the device, for the current stream, and the indices of the photos that the decoder refused.

        Args:
            encoded: (num_bytes,) uint8 on the CPU, all files one after the other.
            crops: of each file; None where the photo is one of the others.
            others_nhwc: (M, photo_px, photo_px, 3) uint8, decoded already.
            photo_px: side of what comes back.

        Returns:
            (N, photo_px, photo_px, 3) uint8, black where refused; indices into `crops`.

        Raises:
            torch.OutOfMemoryError: the device has no memory left.
            torch.AcceleratorError: the device itself failed.
        """
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            cropped = self._crop_files(encoded, [crop for crop in crops if crop], photo_px)
            others = iter(others_nhwc.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float())
            photos = [next(cropped) if crop else next(others) for crop in crops]
            refused = [index for index, photo in enumerate(photos) if photo is None]
            black = torch.zeros(3, photo_px, photo_px, device=self._device)
            stacked = torch.stack([black if photo is None else photo for photo in photos])
            photos_nhwc = stacked.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        if self._stream:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            # Its memory is not given to the next batch before the step that reads it is done.
            photos_nhwc.record_stream(current)
        return photos_nhwc, refused

    def _crop_files(
        self, encoded: torch.Tensor, crops: Sequence[DeviceCrop], photo_px: int
    ) -> Iterator[torch.Tensor | None]:
        """(3, photo_px, photo_px) float32 each; None where refused."""
        files = encoded.split([crop.num_bytes for crop in crops])
        for begin, end in _group_crops(crops):
            decoded = self._decode_or_skip([*files[begin:end]])
            for photo, crop in zip(decoded, crops[begin:end], strict=True):
                yield None if photo is None else _crop_photo(photo, crop, photo_px)

    def _decode_or_skip(self, files: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """(3, H, W) uint8 each; None where refused. The decoder does not name the photo it refuses, so the batch is
        halved."""
        try:
            return [*self.decode_files(files)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # The libraries' own allocations fail with this type, which is that of a refused photo too.
            if _OUT_OF_MEMORY.search(str(error)):
                raise torch.OutOfMemoryError(str(error)) from error
            if self._stream:
                # A photo was refused where this passes; the device is lost where it raises.
                self._stream.synchronize()
            if len(files) == 1:
                return [None]
        half = len(files) // 2
        return self._decode_or_skip(files[:half]) + self._decode_or_skip(files[half:])

    def decode_files(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._stream:
            self._stream.synchronize()
        decode, lock = _DECODE_WITH[self.decodes_with]
        with lock:
            photos = decode(files, self._device)
            if self._stream:
                # Another thread's call must not find this one's photos half decoded.
                self._stream.synchronize()
        return photos


# Both are imported where they are used: one that is missing, or removed, is the end of this option only.
def _decode_with_torchvision(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        photos: list[torch.Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    return photos


def _decode_with_torchcodec(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    from torchcodec.decoders import decode_jpeg

    photos: list[torch.Tensor] = decode_jpeg([_hide_exif(file) for file in files], mode="RGB", device=device)
    return photos


def _hide_exif(file: torch.Tensor) -> torch.Tensor:
    """Return a file in which TorchCodec finds no orientation: it reads some that Pillow does not, and would turn a
    photo that `find_plain_crop` took for an upright one.

    Its EXIF segments, of any kind, become those of a marker without a meaning.
    """
    data = file.numpy().tobytes()
    hidden, at = file, data.find(b"\xff", 2)
    while 0 <= at < len(data) - 3 and data[at + 1] != _START_OF_SCAN:
        marker = data[at + 1]
        if marker == _APP1:
            hidden = file.clone() if hidden is file else hidden
            hidden[at + 1] = _APP9
        has_length = marker > 1 and not _FIRST_RESTART <= marker <= _END_OF_IMAGE and marker != 0xFF
        at = data.find(b"\xff", at + (2 + int.from_bytes(data[at + 2 : at + 4]) if has_length else 1))
    return hidden


_Decode = Callable[[list[torch.Tensor], torch.device], list[torch.Tensor]]
_DECODE_WITH: dict[DecoderLibrary, tuple[_Decode, AbstractContextManager[object]]] = {
    "torchvision": (_decode_with_torchvision, _TORCHVISION_LOCK),
    "torchcodec": (_decode_with_torchcodec, nullcontext()),
}


def _group_crops(crops: Sequence[DeviceCrop]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of groups that are decoded together, at most `MAX_PIXELS_PER_CALL` each."""
    begin, num_pixels = 0, 0
    for index, crop in enumerate(crops):
        if index > begin and num_pixels + crop.num_pixels > MAX_PIXELS_PER_CALL:
            yield begin, index
            begin, num_pixels = index, 0
        num_pixels += crop.num_pixels
    yield begin, len(crops)


def _crop_photo(photo: torch.Tensor, crop: DeviceCrop, photo_px: int) -> torch.Tensor:
    """(3, photo_px, photo_px) float32 of (3, H, W) uint8: what Pillow makes of it, to a few grey values.

    Means of squares stand for scaling in the DCT domain. They also bound the last step's filter, which a CUDA kernel
    holds in shared memory.
    """
    scale, top, left = crop.scale, crop.top, crop.left
    rows = slice(top * scale, (top + crop.height) * scale)
    columns = slice(left * scale, (left + crop.width) * scale)
    part = photo[None, :, rows, columns].float()
    if scale > 1:
        part = functional.avg_pool2d(part, scale, ceil_mode=True)
    # With antialias its bicubic filter is Pillow's (a = -0.5).
    return functional.interpolate(part, size=(photo_px, photo_px), mode="bicubic", antialias=True)[0]


def _create_probe_files() -> list[torch.Tensor]:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return [torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)]


def _get_first_line(error: BaseException) -> str:
    """That of an error, and of what caused it."""
    line = (str(error).splitlines() or [repr(error)])[0]
    return f"{line}: {_get_first_line(error.__cause__)}" if error.__cause__ else line
