import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image, mean_difference
from vision.images import decode_photo
from vision.images.png import load_png, open_png

PIXELS = np.asarray(create_scene())
ROWS = files.scanlines(PIXELS)
GREY = np.asarray(create_scene().convert("L"))
P3_CHROMATICITIES = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def decode(data):
    return decode_photo(data, at_least_px=64)


def decode_with(*chunks, rows=ROWS, colour=2, depth=8):
    before = b"".join(files.png_chunk(name, body) for name, body in chunks)
    return decode(files.png(96, 64, rows, colour=colour, depth=depth, before=before))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("num_bytes", [60, 1000, 1 << 20])
def test_pixels_are_pillows(mode, num_bytes, monkeypatch):
    grey = Image.fromarray(GREY.astype(np.uint16) * 257)
    image = grey if mode == "I;16" else create_scene().convert(mode)
    monkeypatch.setattr("PIL.ImageFile.MAXBLOCK", num_bytes)
    opened = open_png(encode_image(image, "PNG"))
    assert opened.mode == mode
    assert (np.asarray(load_png(opened)) == np.asarray(image)).all()


def test_only_the_chunks_that_pixels_need_are_left():
    text = files.png_chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(5 << 20)))
    opened = open_png(files.png(96, 64, ROWS, colour=2, before=text * 3, after=text))
    assert len(opened.data) < 2 * len(zlib.compress(ROWS, 1))
    assert not set(opened.info) & {"Title", "icc_profile", "exif"}


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_clear_grey_of_any_depth_is_white(depth):
    samples = GREY >> (8 - depth)
    clear = samples[20, 40]
    rows = files.packed_scanlines(samples, depth)
    shown = np.where(samples == clear, 255, samples.astype(float) * 255 / (2**depth - 1))
    photo = decode_with((b"tRNS", struct.pack(">H", clear)), rows=rows, colour=0, depth=depth)
    assert mean_difference(photo[..., 0], shown) < 1
    plain = decode_with((b"tRNS", struct.pack(">H", 1 << depth)), rows=rows, colour=0, depth=depth)
    assert (plain == decode_with(rows=rows, colour=0, depth=depth)).all()


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_clear_colour_of_16_bits_is_white_in_its_exact_shade_only(interlaced):
    samples = PIXELS.astype(np.uint16) * 256
    samples[:32] = (0x1234, 0xABCD, 0x00FF)
    samples[:, :48, 2] |= 1
    clear = samples[0, -1]
    rows = files.interlaced_scanlines(samples) if interlaced else files.scanlines(samples)
    before = files.png_chunk(b"tRNS", struct.pack(">3H", *clear))
    photo = decode(files.png(96, 64, rows, colour=2, depth=16, interlaced=interlaced, before=before))
    shown = np.where((samples == clear).all(axis=-1, keepdims=True), 255, samples >> 8)
    assert (shown[:32, 48:] == 255).any(axis=-1).all() or interlaced
    assert (photo == shown).all()


def test_a_clear_colour_of_8_bits_is_white():
    photo = decode_with((b"tRNS", struct.pack(">3H", *PIXELS[10, 10])))
    expected = PIXELS.copy()
    expected[(PIXELS[10, 10] == PIXELS).all(axis=-1)] = 255
    assert (photo == expected).all()


def encode_linear(light):
    return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("colour", [0, 2, 3, 4, 6])
def test_gamma_is_heeded(gamma, colour):
    chunks = [(b"gAMA", struct.pack(">I", round(100_000 / gamma)))]
    samples = {
        0: GREY,
        2: PIXELS,
        3: GREY,
        4: np.dstack([GREY, GREY * 0 + 255]),
        6: np.dstack([PIXELS, GREY * 0 + 255]),
    }
    if colour == 3:
        chunks.append((b"PLTE", bytes(np.repeat(np.arange(256, dtype=np.uint8), 3))))
    photo = decode_with(*chunks, rows=files.scanlines(samples[colour]), colour=colour)
    stored = PIXELS if colour in (2, 6) else GREY[..., None]
    assert mean_difference(photo, np.broadcast_to(encode_linear((stored / 255) ** gamma), photo.shape)) < 1.5


def test_colours_are_heeded_with_and_without_a_gamma():
    profile = zlib.compress(files.display_p3_profile())
    wide = decode_with((b"iCCP", b"P3\0\0" + profile))
    assert mean_difference(wide, PIXELS) > 3
    gamma = (b"gAMA", struct.pack(">I", 45455))
    assert mean_difference(decode_with(gamma, (b"cHRM", P3_CHROMATICITIES)), wide) < 1
    p3 = decode_with((b"cICP", bytes([12, 13, 0, 1])))
    assert mean_difference(decode_with((b"cHRM", P3_CHROMATICITIES)), p3) < 1
    assert mean_difference(p3, PIXELS) > 3


CHUNKS = {
    "cICP": (b"cICP", bytes([1, 8, 0, 1])),
    "iCCP": (b"iCCP", b"P3\0\0" + zlib.compress(files.display_p3_profile())),
    "sRGB": (b"sRGB", b"\0"),
    "gAMA": (b"gAMA", struct.pack(">I", 55_556)),
}


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("second", range(1, 4))
def test_the_chunk_of_higher_precedence_counts_wherever_it_stands(first, second):
    names = list(CHUNKS)
    if first < second:
        alone = decode_with(CHUNKS[names[first]])
        assert (decode_with(CHUNKS[names[first]], CHUNKS[names[second]]) == alone).all()
        assert (decode_with(CHUNKS[names[second]], CHUNKS[names[first]]) == alone).all()
        assert (decode_with(CHUNKS[names[second]]) != alone).any()


@pytest.mark.parametrize(
    "body", [bytes([9, 16, 0, 0]), bytes([9, 16, 9, 1]), bytes([2, 2, 0, 1]), bytes([9, 17, 0, 1])]
)
def test_code_points_that_browsers_ignore_are_ignored(body):
    assert (decode_with((b"cICP", body)) == PIXELS).all()
    assert (decode_with((b"cICP", body), CHUNKS["iCCP"]) == decode_with(CHUNKS["iCCP"])).all()


def test_colours_behind_the_pixels_are_too_late_and_the_orientation_is_not():
    gamma = files.png_chunk(*CHUNKS["gAMA"])
    exif = files.png_chunk(b"eXIf", files.exif(files.short_tag(0x0112, 3))[6:])
    photo = decode(files.png(96, 64, ROWS, colour=2, after=gamma + exif))
    assert (photo == PIXELS[::-1, ::-1]).all()
