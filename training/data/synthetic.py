"""Listing photos that the project draws itself, for a demo and tests without any data set.

Product shapes with brand marks on varied backgrounds, with the faults of phone photos: tilt, uneven light, blur,
noise, tight framing, EXIF orientation, strong compression. Invented brands, invented marks.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from tqdm import tqdm

from training.data.importers import build_brands, build_taxonomy
from vision.manifest import Manifest
from vision.taxonomy import Brand, Category, Taxonomy

__all__ = ["BRANDS", "PRODUCTS", "create_synthetic_dataset", "create_synthetic_photo", "create_synthetic_taxonomy"]

_CANVAS = 480
Colour = tuple[int, int, int]
_Named = TypeVar("_Named", Category, Brand)
Drawing = ImageDraw.ImageDraw

BRANDS = ("Ringo", "Trika", "Stella", "Ondra", "Kvadro")
_JAPANESE_NAMES = {
    "Fashion": "ファッション",
    "Shoes": "靴",
    "Sneakers": "スニーカー",
    "Boots": "ブーツ",
    "Bags": "バッグ",
    "Backpacks": "リュックサック",
    "Totes": "トートバッグ",
    "Clothing": "衣類",
    "T-shirts": "Tシャツ",
    "Trousers": "ズボン",
    "Home": "インテリア・日用品",
    "Mugs": "マグカップ",
    "Bottles": "水筒・ボトル",
    "Electronics": "家電・電子機器",
    "Phones": "スマートフォン",
    "Headphones": "ヘッドホン",
    "Ringo": "リンゴ",
    "Trika": "トリカ",
    "Stella": "ステラ",
    "Ondra": "オンドラ",
    "Kvadro": "クヴァドロ",
}
"""By English name: the categories of `PRODUCTS`, and `BRANDS`."""
_CLEAN_CANVAS_SHARE = 0.15


def _draw_sneaker(d: Drawing, c: Colour, dark: Colour) -> None:
    d.polygon([(90, 300), (110, 190), (190, 180), (260, 250), (380, 275), (400, 310), (95, 315)], fill=c)
    d.rounded_rectangle((85, 305, 410, 340), 14, fill=(240, 240, 235), outline=dark, width=3)
    for x in range(190, 270, 22):
        d.line((x, 195 + (x - 190) * 0.7, x + 26, 185 + (x - 190) * 0.8), fill=(250, 250, 250), width=6)


def _draw_boot(d: Drawing, c: Colour, dark: Colour) -> None:
    d.polygon([(130, 80), (260, 80), (262, 260), (380, 285), (395, 350), (130, 350)], fill=c)
    d.rectangle((125, 345, 400, 372), fill=dark)
    d.rectangle((125, 372, 190, 400), fill=dark)


def _draw_backpack(d: Drawing, c: Colour, dark: Colour) -> None:
    d.arc((200, 40, 280, 130), 180, 360, fill=dark, width=14)
    d.rounded_rectangle((125, 85, 355, 405), 60, fill=c, outline=dark, width=5)
    d.rounded_rectangle((155, 260, 325, 385), 24, fill=_mix_colours(c, dark, 0.3), outline=dark, width=4)
    d.line((140, 170, 340, 170), fill=dark, width=5)


def _draw_tote(d: Drawing, c: Colour, dark: Colour) -> None:
    d.arc((170, 40, 310, 290), 180, 360, fill=dark, width=12)
    d.polygon([(110, 170), (370, 170), (340, 410), (140, 410)], fill=c, outline=dark)


def _draw_mug(d: Drawing, c: Colour, dark: Colour) -> None:
    d.arc((290, 170, 410, 320), 270, 90, fill=c, width=26)
    d.rectangle((130, 130, 330, 370), fill=c)
    d.ellipse((130, 105, 330, 155), fill=_mix_colours(c, dark, 0.5), outline=dark, width=3)
    d.pieslice((130, 340, 330, 400), 0, 180, fill=c)


def _draw_bottle(d: Drawing, c: Colour, dark: Colour) -> None:
    d.rectangle((215, 40, 265, 90), fill=dark)
    d.polygon([(215, 88), (265, 88), (310, 165), (170, 165)], fill=c)
    d.rounded_rectangle((170, 160, 310, 440), 20, fill=c, outline=dark, width=3)


def _draw_phone(d: Drawing, c: Colour, dark: Colour) -> None:
    d.rounded_rectangle((150, 50, 330, 430), 30, fill=c, outline=dark, width=6)
    d.rounded_rectangle((162, 68, 318, 412), 20, outline=_mix_colours(c, dark, 0.5), width=3)
    d.rounded_rectangle((170, 75, 225, 160), 14, fill=dark)
    for y in (98, 137):
        d.ellipse((184, y - 14, 212, y + 14), fill=(30, 30, 40), outline=(200, 200, 200), width=2)


def _draw_headphones(d: Drawing, c: Colour, dark: Colour) -> None:
    d.arc((110, 70, 370, 400), 180, 360, fill=c, width=26)
    for x in (85, 325):
        d.rounded_rectangle((x, 225, x + 70, 375), 28, fill=c, outline=dark, width=5)


def _draw_shirt(d: Drawing, c: Colour, dark: Colour) -> None:
    d.polygon(
        [
            (160, 90),
            (320, 90),
            (430, 170),
            (385, 235),
            (335, 205),
            (335, 420),
            (145, 420),
            (145, 205),
            (95, 235),
            (50, 170),
        ],
        fill=c,
    )
    d.pieslice((195, 60, 285, 130), 0, 180, fill=_mix_colours(c, dark, 0.6))


def _draw_trousers(d: Drawing, c: Colour, dark: Colour) -> None:
    d.polygon([(150, 60), (330, 60), (360, 430), (265, 430), (240, 180), (215, 430), (120, 430)], fill=c)
    d.rectangle((148, 55, 332, 85), fill=dark)


_DrawShape = Callable[[Drawing, Colour, Colour], None]


@dataclass(frozen=True)
class _Product:
    path: tuple[str, ...]
    shape: _DrawShape
    mark_at: tuple[int, int]
    mark_px: int
    branded: bool = True


PRODUCTS = (
    _Product(("Fashion", "Shoes", "Sneakers"), _draw_sneaker, (175, 265), 54),
    _Product(("Fashion", "Shoes", "Boots"), _draw_boot, (195, 165), 70),
    _Product(("Fashion", "Bags", "Backpacks"), _draw_backpack, (240, 215), 66),
    _Product(("Fashion", "Bags", "Totes"), _draw_tote, (240, 290), 100, branded=False),
    _Product(("Fashion", "Clothing", "T-shirts"), _draw_shirt, (240, 230), 96),
    _Product(("Fashion", "Clothing", "Trousers"), _draw_trousers, (180, 130), 50, branded=False),
    _Product(("Home", "Mugs"), _draw_mug, (230, 250), 100),
    _Product(("Home", "Bottles"), _draw_bottle, (240, 290), 86),
    _Product(("Electronics", "Phones"), _draw_phone, (240, 270), 70),
    _Product(("Electronics", "Headphones"), _draw_headphones, (120, 300), 46),
)


def _draw_ring(d: Drawing, x: int, y: int, r: float, ink: Colour) -> None:
    d.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=max(4, int(r / 3)))


def _draw_triangle(d: Drawing, x: int, y: int, r: float, ink: Colour) -> None:
    d.polygon([(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill=ink)


def _draw_star(d: Drawing, x: int, y: int, r: float, ink: Colour) -> None:
    points = []
    for i in range(10):
        radius = r if i % 2 == 0 else r * 0.42
        angle = -math.pi / 2 + i * math.pi / 5
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    d.polygon(points, fill=ink)


def _draw_wave(d: Drawing, x: int, y: int, r: float, ink: Colour) -> None:
    for dy in (-0.6, 0.0, 0.6):
        points = [(x + r * (t - 6) / 6, y + r * dy + r * 0.25 * math.sin(t)) for t in range(13)]
        d.line(points, fill=ink, width=max(4, int(r / 4)))


def _draw_squares(d: Drawing, x: int, y: int, r: float, ink: Colour) -> None:
    for sx, sy in ((-1, -1), (1, 1), (-1, 1)):
        d.rectangle(
            (x + sx * r / 2 - r * 0.4, y + sy * r / 2 - r * 0.4, x + sx * r / 2 + r * 0.4, y + sy * r / 2 + r * 0.4),
            fill=ink,
        )


_BRAND_MARKS = (_draw_ring, _draw_triangle, _draw_star, _draw_wave, _draw_squares)


def create_synthetic_taxonomy() -> Taxonomy:
    """The categories of `PRODUCTS` and the `BRANDS`, with English and Japanese names."""
    taxonomy = build_taxonomy("drawn-2", [product.path for product in PRODUCTS], build_brands(BRANDS))
    return replace(
        taxonomy,
        categories=tuple(map(_add_japanese_name, taxonomy.categories)),
        brands=tuple(map(_add_japanese_name, taxonomy.brands)),
    )


def _add_japanese_name(named: _Named) -> _Named:
    return replace(named, names={**named.names, "ja": _JAPANESE_NAMES[named.name]})


def create_synthetic_photo(product: int, brand: int, rng: np.random.Generator, *, with_mark: bool = True) -> bytes:
    """JPEG bytes of one photo of `PRODUCTS[product]`; `brand` counts from 1 in `BRANDS`, 0 is none."""
    colour = _choose_colour(rng)
    dark = _mix_colours(colour, (0, 0, 0), 0.55)
    layer = Image.new("RGBA", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(layer)
    what = PRODUCTS[product]
    what.shape(pen, colour, dark)
    if brand and with_mark:
        ink = (250, 250, 245) if sum(colour) < 380 else (20, 20, 25)
        x, y = what.mark_at
        _BRAND_MARKS[brand - 1](pen, x, y, what.mark_px / 2, ink)
    layer = layer.rotate(float(rng.normal(0, 9)), Image.Resampling.BILINEAR)
    scale = float(rng.uniform(0.7, 1.15))
    side = int(_CANVAS * scale)
    layer = layer.resize((side, side), Image.Resampling.BICUBIC)
    photo = _create_background(rng)
    left, top = (int((_CANVAS - side) / 2 + rng.normal(0, 28)) for _ in range(2))
    photo.paste(layer, (left, top), layer)
    return _encode_as_phone_photo(photo, rng)


def create_synthetic_dataset(
    folder: Path, *, listings: dict[str, int], seed: int = 0, photos_per_listing: Sequence[int] = (1, 2, 3)
) -> tuple[Manifest, Taxonomy]:
    """Draw listings into `folder/photos` and return their manifest (relative paths) and taxonomy.

    Of a branded listing's photos the first always shows the mark and the others do so in two of three cases; one
    branded listing in ten carries no brand label, as sellers leave it out.

    Args:
        listings: split to number of listings.
    """
    taxonomy = create_synthetic_taxonomy()
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for split, count in listings.items():
        for number in tqdm(range(count), desc=f"drawing {split}", unit="listing", disable=None):
            product = number % len(PRODUCTS)
            what = PRODUCTS[product]
            brand = int(rng.integers(0, len(BRANDS) + 1)) if what.branded else 0
            label = "" if brand and rng.random() < 0.1 else taxonomy.brand_labels[brand]
            for photo in range(int(rng.choice(np.asarray(photos_per_listing)))):
                name = f"photos/{split}-{number:05d}-{photo}.jpg"
                with_mark = photo == 0 or bool(rng.random() < 2 / 3)
                (folder / name).write_bytes(create_synthetic_photo(product, brand, rng, with_mark=with_mark))
                rows.append(
                    {
                        "listing_id": f"{split}-{number:05d}",
                        "photo": name,
                        "category": " > ".join(what.path),
                        "brand": label,
                        "split": split,
                    }
                )
    return Manifest.from_rows(rows, str(folder)), taxonomy


def _choose_colour(rng: np.random.Generator) -> Colour:
    return tuple(int(v) for v in rng.integers(25, 230, 3))  # type: ignore[return-value]  # three by construction


def _mix_colours(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(int(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]  # three by construction


def _create_background(rng: np.random.Generator) -> Image.Image:
    base = np.asarray(_choose_colour(rng), dtype=np.float64)
    if rng.random() < _CLEAN_CANVAS_SHARE:
        base = np.full(3, 245.0)
    grid = np.linspace(-1, 1, _CANVAS)
    tilt = rng.normal(0, 25, 2)
    shade = tilt[0] * grid[:, None] + tilt[1] * grid[None, :]
    kind = int(rng.integers(0, 4))
    if kind == 1:  # boards
        shade = shade + 14 * np.sign(np.sin(grid[:, None] * rng.uniform(8, 25) + rng.uniform(0, 6)))
    elif kind == 2:  # cloth
        shade = shade + 10 * np.sin(grid[:, None] * 90) * np.sin(grid[None, :] * 90)
    photo = Image.fromarray((base + shade[..., None]).clip(0, 255).astype(np.uint8))
    if kind == 3:  # a cluttered room
        pen = ImageDraw.Draw(photo)
        for _ in range(int(rng.integers(3, 9))):
            (x, y), (w, h) = rng.integers(-60, _CANVAS, 2), rng.integers(40, _CANVAS, 2)
            pen.rectangle((int(x), int(y), int(x) + int(w) // 2, int(y) + int(h) // 2), fill=_choose_colour(rng))
        photo = photo.filter(ImageFilter.GaussianBlur(float(rng.uniform(4, 10))))
    return photo


def _encode_as_phone_photo(photo: Image.Image, rng: np.random.Generator) -> bytes:
    photo = ImageEnhance.Brightness(photo).enhance(float(rng.uniform(0.6, 1.3)))
    photo = ImageEnhance.Color(photo).enhance(float(rng.uniform(0.6, 1.3)))
    if rng.random() < 0.3:
        photo = photo.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))
    noise = rng.normal(0, rng.uniform(1, 9), (_CANVAS, _CANVAS, 1))
    photo = Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8))
    crop = int(rng.integers(0, 70))
    photo = photo.crop((crop // 2, 0, _CANVAS - crop // 2, _CANVAS))
    exif = Image.Exif()
    if rng.random() < 0.3:  # held sideways: the sensor's rows are not the scene's
        photo = photo.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=int(rng.integers(45, 93)), exif=exif)
    return out.getvalue()
