"""Draw scenes in every kind of file that browsers show whole; count refusals and differences from the scene.

    python -m benchmarks.odd_photos [--scenes 4]

Kinds are formats with their modes, colour profiles and code points, orientations, and damage in what no pixel needs.
Each file is decoded at full size by `decode_photo` and, to compare, by Pillow alone (`ImageOps.exif_transpose` and
`convert("RGB")`). A difference is the mean over a photo's pixels, of 255, from the scene in the file's mode.
"""

import io
import statistics
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from benchmarks.common import create_parser, write_result
from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from training.data.synthetic import PRODUCTS, create_synthetic_photo
from vision.errors import PhotoError
from vision.images import decode_photo

__all__ = ["OddPhoto", "create_scenes", "decode_plainly", "decode_whole", "iterate_odd_photos", "measure_differences"]

SIZE = (320, 240)
Floats = npt.NDArray[np.float64]
TO_SRGB = {
    1: np.eye(3),
    9: np.array([[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]),
    12: np.array([[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09828]]),
}
"""Red, green and blue of BT.709, BT.2020 (ITU-R BT.2087) and Display P3 (SMPTE EG 432-1) in those of sRGB."""


class OddPhoto(NamedTuple):
    kind: str
    data: bytes
    reference: Image.Image
    """The scene upright, RGB."""


def decode_srgb(codes: Floats) -> Floats:
    light: Floats = np.where(codes > 0.04045, ((codes + 0.055) / 1.055) ** 2.4, codes / 12.92)
    return light


def encode_srgb(light: Floats) -> Floats:
    codes: Floats = np.where(light > 0.0031308, 1.055 * np.maximum(light, 0.003) ** (1 / 2.4) - 0.055, 12.92 * light)
    return codes


def encode_pq(light: Floats) -> Floats:
    """White is 203 cd/m²; SMPTE ST 2084."""
    power = (light * 203 / 10_000) ** 0.1593017578125
    codes: Floats = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return codes


def encode_hlg(light: Floats) -> Floats:
    """White is 203 of 1000 cd/m²; the inverse of ITU-R BT.2100-2, table 5."""
    shown = light * 203 / 1000
    luminance = np.maximum(shown @ np.array([0.2627, 0.6780, 0.0593]), 1e-9)[..., None]
    scene = shown * luminance ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(12 * np.maximum(scene, 1 / 12) - 0.28466892) + 0.55991073
    codes: Floats = np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)
    return codes


def store(
    scene: Image.Image, primaries: int, encode: Callable[[Floats], Floats], depth: int = 8
) -> npt.NDArray[np.int64]:
    """Return the scene's code values in other primaries and another curve."""
    light = decode_srgb(np.asarray(scene) / 255) @ np.linalg.inv(TO_SRGB[primaries]).T
    codes: npt.NDArray[np.int64] = np.round(np.clip(encode(np.clip(light, 0, 1)), 0, 1) * ((1 << depth) - 1)).astype(
        int
    )
    return codes


def iterate_odd_photos(scene: Image.Image) -> Iterator[OddPhoto]:
    """Yield the scene in each kind of file."""
    for photos in (draw_formats, draw_pngs, draw_profiles, draw_code_points, draw_orientations, draw_damage):
        yield from photos(scene)
    yield from draw_heics()


def draw_formats(scene: Image.Image) -> Iterator[OddPhoto]:
    grey = scene.convert("L")
    jpegs: dict[str, dict[str, Any]] = {
        "baseline": {},
        "progressive": {"progressive": True},
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "restarts": {"restart_marker_blocks": 8},
    }
    for name, options in jpegs.items():
        data = encode_image(scene, quality=92, **options)
        yield OddPhoto(f"jpeg {name}", data, scene)
        yield OddPhoto(f"jpeg {name}, no end marker", data[:-2], scene)
    yield OddPhoto("jpeg grey", encode_image(grey, quality=92), grey.convert("RGB"))
    cmyk = encode_image(scene.convert("CMYK"), quality=92)
    yield OddPhoto("jpeg cmyk", cmyk, scene)
    marker = cmyk.index(b"\xff\xee")
    yield OddPhoto("jpeg cmyk, unmarked", cmyk[:marker] + cmyk[marker + 16 :], scene)
    phone = io.BytesIO()
    scene.save(phone, "MPO", quality=92, save_all=True, append_images=[scene.rotate(180)])
    yield OddPhoto("mpo", phone.getvalue(), scene)
    for format_ in ("WEBP", "AVIF"):
        yield OddPhoto(format_.lower(), encode_image(scene, format_, quality=85), scene)
    clear = scene.copy()
    clear.putalpha(grey)
    white = Image.alpha_composite(Image.new("RGBA", scene.size, "white"), clear).convert("RGB")
    formats: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 90}}
    for format_, options in formats.items():
        yield OddPhoto(f"{format_.lower()} with alpha", encode_image(clear, format_, **options), white)
    animated = encode_image(scene, "WEBP", save_all=True, append_images=[grey.convert("RGB")], quality=85)
    yield OddPhoto("webp animated", animated, scene)
    palette = scene.quantize(256, dither=Image.Dither.NONE)
    yield OddPhoto("gif", encode_image(palette, "GIF"), palette.convert("RGB"))
    yield OddPhoto("gif, no trailer", encode_image(palette, "GIF")[:-1], palette.convert("RGB"))


def draw_pngs(scene: Image.Image) -> Iterator[OddPhoto]:
    grey = np.asarray(scene.convert("L"))
    pixels = np.asarray(scene)
    for depth in (1, 2, 4, 8):
        samples = grey >> (8 - depth)
        shown = np.round(samples * (255 / (2**depth - 1))).astype(np.uint8)
        rows = files.packed_scanlines(samples, depth)
        yield OddPhoto(f"png of {depth}-bit greys", files.png(*SIZE, rows, depth=depth), _show(shown))
        clear = files.png_chunk(b"tRNS", struct.pack(">H", samples[0, 0]))
        data = files.png(*SIZE, rows, depth=depth, before=clear)
        yield OddPhoto(
            f"png of {depth}-bit greys, a clear one", data, _show(np.where(samples == samples[0, 0], 255, shown))
        )
    wide = pixels.astype(np.uint16) * 257
    yield OddPhoto("png of 16 bits", files.png(*SIZE, files.scanlines(wide), depth=16, colour=2), scene)
    clear = files.png_chunk(b"tRNS", struct.pack(">3H", *wide[0, 0]))
    shown = np.where((pixels == pixels[0, 0]).all(axis=-1, keepdims=True), 255, pixels)
    data = files.png(*SIZE, files.scanlines(wide), depth=16, colour=2, before=clear)
    yield OddPhoto("png of 16 bits, a clear one", data, _show(shown))
    data = files.png(*SIZE, files.scanlines(grey.astype(np.uint16) * 257), depth=16)
    yield OddPhoto("png of 16-bit greys", data, _show(grey))
    palette = scene.quantize(64, dither=Image.Dither.NONE)
    yield OddPhoto("png of 64 colours", encode_image(palette, "PNG"), palette.convert("RGB"))
    data = files.png(*SIZE, files.interlaced_scanlines(pixels), colour=2, interlaced=True)
    yield OddPhoto("png interlaced", data, scene)


def _show(pixels: npt.NDArray[np.integer]) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def draw_profiles(scene: Image.Image) -> Iterator[OddPhoto]:
    linear = files.srgb_profile("GIMP built-in Linear sRGB", gamma=1.0)
    gamma = files.srgb_profile("sRGB-elle-V2-g22", gamma=2.2)
    profiles: dict[str, tuple[bytes, int, Callable[[Floats], Floats]]] = {
        "srgb": (files.srgb_profile("c2"), 1, encode_srgb),
        "linear srgb": (linear, 1, lambda light: light),
        "srgb of gamma 2.2": (gamma, 1, lambda light: light ** (1 / 2.2)),
        "p3": (files.display_p3_profile("Display P3"), 12, lambda light: light ** (1 / 2.2)),
        "p3 named srgb": (files.display_p3_profile("sRGB IEC61966-2.1"), 12, lambda light: light ** (1 / 2.2)),
    }
    options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}}
    options |= {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}}
    for name, (profile, primaries, encode) in profiles.items():
        stored = _show(store(scene, primaries, encode))
        for format_, how in options.items():
            data = encode_image(stored, format_, icc_profile=profile, **how)
            yield OddPhoto(f"{format_.lower()}, {name}", data, scene)
    broken = encode_image(scene, "PNG", icc_profile=b"not a profile")
    yield OddPhoto("png, broken profile", broken, scene)


def draw_code_points(scene: Image.Image) -> Iterator[OddPhoto]:
    points: dict[str, tuple[int, int, Callable[[Floats], Floats]]] = {
        "p3": (12, 13, encode_srgb),
        "bt.2020": (9, 13, encode_srgb),
        "pq": (9, 16, encode_pq),
        "hlg": (9, 18, encode_hlg),
    }
    for name, (primaries, transfer, encode) in points.items():
        rows = files.scanlines(store(scene, primaries, encode, depth=16).astype(np.uint16))
        chunk = files.png_chunk(b"cICP", bytes([primaries, transfer, 0, 1]))
        yield OddPhoto(f"png cicp, {name}", files.png(*SIZE, rows, depth=16, colour=2, before=chunk), scene)
        data = encode_image(_show(store(scene, primaries, encode)), "AVIF", quality=95, subsampling="4:4:4")
        at = data.index(b"nclx") + 4
        data = data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]
        yield OddPhoto(f"avif nclx, {name}", data, scene)
    for gamma in (1.0, 1.8, 2.2):
        chunk = files.png_chunk(b"gAMA", struct.pack(">I", round(100_000 / gamma)))
        codes = store(scene, 1, lambda light, gamma=gamma: light ** (1 / gamma), depth=16).astype(np.uint16)  # type: ignore[misc]
        data = files.png(*SIZE, files.scanlines(codes), depth=16, colour=2, before=chunk)
        yield OddPhoto(f"png gama {gamma}", data, scene)
    chunk = files.png_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
    chunk += files.png_chunk(b"gAMA", struct.pack(">I", 45_455))
    codes = store(scene, 12, lambda light: light ** (1 / 2.2), depth=16).astype(np.uint16)
    yield OddPhoto("png chrm p3", files.png(*SIZE, files.scanlines(codes), depth=16, colour=2, before=chunk), scene)


def draw_orientations(scene: Image.Image) -> Iterator[OddPhoto]:
    turn = Image.Transpose
    stored = [turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]
    stored += [turn.TRANSPOSE, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    for orientation in range(1, 9):
        turned = scene.transpose(stored[orientation - 2]) if orientation > 1 else scene
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format_, options in {
            "JPEG": {"quality": 92},
            "PNG": {},
            "WEBP": {"quality": 90},
            "AVIF": {"quality": 85},
        }.items():
            data = encode_image(turned, format_, exif=exif, **options)
            yield OddPhoto(f"{format_.lower()}, orientation {orientation}", data, scene)
    xmp = b"<x:xmpmeta><rdf:Description tiff:Orientation='6'/></x:xmpmeta>"
    yield OddPhoto("jpeg, orientation in xmp alone", encode_image(scene, quality=92, xmp=xmp), scene)


def draw_damage(scene: Image.Image) -> Iterator[OddPhoto]:
    """Damage in what no pixel needs."""
    jpeg = encode_image(scene, quality=92)
    tables = jpeg.index(b"\xff\xdb")
    spectrum = jpeg.index(b"\xff\xda") + 11
    damaged = {
        "padding before the end": jpeg[:-2] + bytes(700) + b"\xff\xd9",
        "bytes between segments": jpeg[:tables] + b"\0\0\0" + jpeg[tables:],
        "jfif of version 3": jpeg.replace(b"JFIF\0\1", b"JFIF\0\3"),
        "no spectrum": jpeg[:spectrum] + bytes(3) + jpeg[spectrum + 3 :],
        "film behind it": jpeg + bytes(50_000),
        "exif cut": encode_image(scene, quality=92, exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0"),
        "broken profile": encode_image(scene, quality=92, icc_profile=bytes(600)),
    }
    for name, data in damaged.items():
        yield OddPhoto(f"jpeg, {name}", data, scene)
    rows = files.scanlines(np.asarray(scene))
    bodies = {b"tEXt": b"Title\0Shoes", b"pHYs": bytes(9), b"gAMA": struct.pack(">I", 20_000)}
    bodies |= {b"iCCP": b"P3\0\0" + zlib.compress(files.display_p3_profile()), b"cICP": bytes([9, 16, 0, 1])}
    for kind, body in bodies.items():
        chunk = files.png_chunk(kind, body)
        data = files.png(*SIZE, rows, colour=2, before=chunk[:-1] + bytes([chunk[-1] ^ 1]))
        yield OddPhoto(f"png, wrong sum of {kind.decode()}", data, scene)
    for kind, length in ((b"pHYs", 8), (b"gAMA", 3), (b"cHRM", 31), (b"tRNS", 5)):
        data = files.png(*SIZE, rows, colour=2, before=files.png_chunk(kind, bytes(length)))
        yield OddPhoto(f"png, odd length of {kind.decode()}", data, scene)
    text = files.png_chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(5 << 20)))
    yield OddPhoto("png, text of 5 MiB", files.png(*SIZE, rows, colour=2, before=text), scene)
    yield OddPhoto("png, no end", files.png(*SIZE, rows, colour=2)[:-12], scene)


def draw_heics() -> Iterator[OddPhoto]:
    """The one picture that can be had without an encoder of HEVC."""
    scene = create_scene()
    yield OddPhoto("heic", files.heif(files.hevc_item()), scene)
    turned = files.heif(files.hevc_item(files.rotation_property(3)))
    yield OddPhoto("heic turned", turned, scene.transpose(Image.Transpose.ROTATE_270))
    data = files.heif(files.hevc_item(files.box(b"colr", b"nclx" + struct.pack(">HHHB", 1, 13, 6, 0x80))))
    yield OddPhoto("heic nclx, srgb", data, scene)


def decode_plainly(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def decode_whole(data: bytes) -> npt.NDArray[np.uint8]:
    return decode_photo(data, at_least_px=max(SIZE))


def measure_differences(
    photos: Sequence[OddPhoto], decode: Callable[[bytes], npt.NDArray[np.uint8]]
) -> dict[str, list[float | None]]:
    """Return the differences of each kind from its references; None where it was refused, 255 in another shape."""
    found: dict[str, list[float | None]] = {}
    for photo in photos:
        differences = found.setdefault(photo.kind, [])
        try:
            shown = decode(photo.data)
        except (PhotoError, OSError, SyntaxError, ValueError):
            differences.append(None)
            continue
        reference = np.asarray(photo.reference).astype(int)
        differences.append(float(np.abs(shown - reference).mean()) if shown.shape == reference.shape else 255.0)
    return found


def summarize(by_kind: dict[str, list[float | None]]) -> dict[str, float]:
    shown = {kind: [value for value in values if value is not None] for kind, values in by_kind.items()}
    means = [statistics.mean(values) for values in shown.values() if values]
    refused = sum(values.count(None) for values in by_kind.values())
    return {"refused": float(refused), "mean_difference": statistics.mean(means), "worst_difference": max(means)}


def main() -> None:
    options = create_parser(__doc__, scenes=4).parse_args()
    photos = [photo for scene in create_scenes(options.scenes) for photo in iterate_odd_photos(scene)]
    ours, pillow = (measure_differences(photos, decode) for decode in (decode_whole, decode_plainly))
    metrics = summarize(ours) | {f"pillow_{name}": value for name, value in summarize(pillow).items()}
    metrics |= {"photos": float(len(photos)), "kinds": float(len(ours))}
    write_result("odd_photos", metrics, {"scenes": options.scenes, "by_kind": ours, "pillow_by_kind": pillow})


def create_scenes(num_scenes: int) -> Iterator[Image.Image]:
    for number in range(num_scenes):
        photo = create_synthetic_photo(number % len(PRODUCTS), 1, np.random.default_rng(number))
        yield Image.open(io.BytesIO(photo)).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main()
