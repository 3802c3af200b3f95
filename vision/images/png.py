"""Read a PNG (W3C, third edition) from the chunks that its pixels need; damage elsewhere does not matter."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

from vision.images.profiles import Chromaticities, build_code_point_profile, build_gamma_profile

__all__ = ["PngFile", "load_png", "open_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER, _PALETTE, _CLEAR, _PIXELS, _END = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"
_COLOUR_CHUNKS = {b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"}
_KEPT_CHUNKS = {_PALETTE, _CLEAR, b"eXIf"} | _COLOUR_CHUNKS
_GREY, _RGB, _INDEXED, _GREY_WITH_ALPHA = 0, 2, 3, 4
_MAX_CHUNKS = 100_000
"""All kinds together, walked in 50 ms. 16 MiB of empty ones would take a second."""
_MAX_PROFILE_BYTES = 1 << 20
_MAX_GAMMA = 10


class PngFile(PngImagePlugin.PngImageFile):
    """A PNG of which only the chunks are left that its pixels need."""

    def __init__(self, data: bytes, clear_colour: tuple[int, ...] | None) -> None:
        super().__init__(io.BytesIO(data))
        self.data = data
        self.clear_colour = clear_colour
        """Red, green and blue of 16 bits, of which Pillow keeps the upper half; None if that tells enough."""


def open_png(data: bytes) -> PngFile:
    """Open a PNG, for `load_png`; its `info` has the profile, the orientation and the clear colour that apply.

    Raises:
        ValueError: its header or palette is damaged, or there are too many chunks.
        SyntaxError: the header is none of a PNG.
    """
    header, chunks, pixels = _read_chunks(data)
    depth, colour = header[8], header[9]
    if colour == _INDEXED and _PALETTE not in chunks:
        raise ValueError("its palette is damaged or missing")
    kept = [_write_chunk(name, chunks[name]) for name in (_PALETTE, _CLEAR) if colour == _INDEXED and name in chunks]
    length = struct.pack(">I", sum(map(len, pixels)))
    parts: tuple[bytes | memoryview, ...]
    parts = (_SIGNATURE, _write_chunk(_HEADER, header), *kept, length, _PIXELS, *pixels, bytes(4), _write_chunk(_END))
    clear = _parse_clear_colour(chunks.get(_CLEAR, b""), depth, colour)
    is_halved = colour == _RGB and depth == 16
    opened = PngFile(b"".join(parts), clear if is_halved else None)
    if clear and not is_halved:
        opened.info["transparency"] = clear[0] if colour == _GREY else clear
    if profile := _find_profile(chunks, is_grey=colour in (_GREY, _GREY_WITH_ALPHA)):
        opened.info["icc_profile"] = profile
    if b"eXIf" in chunks:
        opened.info["exif"] = chunks[b"eXIf"]
    return opened


def load_png(opened: PngFile) -> Image.Image:
    """Decode what `open_png` opened.

    Raises:
        OSError: the pixels are damaged, or a part of them is missing.
    """
    opened.load()
    if not opened.clear_colour:
        return opened
    with PngImagePlugin.PngImageFile(io.BytesIO(opened.data)) as lower:
        # Unpacked as if their bytes were in the other order, samples give their lower half.
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        is_clear = (np.asarray(lower) == [sample & 0xFF for sample in opened.clear_colour]).all(axis=-1)
    is_clear &= (np.asarray(opened) == [sample >> 8 for sample in opened.clear_colour]).all(axis=-1)
    opened.putalpha(Image.fromarray(np.where(is_clear, np.uint8(0), np.uint8(255))))
    return opened


def _read_chunks(data: bytes) -> tuple[bytes, dict[bytes, bytes], list[memoryview]]:
    """Return the header, the first undamaged chunk of each kind in `_KEPT_CHUNKS`, and the compressed pixels."""
    iterator = _iterate_chunks(data)
    name, header, is_intact = next(iterator, (b"", b"", False))
    if name != _HEADER or len(header) != 13 or not is_intact:
        raise ValueError("its header is damaged")
    chunks: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    for name, body, is_intact in iterator:
        if name == _PIXELS:
            pixels.append(body)
        elif name in _KEPT_CHUNKS and is_intact and not (name in _COLOUR_CHUNKS and pixels):
            chunks.setdefault(name, bytes(body))
    return bytes(header), chunks, pixels


def _iterate_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield the name and the body of each chunk, and whether it is one to keep whose checksum is right."""
    view, at = memoryview(data), len(_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        name = data[at + 4 : at + 8]
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if len(name) < 4 or name == _END:
            return
        is_known = name in _KEPT_CHUNKS or name == _HEADER
        is_intact = is_known and zlib.crc32(view[at + 4 : end]).to_bytes(4) == data[end : end + 4]
        yield name, view[at + 8 : end], is_intact
        at = end + 4
    raise ValueError(f"it has more than {_MAX_CHUNKS} chunks")


def _write_chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4)


def _parse_clear_colour(body: bytes, depth: int, colour: int) -> tuple[int, ...] | None:
    """Return the samples that are transparent as Pillow decodes them, or as stored if they have 16 bits."""
    if len(body) != {_GREY: 2, _RGB: 6}.get(colour):
        return None
    samples = struct.unpack(f">{len(body) // 2}H", body)
    largest = (1 << depth) - 1
    if max(samples) > largest:
        return None
    return samples if depth == 16 else tuple(sample * 255 // largest for sample in samples)


def _find_profile(chunks: dict[bytes, bytes], *, is_grey: bool) -> bytes | None:
    """Return the profile of the chunk that has precedence (section 4.3)."""
    profile = _parse_code_points(chunks.get(b"cICP", b""), is_grey=is_grey)
    if profile is None and b"iCCP" in chunks:
        profile = _inflate_profile(chunks[b"iCCP"])
    if profile or b"sRGB" in chunks:
        return profile
    gamma = _parse_gamma(chunks.get(b"gAMA", b""))
    chromaticities = _parse_chromaticities(chunks.get(b"cHRM", b""))
    if gamma is None and chromaticities is None:
        return None
    return build_gamma_profile(gamma, chromaticities, is_grey=is_grey)


def _parse_code_points(body: bytes, *, is_grey: bool) -> bytes | None:
    """As browsers do, of full-range RGB only."""
    if len(body) != 4 or body[2:] != b"\0\1":
        return None
    return build_code_point_profile(body[0], body[1], is_grey=is_grey)


def _inflate_profile(body: bytes) -> bytes | None:
    """Return the profile behind its name and compression method, if it is whole and not too large."""
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(body.partition(b"\0")[2][1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflater.eof else None


def _parse_gamma(body: bytes) -> float | None:
    """Return the power of code values that is light; None if it is not stated, or impossible."""
    if len(body) != 4 or not (stored := int.from_bytes(body)):
        return None
    gamma = 100_000 / stored
    return gamma if 1 / _MAX_GAMMA <= gamma <= _MAX_GAMMA else None


def _parse_chromaticities(body: bytes) -> Chromaticities | None:
    if len(body) != 32:
        return None
    white, red, green, blue = struct.iter_unpack(">ii", body)
    return tuple((x / 100_000, y / 100_000) for x, y in (white, red, green, blue))  # type: ignore[return-value]
