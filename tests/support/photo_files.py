"""Photo files put together by hand, chunk by chunk, as no encoder would write them."""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

# The scene of tests/support/helpers.py, 96x64, as one HEVC picture: made once with pillow-heif (x265) at its defaults.
# First what a decoder must know of it (the box hvcC), then the picture. The boxes around it are written below.
HEVC_CONFIGURATION = base64.b64decode(
    "AQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoDCBBZbqSSmu"
    "bgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQA=="
)
HEVC_PICTURE = base64.b64decode(
    "AAAAkCgBrxOAaGLHTkz7j7/tGNWPJqzgtQR7iWCYzpWemtpCp5NYxQH8vq5hLjePH2ZfU/hJno+U/zPLIgxIFm0E6TDCbdB4tHGbUZ3cVmhjP6zn"
    "7wjTUUSq9LJlXAuy6EiDyge1PUHMc23H9xQWjKy8dI5Rdnaip1ySF/q8CWYQzyIqhEGuOwvg4PzPJcAxquytPg=="
)
HEVC_SIZE = (96, 64)


# --- PNG (W3C, third edition) ---


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    pixels: bytes = b"",
    *,
    depth: int = 8,
    colour: int = 0,
    interlaced: bool = False,
    before: bytes = b"",
    data_chunks: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    """`pixels` are the scanlines with their filter bytes; `before` and `after` are chunks around them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    data = png_chunk(b"IDAT", zlib.compress(pixels, 1)) if data_chunks is None else data_chunks
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before + data + after + png_chunk(b"IEND", b"")


def scanlines(samples: np.ndarray) -> bytes:
    """(H, W) or (H, W, C) uint8 or uint16 as unfiltered scanlines."""
    rows = samples.astype(samples.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in rows)


def packed_scanlines(samples: np.ndarray, depth: int) -> bytes:
    """(H, W) values below 2**depth, several to a byte."""
    bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in bits)


def interlaced_scanlines(samples: np.ndarray) -> bytes:
    """In the seven passes of Adam7: first column, first row, and their steps."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return b"".join(scanlines(samples[y::rows, x::columns]) for x, y, columns, rows in passes)


def apng(frames: Sequence[bytes], width: int, height: int, *, num_frames: int | None = None) -> bytes:
    """Grey frames, each as scanlines; `num_frames` is what the header says."""
    control = png_chunk(b"acTL", struct.pack(">II", len(frames) if num_frames is None else num_frames, 0))
    chunks, sequence = [], 0
    for number, frame in enumerate(frames):
        chunks.append(png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", sequence, width, height, 0, 0, 1, 10, 0, 0)))
        body = zlib.compress(frame)
        if number == 0:
            chunks.append(png_chunk(b"IDAT", body))
            sequence += 1
        else:
            chunks.append(png_chunk(b"fdAT", struct.pack(">I", sequence + 1) + body))
            sequence += 2
    return png(width, height, before=control, data_chunks=b"".join(chunks))


# --- JPEG (ITU-T T.81) ---


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Put right behind the start marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def jpeg_by_scans(
    width: int,
    height: int,
    scans: Sequence[bytes],
    *,
    frame: int = 0xC2,
    num_components: int = 1,
    bits: int = 8,
    samplings: Sequence[tuple[int, int]] = (),
) -> bytes:
    """Its Huffman tables know one code each, the bit 0: no difference for DC, a run of empty blocks for AC."""
    tables = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    tables += jpeg_segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00") + jpeg_segment(
        0xC4, b"\x10\x01" + bytes(15) + b"\xe0"
    )
    samplings = samplings or [(1, 1)] * num_components
    components = b"".join(bytes([number, across << 4 | down, 0]) for number, (across, down) in enumerate(samplings, 1))
    header = jpeg_segment(frame, struct.pack(">BHHB", bits, height, width, num_components) + components)
    return b"\xff\xd8" + tables + header + b"".join(scans) + b"\xff\xd9"


def jpeg_scan(component: int = 1, *, spectrum: tuple[int, int] = (0, 0), bit: int = 0, data: bytes = b"") -> bytes:
    return jpeg_segment(0xDA, bytes([1, component, 0, *spectrum, bit])) + data


def zero_bits(num_bits: int) -> bytes:
    """For a scan of `jpeg_by_scans` of DC: so many blocks without a difference."""
    num_bytes = -(-num_bits // 8)
    return ((1 << 8 * num_bytes - num_bits) - 1).to_bytes(num_bytes)


def empty_blocks(num_blocks: int) -> bytes:
    """For a scan of `jpeg_by_scans` above DC: the runs, of up to 32,767 blocks, that pass over all blocks."""
    num_runs = -(-num_blocks // 32_767)
    bits = ("0" + 14 * "1") * num_runs
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


# --- EXIF (TIFF 6.0) ---


@dataclass(frozen=True)
class Tag:
    number: int
    kind: int
    """1 bytes, 2 text, 3 short, 4 long, 5 rational."""
    count: int
    value: bytes
    """The four bytes of a value, or of its offset."""


def short_tag(number: int, value: int, order: str = "<") -> Tag:
    return Tag(number, 3, 1, struct.pack(f"{order}HH", value, 0))


def exif(*tags: Tag, order: str = "<", following: int = 0, behind: bytes = b"") -> bytes:
    """A block with one directory, `following` the offset of the next one."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    entries = b"".join(struct.pack(f"{order}HHI", tag.number, tag.kind, tag.count) + tag.value for tag in tags)
    return b"Exif\0\0" + head + entries + struct.pack(f"{order}I", following) + behind


# --- GIF (89a) ---


def gif(
    frames: Sequence[bytes], width: int, height: int, *, palette: bytes = b"\xff\xff\xff\0\0\0", before: bytes = b""
) -> bytes:
    num_bits = (len(palette) // 3 - 1).bit_length()
    screen = struct.pack("<HHBBB", width, height, 0x80 | (num_bits - 1), 0, 0)
    return b"GIF89a" + screen + palette + before + b"".join(frames) + b";"


def gif_frame(width: int, height: int, index: int = 1, *, at: tuple[int, int] = (0, 0), disposal: int = 0) -> bytes:
    """Return a frame of one colour below 4, of up to 126 pixels, so that no code grows beyond three bits."""
    control = b"!\xf9\x04" + bytes([disposal << 2, 10, 0, 0, 0])
    codes = []
    for _ in range(min(width * height, 126)):
        codes += [4, index]  # clear, pixel
    bits = sum(code << 3 * place for place, code in enumerate([*codes, 5]))
    data = bits.to_bytes(-(-3 * (len(codes) + 1) // 8), "little")
    return control + b"," + struct.pack("<HHHHB", *at, width, height, 0) + b"\x02" + bytes([len(data)]) + data + b"\0"


def gif_comment(text: bytes) -> bytes:
    pieces = [text[at : at + 255] for at in range(0, len(text), 255)]
    return b"!\xfe" + b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


# --- WebP (RFC 9649) ---


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def lossless_webp(width: int, height: int) -> bytes:
    """Return a photo of one colour, in a few bytes whatever its size: each of its codes takes no bit at all."""
    sides = (width - 1) | (height - 1) << 14
    # No transform, no colour cache, no meta codes; five codes of one symbol each: green, red, blue, alpha, distance.
    bits, place = 0, 3
    for symbol, num_bits in ((0x80, 8), (0x40, 8), (0x20, 8), (0xFF, 8), (0, 1)):
        simple, one, wide = 1, 0, int(num_bits == 8)
        bits |= (simple | one << 1 | wide << 2 | symbol << 3) << place
        place += 3 + num_bits
    return webp((b"VP8L", b"\x2f" + struct.pack("<I", sides) + bits.to_bytes(-(-place // 8), "little")))


# --- HEIF (ISO/IEC 23008-12) ---


@dataclass(frozen=True)
class Item:
    number: int
    kind: bytes
    data: bytes
    properties: tuple[bytes, ...] = ()


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, body: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24) + body)


def size_property(width: int, height: int) -> bytes:
    return full_box(b"ispe", struct.pack(">II", width, height))


def rotation_property(quarters: int) -> bytes:
    """Counter-clockwise."""
    return box(b"irot", bytes([quarters]))


def crop_property(width: int, height: int) -> bytes:
    """The middle of the picture."""
    return box(b"clap", struct.pack(">8I", width, 1, height, 1, 0, 1, 0, 1))


def with_second_associations(avif: bytes, version: int) -> bytes:
    """Put an empty box of associations behind that of Pillow's AVIF, whose one item's data moves by its length."""
    added = full_box(b"ipma", bytes(4), version)
    data = bytearray(avif)
    for kind in (b"meta", b"iprp"):
        at = data.index(kind) - 4
        data[at : at + 4] = struct.pack(">I", int.from_bytes(data[at : at + 4]) + len(added))
    place = struct.pack(">I", avif.index(b"mdat") + 4)
    at = data.index(place, data.index(b"iloc"))
    data[at : at + 4] = struct.pack(">I", int.from_bytes(place) + len(added))
    end = avif.index(b"iprp") - 4 + int.from_bytes(avif[avif.index(b"iprp") - 4 :][:4])
    return bytes(data[:end] + added + data[end:])


def hevc_item(*properties: bytes, number: int = 1, size: tuple[int, int] = HEVC_SIZE) -> Item:
    configuration = box(b"hvcC", HEVC_CONFIGURATION)
    return Item(number, b"hvc1", HEVC_PICTURE, (configuration, size_property(*size), *properties))


def grid_item(number: int, num_rows: int, num_columns: int, size: tuple[int, int]) -> Item:
    layout = bytes([0, 1, num_rows - 1, num_columns - 1]) + struct.pack(">II", *size)
    return Item(number, b"grid", layout, (size_property(*size),))


def exif_item(number: int, block: bytes) -> Item:
    return Item(number, b"Exif", struct.pack(">I", 6) + block)


def heif(
    *items: Item,
    primary: int = 1,
    references: Sequence[tuple[bytes, int, Sequence[int]]] = (),
    brand: bytes = b"heic",
) -> bytes:
    """References are kind, from, to."""
    properties = list(dict.fromkeys(prop for item in items for prop in item.properties))
    associations = [
        struct.pack(">HB", item.number, len(item.properties))
        + bytes(0x80 | (1 + properties.index(prop)) for prop in item.properties)
        for item in items
        if item.properties
    ]
    head = box(b"ftyp", brand + bytes(4) + b"mif1" + brand)
    kinds = [full_box(b"infe", struct.pack(">HH4s", item.number, 0, item.kind) + b"\0", 2) for item in items]
    fixed = [
        full_box(b"hdlr", bytes(4) + b"pict" + bytes(13)),
        full_box(b"pitm", struct.pack(">H", primary)),
        full_box(b"iinf", struct.pack(">H", len(items)) + b"".join(kinds)),
        box(
            b"iprp",
            box(b"ipco", b"".join(properties))
            + full_box(b"ipma", struct.pack(">I", len(associations)) + b"".join(associations)),
        ),
    ]
    if references:
        links = [
            box(kind, struct.pack(f">HH{len(to)}H", from_item, len(to), *to)) for kind, from_item, to in references
        ]
        fixed.append(full_box(b"iref", b"".join(links)))

    def meta(first_byte: int) -> bytes:
        places, at = [], first_byte
        for item in items:
            places.append(struct.pack(">HHHII", item.number, 0, 1, at, len(item.data)))
            at += len(item.data)
        locations = full_box(b"iloc", b"\x44\0" + struct.pack(">H", len(items)) + b"".join(places))
        return full_box(b"meta", b"".join(fixed) + locations)

    before = len(head) + len(meta(0)) + 8
    return head + meta(before) + box(b"mdat", b"".join(item.data for item in items))


# --- Colour profiles (ICC.1:2001-04) ---


def _icc(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    at = 132 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, at + len(bodies), len(body))
        bodies += body.ljust(-(-len(body) // 4) * 4, b"\0")
    size = 128 + len(table) + len(bodies)
    white = _fixed(0.9642, 1.0, 0.8249)
    header = struct.pack(">I4xI4s4s4s12x4s24x", size, 0x02100000, kind, space, connection, b"acsp") + bytes(4) + white
    return header.ljust(128, b"\0") + table + bodies


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def _described(name: str) -> dict[bytes, bytes]:
    text = name.encode() + b"\0"
    return {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
    }


def display_p3_profile(name: str = "Wide") -> bytes:
    """The primaries of Display P3, adapted to D50, and a plain gamma of 2.2."""
    curve = _gamma(2.2)
    colours = {
        b"rXYZ": _xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": _xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": _xyz(0.15710, 0.06657, 0.78407),
    }
    curves = {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    return _icc(b"RGB ", b"mntr", b"XYZ ", _described(name) | colours | curves)


def srgb_profile(name: str = "sRGB", *, gamma: float | None = None) -> bytes:
    """The primaries of sRGB, adapted to D50, and its curve in 1024 steps, or a plain gamma."""
    codes = np.arange(1024) / 1023
    light = np.where(codes > 0.04045, ((codes + 0.055) / 1.055) ** 2.4, codes / 12.92)
    table = b"curv" + struct.pack(">4xI1024H", 1024, *np.round(light * 65535).astype(int))
    colours = {
        b"rXYZ": _xyz(0.43607, 0.22249, 0.01392),
        b"gXYZ": _xyz(0.38515, 0.71687, 0.09708),
        b"bXYZ": _xyz(0.14307, 0.06061, 0.71410),
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), table if gamma is None else _gamma(gamma))
    return _icc(b"RGB ", b"mntr", b"XYZ ", _described(name) | colours | curves)


def grey_profile(gamma: float = 1.0) -> bytes:
    return _icc(b"GRAY", b"mntr", b"XYZ ", _described("Grey") | {b"kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """Four inks, each of which takes its share of the light and no colour: whatever is printed is grey."""
    steps = bytes(range(256))
    corners = b"".join(
        bytes([255 - 63 * (c + m + y + k), 128, 128]) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)
    )
    identity = _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + steps * 4 + corners + steps * 3
    return _icc(b"CMYK", b"prtr", b"Lab ", _described("Grey inks") | {b"A2B0": table})


def jpeg_profile_segments(profile: bytes, num_bytes: int = 65_000) -> list[bytes]:
    pieces = [profile[at : at + num_bytes] for at in range(0, len(profile), num_bytes)]
    return [
        jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([number, len(pieces)]) + piece)
        for number, piece in enumerate(pieces, 1)
    ]


def ycck_samples(image: Image.Image) -> Image.Image:
    """CMYK pixels whose JPEG samples are YCCK once its Adobe marker says so."""
    cyan, magenta, yellow, black = image.convert("CMYK").split()
    luma, blue, red = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    inverted = [channel.point([255 - value for value in range(256)]) for channel in (luma, blue, red)]
    return Image.merge("CMYK", (*inverted, black))
