"""A drawer of hostile photos: what phones, editors, bad networks and attackers send, each with its story."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from vision.errors import (
    PhotoEmpty,
    PhotoError,
    PhotoNotAnImage,
    PhotoTooManyBytes,
    PhotoTooManyPixels,
    PhotoTooSmall,
    PhotoTruncated,
    PhotoUnreadable,
)
from vision.images import PhotoLimits

__all__ = ["HostilePhoto", "hostile_photos"]

_LARGEST = (8000, 6248)
"""Just within the limit of pixels, and whole blocks of a JPEG."""


@dataclass(frozen=True, kw_only=True)
class HostilePhoto:
    name: str
    story: str
    """What it is, and why it occurs or who sends it."""
    data: bytes
    expected: type[PhotoError] | None = None
    """Exactly this error; None: it decodes."""
    shows: Image.Image | None = None
    """What it shows once decoded, of the same size, give or take what its encoding loses; None: anything."""
    is_slow: bool = False
    """Heavy, though allowed: it takes up to a second of CPU time."""


@cache
def hostile_photos() -> tuple[HostilePhoto, ...]:
    """All of them, by name."""
    drawer = (
        *_unaccepted_formats(),
        *_truncated_uploads(),
        *_bombs(),
        *_jpegs(),
        *_exif(),
        *_pngs(),
        *_gifs(),
        *_webps(),
        *_heif_files(),
    )
    names = [photo.name for photo in drawer]
    assert len(set(names)) == len(names)
    return tuple(sorted(drawer, key=lambda photo: photo.name))


def _create_refused(name: str, expected: type[PhotoError], data: bytes, story: str) -> HostilePhoto:
    return HostilePhoto(name=name, story=story, data=data, expected=expected)


def _create_decodable(name: str, data: bytes, story: str, shows: Image.Image | None = None) -> HostilePhoto:
    return HostilePhoto(name=name, story=story, data=data, shows=shows)


def _create_grey_image() -> Image.Image:
    return create_scene().convert("L")


def _unaccepted_formats() -> Iterator[HostilePhoto]:
    """What is no photo of an accepted format, whatever its name says."""
    tiny, no = create_scene(16, 16), PhotoNotAnImage
    yield _create_refused("empty", PhotoEmpty, b"", "An upload that failed before its first byte.")
    yield _create_refused("one_byte", no, b"\xff", "An upload that failed after its first byte.")
    yield _create_refused(
        "zeros", no, bytes(5000), "A file whose blocks were allocated and never written: a full disk."
    )
    yield _create_refused("random", no, random.Random(0).randbytes(5000), "An encrypted backup under a photo's name.")
    yield _create_refused("text", no, b"hello, I am a text file\n", "The wrong file was picked.")
    yield _create_refused(
        "html", no, b"<!doctype html><title>404 Not Found</title>", "A server's error page saved as a photo."
    )
    yield _create_refused(
        "svg", no, b"<svg xmlns='http://www.w3.org/2000/svg'/>", "A drawing, and a door to scripts and files."
    )
    yield _create_refused(
        "pdf", no, b"%PDF-1.7\n" + bytes(100), "A catalogue page; its decoder would be a program of its own."
    )
    yield _create_refused("eps", no, b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", "A PostScript program renamed to .jpg.")
    yield _create_refused("psd", no, b"8BPS\0\1" + bytes(100), "An editor's project file renamed to .jpg.")
    yield _create_refused("bmp", no, encode_image(tiny, "BMP"), "A screenshot of an old program renamed to .jpg.")
    yield _create_refused(
        "tiff", no, encode_image(tiny, "TIFF"), "A scan renamed to .jpg; a format with a long list of holes."
    )
    yield _create_refused("ico", no, encode_image(tiny, "ICO"), "A shop's icon.")
    yield _create_refused("jpeg2000", no, encode_image(tiny, "JPEG2000"), "From a scanner; few viewers show it.")
    yield _create_refused(
        "jpeg_xl", no, b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "From a new editor; no decoder here."
    )
    movie = files.box(b"ftyp", b"qt  \0\0\0\0qt  ") + files.box(b"mdat", bytes(100))
    yield _create_refused("quicktime", no, movie, "The film half of a phone's live photo.")
    yield _create_refused(
        "line_before_jpeg", no, b"\r\n" + encode_image(create_scene()), "A web form that puts a line before the file."
    )
    too_long = encode_image(create_scene()) + bytes(PhotoLimits().max_bytes)
    yield _create_refused("too_many_bytes", PhotoTooManyBytes, too_long, "A photo with a film behind it, or a flood.")


def _truncated_uploads() -> Iterator[HostilePhoto]:
    """Uploads that broke off."""
    for format_ in ("JPEG", "PNG", "GIF", "WEBP", "AVIF"):
        whole = encode_image(create_scene(), format_)
        yield _create_refused(
            f"{format_.lower()}_cut_in_header", PhotoTruncated, whole[:20], "The connection broke at once."
        )
        yield _create_refused(
            f"{format_.lower()}_cut_in_half", PhotoTruncated, whole[: len(whole) // 2], "The connection broke."
        )
    whole = files.heif(files.hevc_item())
    yield _create_refused("heif_cut_in_header", PhotoTruncated, whole[:200], "The connection broke at once.")
    yield _create_refused("heif_cut_at_end", PhotoTruncated, whole[:-40], "The connection broke just before the end.")
    progressive = encode_image(create_scene(), progressive=True)
    half = progressive[: len(progressive) // 2]
    yield _create_refused(
        "progressive_cut_in_half", PhotoTruncated, half, "All of it is there, but blurred: refused too."
    )
    png = encode_image(create_scene(), "PNG")
    yield _create_refused("png_cut_before_pixels", PhotoTruncated, png[:33], "Only the header chunk came through.")
    yield _create_decodable(
        "png_without_end", png[:-12], "Written by a program that forgets its last chunk.", create_scene()
    )
    yield _create_refused("gif_without_frame", PhotoUnreadable, files.gif([], 16, 16), "A screen, but no photo on it.")
    yield from _damaged_jpegs()


def _damaged_jpegs() -> Iterator[HostilePhoto]:
    """JPEGs whose structure is whole or nearly so: libjpeg shows each of them, without an error."""
    unreadable, cmyk = PhotoUnreadable, create_scene(120, 90).convert("CMYK")
    kinds = {
        "jpeg": encode_image(create_scene(120, 90), quality=95),
        "progressive": encode_image(create_scene(120, 90), quality=95, progressive=True),
        "jpeg_with_restarts": encode_image(create_scene(120, 90), quality=95, restart_marker_blocks=8),
        "grey_jpeg": encode_image(create_scene(120, 90).convert("L"), quality=95),
        "cmyk_jpeg": encode_image(cmyk, quality=95),
    }
    for name, whole in kinds.items():
        shown = create_scene(120, 90).convert("L") if name == "grey_jpeg" else create_scene(120, 90)
        yield _create_decodable(
            f"{name}_without_end", whole[:-2], "A camera that forgets the end marker.", shown.convert("RGB")
        )
        at = whole.index(b"\xff\xda")
        at += (len(whole) - at) // 20
        closed = whole[:at] + b"\xff\xd9"
        yield _create_refused(
            f"{name}_cut_and_closed", unreadable, closed, "Cut by a tool that then wrote an end marker."
        )
        zeros = bytes(len(whole) - at)
        yield _create_refused(f"{name}_zeroed", PhotoTruncated, whole[:at] + zeros, "A disk that was full.")
        yield _create_refused(
            f"{name}_zeroed_and_closed", unreadable, whole[:at] + zeros[:-2] + b"\xff\xd9", "A sync that lost blocks."
        )
    padded = kinds["jpeg"][:-2] + bytes(500) + b"\xff\xd9"
    yield _create_decodable(
        "jpeg_padded", padded, "A camera that fills up its card's block before the end.", create_scene(120, 90)
    )
    tail = kinds["jpeg"][:-2] + random.Random(3).randbytes(500).replace(b"\xff", b"\0") + b"\xff\xd9"
    yield _create_refused("jpeg_with_too_many_codes", unreadable, tail, "More coded data than its pixels take.")


def _bombs() -> Iterator[HostilePhoto]:
    """A few bytes that would take much memory or time."""
    big, unreadable = PhotoTooManyPixels, PhotoUnreadable
    yield _create_refused(
        "png_bomb", big, files.png(40_000, 40_000, bytes(1000), colour=2), "1.6 gigapixels in 100 bytes."
    )
    yield _create_refused(
        "jpeg_bomb", big, files.jpeg_by_scans(65_500, 65_500, [files.jpeg_scan()]), "The largest JPEG."
    )
    yield _create_refused(
        "gif_bomb", big, files.gif([files.gif_frame(10, 10)], 65_535, 65_535), "A huge screen, a tiny frame."
    )
    outgrown = files.gif([files.gif_frame(13_000, 13_000, disposal=2)], 16, 16)
    yield _create_refused(
        "gif_outgrown", big, outgrown, "A small screen, and a frame that widens it to 169 megapixels."
    )
    yield _create_refused("webp_bomb", big, files.lossless_webp(16_383, 16_383), "268 megapixels in 32 bytes.")
    animated = files.webp((b"VP8X", b"\x02\0\0\0" + b"\xff\xff\xff" * 2), (b"ANIM", bytes(6)))
    yield _create_refused("webp_canvas_bomb", big, animated, "A canvas of 281 gigapixels, without a frame yet.")
    avif = encode_image(create_scene(), "AVIF")
    at = avif.index(b"ispe") + 8
    huge = avif[:at] + struct.pack(">II", 16_384, 16_384) + avif[at + 8 :]
    yield _create_refused("avif_bomb", big, huge, "Its size property says 268 megapixels.")
    huge = files.heif(files.hevc_item(size=(20_000, 20_000)))
    yield _create_refused("heif_bomb", big, huge, "Its size property says 400 megapixels.")
    tiles = [files.hevc_item(number=number) for number in range(2, 18)]
    grid = files.heif(
        files.grid_item(1, 4, 4, (20_000, 20_000)),
        *tiles,
        references=[(b"dimg", 1, [tile.number for tile in tiles])],
    )
    yield _create_refused("heif_grid_bomb", big, grid, "Sixteen small tiles that claim to cover 400 megapixels.")

    flat = files.png(7000, 7000, (b"\0" + b"\x10" * 7000) * 7000)
    yield HostilePhoto(
        name="png_zip_bomb",
        story="49 megapixels of one grey in 200 kB: allowed, and nothing but memory and time.",
        data=flat,
        is_slow=True,
    )
    yield HostilePhoto(
        name="webp_zip_bomb",
        story="50 megapixels of one colour in 32 bytes: allowed, and the most memory per byte there is.",
        data=files.lossless_webp(*_LARGEST),
        is_slow=True,
    )
    num_blocks = _LARGEST[0] * _LARGEST[1] // 64
    dc = files.jpeg_scan(data=bytes(num_blocks // 8 + 1), bit=1)
    empty = files.jpeg_scan(spectrum=(1, 63))
    bomb = files.jpeg_by_scans(*_LARGEST, [dc, *[empty] * 5000])
    yield _create_refused(
        "scan_bomb", unreadable, bomb, "5,000 empty scans over 50 megapixels: 150 kB, and over ten seconds."
    )
    bomb = files.jpeg_by_scans(*_LARGEST, [files.jpeg_scan(spectrum=(0, 63))] * 5000, frame=0xC9, num_components=3)
    yield _create_refused("arithmetic_scan_bomb", unreadable, bomb, "The same, arithmetic coded: 50 kB, and minutes.")
    bomb = files.jpeg_by_scans(*_LARGEST, [files.jpeg_scan(spectrum=(0, 63))] * 5000, frame=0xC0, num_components=3)
    yield _create_refused("sequential_scan_bomb", unreadable, bomb, "The same, of a JPEG that is not even progressive.")
    scans = [files.jpeg_scan(data=bytes(num_blocks // 8 + 1), bit=bit) for bit in (5, 0x54, 0x43, 0x32, 0x21, 0x10)]
    bits = (13, *(bit << 4 | bit - 1 for bit in range(13, 0, -1)))
    scans += [files.jpeg_scan(spectrum=(1, 63), bit=bit, data=files.empty_blocks(num_blocks)) for bit in bits]
    assert len(scans) == 20
    heavy = files.jpeg_by_scans(*_LARGEST, scans)
    yield HostilePhoto(
        name="scans_at_limit",
        story="Twenty scans over 50 megapixels, as many as are allowed, of the kind that costs most without data.",
        data=heavy,
        is_slow=True,
    )
    hidden = files.jpeg_by_scans(*_LARGEST, [dc, b"\xff\x01\xff\xff" + empty * 5000])
    yield _create_refused("hidden_scan_bomb", unreadable, hidden, "Its scans stand behind a marker without a length.")


def _jpegs() -> Iterator[HostilePhoto]:
    jpeg, cmyk = encode_image(create_scene(), quality=95), create_scene().convert("CMYK")
    unreadable = PhotoUnreadable
    yield _create_decodable(
        "jpeg_progressive",
        encode_image(create_scene(), quality=95, progressive=True),
        "As the web has them.",
        create_scene(),
    )
    yield _create_decodable(
        "jpeg_with_tail", jpeg + random.Random(1).randbytes(10_000), "A phone's moving photo.", create_scene()
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("readme.txt", "hidden")
    yield _create_decodable(
        "jpeg_and_zip", jpeg + packed.getvalue(), "Both at once: a photo that smuggles an archive.", create_scene()
    )
    restarts = bytearray(encode_image(create_scene(), quality=95, restart_marker_blocks=4))
    places = [at for at in range(len(restarts) - 1) if restarts[at] == 0xFF and 0xD0 <= restarts[at + 1] <= 0xD7]
    for at in places[::3]:
        restarts[at + 1] = 0xD0 | (restarts[at + 1] + 3) % 8
    yield _create_refused(
        "jpeg_restarts_in_disorder", unreadable, bytes(restarts), "A damaged memory card: strips are in wrong places."
    )
    at = jpeg.index(b"\xff\xdb")
    yield _create_decodable(
        "jpeg_with_bytes_between_segments", jpeg[:at] + b"abc" + jpeg[at:], "A careless editor.", create_scene()
    )
    yield _create_decodable(
        "jpeg_of_jfif_3", jpeg.replace(b"JFIF\0\1", b"JFIF\0\3"), "A version that there is not.", create_scene()
    )
    at = jpeg.index(b"\xff\xda") + 11
    assert jpeg[at : at + 3] == b"\0\x3f\0"
    yield _create_decodable(
        "jpeg_of_no_spectrum",
        jpeg[:at] + bytes(3) + jpeg[at + 3 :],
        "Its scan states no spectrum.",
        create_scene(),
    )
    at = jpeg.index(b"\xff\xe0")
    adobe = files.jpeg_segment(0xEE, b"Adobe\0\x64" + bytes(4) + b"\x09")
    yield _create_decodable(
        "jpeg_of_unknown_transform", jpeg[:at] + adobe + jpeg[at:], "Colours stored in an unknown way.", create_scene()
    )
    scan = [files.jpeg_scan()]
    for num_components, name in ((2, "two"), (5, "five")):
        data = files.jpeg_by_scans(64, 64, scan, num_components=num_components)
        yield _create_refused(
            f"jpeg_of_{name}_components", unreadable, data, "Allowed by the standard, used by nobody."
        )
    data = files.jpeg_by_scans(64, 64, scan, bits=12)
    yield _create_refused("jpeg_of_12_bits", unreadable, data, "A medical image, or a camera's raw preview.")
    lossless = files.jpeg_by_scans(1600, 1600, [files.jpeg_scan(spectrum=(1, 0), data=bytes(400_000))], frame=0xC3)
    yield _create_refused("jpeg_lossless", unreadable, lossless, "Of 1993, shown by no browser; it crashes decoders.")
    samplings = [(3, 1), (1, 1), (1, 1)]
    scans = [
        files.jpeg_scan(number, data=files.zero_bits(across * down * 32 // 3))
        for number, (across, down) in enumerate(samplings, 1)
    ]
    data = files.jpeg_by_scans(96, 64, scans, num_components=3, samplings=samplings)
    grey = Image.new("RGB", (96, 64), "#808080")
    yield _create_decodable("jpeg_of_rare_sampling", data, "Three luma samples to one of colour.", grey)
    data = files.jpeg_by_scans(64, 64, [files.jpeg_scan(spectrum=(0, 63))], frame=0xC9)
    yield _create_decodable("jpeg_arithmetic", data, "Patented when JPEG was young; some optimisers write it now.")
    yield _create_refused(
        "jpeg_of_no_width", unreadable, files.jpeg_by_scans(0, 64, scan), "A header overwritten by zeros."
    )
    yield _create_refused(
        "jpeg_of_no_height", unreadable, files.jpeg_by_scans(64, 0, scan), "Its height would come later."
    )
    sliver = encode_image(create_scene(1, 5000))
    yield _create_refused(
        "jpeg_sliver", PhotoTooSmall, sliver, "A line of a page; squashed to a square it shows nothing."
    )
    ribbon = create_scene(8, 5000)
    yield _create_decodable(
        "jpeg_ribbon", encode_image(ribbon, quality=95), "As narrow as is allowed.", ribbon.resize((8, 5000))
    )
    flood = files.with_segments(jpeg, files.jpeg_segment(0xFE, b"") * 100_000)
    yield _create_refused("jpeg_of_many_segments", unreadable, flood, "100,000 empty comments.")

    yield _create_decodable(
        "jpeg_cmyk", encode_image(cmyk, quality=95), "From a print shop; inverted, as Adobe writes it.", create_scene()
    )
    marker = encode_image(cmyk, quality=95).index(b"\xff\xee")
    unmarked = encode_image(cmyk, quality=95)
    unmarked = unmarked[:marker] + unmarked[marker + 16 :]
    yield _create_decodable(
        "jpeg_cmyk_unmarked", unmarked, "The same without Adobe's marker: read alike, as in browsers.", create_scene()
    )
    ycck = bytearray(encode_image(files.ycck_samples(create_scene()), quality=95))
    ycck[ycck.index(b"Adobe") + 11] = 2
    yield _create_decodable("jpeg_ycck", bytes(ycck), "How Photoshop saves CMYK.", create_scene())
    profiled = encode_image(cmyk, quality=95, icc_profile=files.cmyk_profile())
    yield _create_decodable(
        "jpeg_cmyk_with_profile", profiled, "Its profile says how its inks look: grey, here.", _cmyk_in_grey()
    )
    other = encode_image(create_scene(), quality=95, icc_profile=files.cmyk_profile())
    yield _create_decodable(
        "jpeg_with_cmyk_profile", other, "An RGB photo with the profile of inks: ignored.", create_scene()
    )
    large = files.with_segments(jpeg, *files.jpeg_profile_segments(files.display_p3_profile() + bytes(2 << 20)))
    yield _create_decodable(
        "jpeg_with_large_profile", large, "A profile of 2 MiB, more than is read: ignored.", create_scene()
    )
    broken = encode_image(create_scene(), quality=95, icc_profile=b"\0" * 500)
    yield _create_decodable(
        "jpeg_with_broken_profile", broken, "A profile of zeros: ignored, as browsers do.", create_scene()
    )

    phone = io.BytesIO()
    create_scene().save(phone, "MPO", quality=95, save_all=True, append_images=[create_scene().rotate(180)])
    yield _create_decodable(
        "mpo", phone.getvalue(), "A phone's photo with its depth map behind it: the first one counts.", create_scene()
    )
    directory = phone.getvalue().index(b"MPF\0") + 4
    broken = phone.getvalue()[:directory] + b"\xff" * 40 + phone.getvalue()[directory + 40 :]
    yield _create_decodable(
        "mpo_with_broken_directory", broken, "The list of its parts is damaged, the photo is not.", create_scene()
    )


def _cmyk_in_grey() -> Image.Image:
    inks = np.asarray(create_scene().convert("CMYK")).astype(float).sum(-1) / 255
    lightness = 100 - inks * 63 / 2.55
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    srgb = np.where(luminance > 0.0031308, 1.055 * luminance ** (1 / 2.4) - 0.055, 12.92 * luminance)
    return Image.fromarray((255 * srgb).round().astype(np.uint8)).convert("RGB")


def _exif() -> Iterator[HostilePhoto]:
    def photo(block: bytes) -> bytes:
        return encode_image(create_scene(), quality=95, exif=block)

    turned = create_scene().transpose(Image.Transpose.ROTATE_270)  # as orientation 6 asks for
    short = files.short_tag
    for value in (0, 9, 65_535):
        data = photo(files.exif(short(0x0112, value)))
        yield _create_decodable(
            f"exif_orientation_{value}", data, "An orientation that there is not: as it is.", create_scene()
        )
    text = files.Tag(0x0112, 2, 2, b"6\0\0\0")
    yield _create_decodable(
        "exif_orientation_in_text", photo(files.exif(text)), "A program that writes all as text.", create_scene()
    )
    block = files.exif(short(0x0112, 6, ">"), order=">")
    yield _create_decodable("exif_big_endian", photo(block), "How many cameras write it.", turned)
    block = files.exif(files.Tag(0x0100, 2, 4, b"960\0"), short(0x0112, 6))
    yield _create_decodable(
        "exif_odd_tag", photo(block), "Another tag has a strange type; the photo is turned all the same.", turned
    )
    block = files.exif(short(0x0112, 6), following=8)
    yield _create_decodable("exif_loop", photo(block), "Its directory says that the next one is itself.", turned)
    block = files.exif(short(0x0112, 6), files.Tag(0x8769, 4, 1, struct.pack("<I", 8)))
    yield _create_decodable("exif_inner_loop", photo(block), "Its inner directory is its outer one.", turned)
    yield _create_decodable(
        "exif_cut", photo(files.exif(short(0x0112, 6))[:16]), "It ends within its first entry.", create_scene()
    )
    yield _create_decodable("exif_empty", photo(b"Exif\0\0"), "Nothing but its name.", create_scene())
    yield _create_decodable(
        "exif_far_away", photo(b"Exif\0\0II*\0\xff\xff\xff\xff"), "Its directory lies 4 GB ahead.", create_scene()
    )
    claims = [files.Tag(number, 7, 60_000, bytes(4)) for number in range(0x0200, 0x0200 + 5000)]
    block = files.exif(short(0x0112, 6), *claims)
    yield _create_decodable(
        "exif_bomb", photo(block), "5,000 tags, each of which claims the whole block: 300 MB in 60 kB.", turned
    )
    claims = [files.Tag(number, 7, 1 << 20, bytes(4)) for number in range(0x0200, 0x0200 + 60_000)]
    block = files.exif(short(0x0112, 6), *claims, behind=bytes(1 << 20))[6:]
    data = files.png(
        96, 64, files.scanlines(np.asarray(create_scene())), colour=2, before=files.png_chunk(b"eXIf", block)
    )
    yield _create_decodable("exif_bomb_in_png", data, "The same without JPEG's limit: 60 GB in 2 MB.", turned)
    pieces = files.jpeg_segment(0xE1, b"Exif\0\0a") * 900
    data = files.with_segments(encode_image(create_scene(), quality=95), pieces)
    yield _create_decodable("exif_in_pieces", data, "900 blocks, which Pillow joins one by one.", create_scene())


def _pngs() -> Iterator[HostilePhoto]:
    pixels, grey = np.asarray(create_scene()), np.asarray(_create_grey_image())
    wide = grey.astype(np.uint16) * 257
    rgb, unreadable, chunk = files.scanlines(pixels), PhotoUnreadable, files.png_chunk
    interlaced = files.png(96, 64, files.interlaced_scanlines(pixels), colour=2, interlaced=True)
    yield _create_decodable("png_interlaced", interlaced, "Saved for a slow line, in seven passes.", create_scene())
    for depth in (1, 2, 4):
        coarse = grey >> (8 - depth)
        shown = Image.fromarray((coarse.astype(float) * 255 / (2**depth - 1)).round().astype(np.uint8))
        data = files.png(96, 64, files.packed_scanlines(coarse, depth), depth=depth)
        yield _create_decodable(
            f"png_of_{depth}_bits", data, "A scan or a screenshot, made small.", shown.convert("RGB")
        )
    data = files.png(96, 64, files.scanlines(wide), depth=16)
    yield _create_decodable(
        "png_of_16_bit_greys", data, "A depth camera's or a scanner's.", _create_grey_image().convert("RGB")
    )
    clear = chunk(b"tRNS", struct.pack(">H", int(wide[0, 0])))
    data = files.png(96, 64, files.scanlines(wide), depth=16, before=clear)
    shown = Image.fromarray(np.where(wide == wide[0, 0], np.uint8(255), grey))
    yield _create_decodable(
        "png_of_16_bit_greys_with_clear_one", data, "One grey of it is transparent.", shown.convert("RGB")
    )
    data = files.png(96, 64, files.scanlines(pixels.astype(np.uint16) * 257), depth=16, colour=2)
    yield _create_decodable("png_of_16_bits", data, "Exported from a raw photo.", create_scene())
    half = np.dstack([pixels, np.full((64, 96, 1), 128, np.uint8)]).astype(np.uint16) * 257
    shown = Image.blend(Image.new("RGB", (96, 64), "white"), create_scene(), 128 / 255)
    data = files.png(96, 64, files.scanlines(half), depth=16, colour=6)
    yield _create_decodable("png_of_16_bits_with_alpha", data, "A rendering, half transparent.", shown)
    data = files.png(96, 64, files.scanlines(half[..., 2:]), depth=16, colour=4)
    yield _create_decodable("png_of_16_bit_greys_with_alpha", data, "A rendering without colour.")
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
    stripes = np.tile(np.array([0, 1], np.uint8), (16, 8))
    data = files.png(16, 16, files.scanlines(stripes), colour=3, before=palette)
    shown = Image.fromarray(np.where(stripes[..., None] == 0, np.uint8([255, 0, 0]), np.uint8([0, 0, 255])))
    yield _create_decodable("png_of_two_colours", data, "An icon.", shown)
    data = files.png(16, 16, files.scanlines(stripes), colour=3, before=palette + chunk(b"tRNS", b"\0"))
    shown = Image.fromarray(np.where(stripes[..., None] == 0, np.uint8(255), np.uint8([0, 0, 255])))
    yield _create_decodable("png_of_one_clear_colour", data, "An icon cut out; what is clear is white.", shown)
    data = files.png(16, 16, files.scanlines(stripes + 200), colour=3, before=palette)
    yield _create_decodable("png_beyond_its_palette", data, "Its pixels name colours that its palette lacks.")
    data = files.png(16, 16, files.scanlines(stripes), colour=3)
    yield _create_refused("png_without_palette", unreadable, data, "Its pixels name colours, and none is given.")
    damaged = bytearray(files.png(16, 16, files.scanlines(stripes), colour=3, before=palette))
    damaged[damaged.index(b"PLTE") + 5] ^= 1
    yield _create_refused("png_with_damaged_palette", unreadable, bytes(damaged), "A bit fell over in its colours.")
    data = files.png(16, 16, files.scanlines(stripes), colour=0, depth=3)
    yield _create_refused("png_of_3_bits", unreadable, data, "A depth that there is not.")
    yield _create_refused("png_of_no_width", unreadable, files.png(0, 16), "A header overwritten by zeros.")
    yield _create_refused(
        "png_without_pixels", unreadable, files.png(16, 16, data_chunks=b""), "Header and end, nothing else."
    )
    yield _create_decodable("png_ribbon", files.png(8, 100_000, bytes(900_000)), "As narrow as is allowed, and long.")
    whole = files.png(96, 64, rgb, colour=2)
    damaged = whole[:29] + b"bad!" + whole[33:]
    yield _create_refused("png_with_wrong_header_sum", unreadable, damaged, "A bit fell over in its header.")
    at = whole.index(b"IEND") - 8
    damaged = whole[:at] + b"bad!" + whole[at + 4 :]
    yield _create_decodable(
        "png_with_wrong_pixel_sum", damaged, "Written with a sum of zero; decoders do not look.", create_scene()
    )
    at = whole.index(b"IDAT") + 100
    damaged = whole[:at] + bytes(100) + whole[at + 100 :]
    yield _create_refused(
        "png_with_damaged_pixels", unreadable, damaged, "A damaged memory card: its zlib stream breaks off."
    )

    much = zlib.compress(bytes(20 << 20), 9)
    bombs = {"iCCP": b"a\0\0" + much, "zTXt": b"a\0\0" + much, "iTXt": b"a\0\1\0\0\0" + much}
    for kind, body in bombs.items():
        data = files.png(96, 64, rgb, colour=2, before=chunk(kind.encode(), body))
        yield _create_decodable(
            f"png_{kind.lower()}_bomb", data, "20 MB of zeros in 20 kB, none of them a pixel.", create_scene()
        )
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20)))
    data = files.png(96, 64, rgb, colour=2, before=profile * 100)
    yield _create_decodable(
        "png_of_many_profiles", data, "100 profiles of 1 MiB, of which the first counts.", create_scene()
    )
    data = files.png(96, 64, rgb, colour=2, before=chunk(b"teXt", b"") * 1_300_000)
    yield _create_refused("png_of_many_chunks", unreadable, data, "A million empty chunks: a second to walk.")
    yield from _damaged_pngs(files.png(96, 64, rgb, colour=2), rgb)
    data = files.png(96, 64, rgb, colour=2, before=chunk(b"iCCP", b"a\0\0broken"))
    yield _create_decodable("png_with_broken_profile", data, "Its profile cannot be inflated: ignored.", create_scene())
    data = files.png(
        96, 64, rgb, colour=2, before=chunk(b"tEXt", b"transparency\0yes") + chunk(b"tEXt", b"icc_profile\0no")
    )
    yield _create_decodable(
        "png_with_words_for_alpha", data, "Texts whose names Pillow takes for its own.", create_scene()
    )
    frames = [files.scanlines(np.full((16, 16), value, np.uint8)) for value in (10, 200)] * 1000
    yield _create_decodable(
        "apng", files.apng(frames, 16, 16), "2,000 frames: the first counts.", Image.new("RGB", (16, 16), "#0a0a0a")
    )
    data = files.apng(frames[:2], 16, 16, num_frames=0x7FFFFFFF)
    yield _create_decodable(
        "apng_that_boasts", data, "Two frames that claim to be two billion.", Image.new("RGB", (16, 16), "#0a0a0a")
    )


def _damaged_pngs(whole: bytes, rgb: bytes) -> Iterator[HostilePhoto]:
    """PNGs with damage in what no pixel needs."""
    bodies = {
        b"tEXt": b"Title\0Shoes",
        b"zTXt": b"Title\0\0" + zlib.compress(b"Shoes"),
        b"pHYs": struct.pack(">IIB", 3000, 3000, 1),
        b"gAMA": struct.pack(">I", 20_000),
        b"cHRM": struct.pack(">8I", *[10_000] * 8),
        b"iCCP": b"P3\0\0" + zlib.compress(files.display_p3_profile()),
        b"cICP": bytes([9, 16, 0, 1]),
        b"sRGB": b"\0",
        b"tRNS": bytes(6),
        b"eXIf": files.exif(files.short_tag(0x0112, 6))[6:],
    }
    for kind, body in bodies.items():
        name = kind.decode().lower()
        damaged = files.png_chunk(kind, body)[:-4] + b"bad!"
        data = whole[:33] + damaged + whole[33:]
        yield _create_decodable(f"png_with_wrong_sum_of_{name}", data, "A bit fell over in it.", create_scene())
        if kind not in (b"tEXt", b"zTXt", b"iCCP", b"eXIf"):
            data = whole[:33] + files.png_chunk(kind, body + b"\0") + whole[33:]
            yield _create_decodable(f"png_with_odd_length_of_{name}", data, "A careless program.", create_scene())
    for kind, body in {"empty": b"", "cut": b"P3\0\0" + zlib.compress(bytes(900))[:-6], "nameless": bytes(3)}.items():
        data = files.png(96, 64, rgb, colour=2, before=files.png_chunk(b"iCCP", body))
        yield _create_decodable(f"png_with_{kind}_profile", data, "A profile that is none: ignored.", create_scene())
    data = files.png(96, 64, rgb, colour=2, before=files.png_chunk(b"gAMA", bytes(4)))
    yield _create_decodable("png_of_gamma_zero", data, "A division by zero, if it were heeded.", create_scene())
    data = files.png(96, 64, rgb, colour=2, before=files.png_chunk(b"cHRM", bytes(32)))
    yield _create_decodable("png_of_no_colours", data, "All its primaries are black.", create_scene())
    data = whole[:-12] + b"\0\0\xff\xfftEXt"
    yield _create_decodable(
        "png_cut_behind_pixels", data, "The connection broke within a text at its end.", create_scene()
    )


def _gifs() -> Iterator[HostilePhoto]:
    black = files.gif_frame(10, 10)
    white_around = Image.new("RGB", (20, 20), "white")
    white_around.paste("black", (4, 6, 14, 16))
    smaller = files.gif([files.gif_frame(10, 10, at=(4, 6))], 20, 20, palette=bytes(12))
    yield _create_decodable(
        "gif_frame_on_larger_screen", smaller, "An optimiser kept only what is drawn.", white_around
    )
    many = files.gif([black, files.gif_frame(10, 10, 0)] * 5000, 10, 10)
    yield _create_decodable("gif_of_many_frames", many, "10,000 frames: the first counts.", Image.new("RGB", (10, 10)))
    page = files.gif_comment(b"*/=1;</script><html><script>alert(1)</script></html>/*")
    data = files.gif([black], 10, 10, before=page)
    yield _create_decodable(
        "gif_and_html", data, "Both at once: a photo that a careless browser runs.", Image.new("RGB", (10, 10))
    )
    data = files.gif([black], 10, 10, before=files.gif_comment(b"") * 50_000)
    yield _create_decodable(
        "gif_of_many_comments", data, "50,000 empty comments before its frame.", Image.new("RGB", (10, 10))
    )
    damaged = black[:-6] + b"\xff" * 4 + black[-2:]
    yield _create_refused(
        "gif_with_damaged_pixels", PhotoUnreadable, files.gif([damaged], 10, 10), "Its codes name what is not there."
    )


def _webps() -> Iterator[HostilePhoto]:
    first = Image.new("RGB", (32, 32), "red")
    rest = [Image.new("RGB", (32, 32), (value, 0, 255)) for value in range(200)]
    data = encode_image(first, "WEBP", save_all=True, append_images=rest, lossless=True)
    yield _create_decodable("webp_animated", data, "A sticker of 201 frames: the first counts.", first)
    clear = create_scene().copy()
    clear.putalpha(0)
    data = encode_image(clear, "WEBP", lossless=True, exact=True)
    yield _create_decodable(
        "webp_clear", data, "Wholly transparent, with colours beneath: white.", Image.new("RGB", (96, 64), "white")
    )
    picture = encode_image(create_scene(), "WEBP", quality=95)
    small = files.webp((b"VP8X", bytes(4) + b"\x0f\0\0" * 2), (b"VP8 ", picture[20:]))
    yield _create_refused(
        "webp_larger_than_its_canvas", PhotoUnreadable, small, "A canvas of 16x16, a picture of 96x64."
    )
    yield _create_refused(
        "webp_of_unknown_chunk", PhotoUnreadable, files.webp((b"VP9 ", bytes(64))), "From the future, or not at all."
    )
    damaged = bytearray(picture)
    damaged[40:80] = bytes(40)
    yield _create_decodable(
        "webp_with_damaged_pixels", bytes(damaged), "A lossy picture has no sum: it shows something else."
    )


def _heif_files() -> Iterator[HostilePhoto]:
    """AVIF and HEIC, which share their container."""
    item, turn = files.hevc_item, files.rotation_property(3)
    yield _create_decodable("heif", files.heif(item()), "A phone's photo.", create_scene())
    yield _create_decodable(
        "heif_of_brand_mif1", files.heif(item(), brand=b"mif1"), "The same, from another phone.", create_scene()
    )
    turned = create_scene().transpose(Image.Transpose.ROTATE_270)
    six, seen_by = files.exif_item(2, files.exif(files.short_tag(0x0112, 6))), [(b"cdsc", 2, [1])]
    data = files.heif(item(turn), six, references=seen_by)
    yield _create_decodable(
        "heif_turned", data, "Turned by its own property; the tag beside it is a copy, not a second turn.", turned
    )
    middle = create_scene().crop((8, 12, 88, 52))
    data = files.heif(item(files.crop_property(80, 40)))
    yield _create_decodable("heif_cropped", data, "Cropped on the phone; the rest is still in it.", middle)
    data = files.heif(item(files.crop_property(8, 8)))
    yield _create_refused(
        "heif_cropped_much", PhotoUnreadable, data, "The same; libheif 1.23.0 takes it for an attack, 1.23.6 does not."
    )
    data = files.heif(item(), six, references=seen_by)
    yield _create_decodable(
        "heif_turned_by_tag_alone", data, "A converter left the tag behind: viewers ignore it.", create_scene()
    )
    data = files.heif(item(size=(48, 32)))
    yield _create_refused(
        "heif_larger_than_it_says", PhotoUnreadable, data, "Its size property says less than its picture has."
    )
    loop = files.heif(files.grid_item(1, 1, 1, files.HEVC_SIZE), references=[(b"dimg", 1, [1])])
    yield _create_refused("heif_grid_of_itself", PhotoUnreadable, loop, "A grid whose one tile is the grid.")
    data = files.heif(item(), primary=7)
    yield _create_refused("heif_without_main_picture", PhotoUnreadable, data, "It names a picture that it lacks.")
    damaged = files.heif(item()).replace(files.HEVC_PICTURE[30:60], bytes(30))
    yield _create_decodable("heif_with_damaged_pixels", damaged, "A damaged memory card: it shows something else.")
    tag = Image.Exif()
    tag[0x0112] = 6
    data = encode_image(create_scene(), "AVIF", quality=90, exif=tag)
    yield _create_decodable("avif_turned", data, "Turned by its own property.", turned)
    small = encode_image(create_scene(), "AVIF", quality=90)
    data = files.with_second_associations(small, 1)
    yield _create_decodable("avif_with_two_associations", data, "Of both versions, as is allowed.", create_scene())
    data = files.with_second_associations(small, 0)
    yield _create_refused(
        "avif_with_double_associations", PhotoUnreadable, data, "Of one version, which is not; libavif refuses it."
    )
    avif = encode_image(create_scene(960, 640), "AVIF")
    at = avif.index(b"ispe") + 8
    data = avif[:at] + struct.pack(">II", 96, 64) + avif[at + 8 :]
    yield _create_decodable("avif_larger_than_it_says", data, "libavif scales it down to what it says.")
