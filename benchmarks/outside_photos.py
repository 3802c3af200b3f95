"""Photos that show no product: drawn by code, as people send them by mistake."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["FINAL_KIND", "KINDS", "draw_outside_photos"]

SIDE_PX = 320
FINAL_KIND = "plots"
"""For the final figures alone: nothing is chosen or fitted on it."""
_LETTERS = list("abcdefghijklmnopqrstuvwxyz      .,")

Draw = Callable[[np.random.Generator], Image.Image]


def _draw_noise(rng: np.random.Generator) -> Image.Image:
    """A sensor's noise, from fine to coarse."""
    grain = int(rng.choice([1, 2, 4, 8, 16]))
    values = rng.normal(rng.uniform(60, 200), rng.uniform(20, 80), (SIDE_PX // grain, SIDE_PX // grain, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)


def _draw_wall(rng: np.random.Generator) -> Image.Image:
    """A plain or a tiled wall, lit from one side."""
    colour = rng.uniform(80, 240, 3)
    across, down = np.meshgrid(np.linspace(-1, 1, SIDE_PX), np.linspace(-1, 1, SIDE_PX))
    light = rng.uniform(-40, 40) * across + rng.uniform(-40, 40) * down
    values = colour + light[..., None] + rng.normal(0, rng.uniform(1, 8), (SIDE_PX, SIDE_PX, 1))
    photo = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        draw, tile = ImageDraw.Draw(photo), int(rng.integers(24, 110))
        line = tuple(int(v) for v in (colour * 0.7))
        for at in range(0, SIDE_PX, tile):
            draw.line([(0, at), (SIDE_PX, at)], fill=line, width=int(rng.integers(1, 4)))
            draw.line([(at, 0), (at, SIDE_PX)], fill=line, width=int(rng.integers(1, 4)))
    return photo.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.5))))


def _draw_text(rng: np.random.Generator) -> Image.Image:
    """A page of text, a little askew."""
    paper = int(rng.integers(200, 256))
    photo = Image.new("RGB", (SIDE_PX, SIDE_PX), (paper, paper, int(paper * rng.uniform(0.85, 1))))
    draw, size = ImageDraw.Draw(photo), int(rng.integers(9, 26))
    font = ImageFont.load_default(size)
    for top in range(10, SIDE_PX, int(size * 1.4)):
        draw.text((12, top), "".join(rng.choice(_LETTERS, 60)), fill=(20, 20, 30), font=font)
    return photo.rotate(float(rng.uniform(-12, 12)), fillcolor=(120, 110, 100), resample=Image.Resampling.BILINEAR)


def _draw_screenshot(rng: np.random.Generator) -> Image.Image:
    """Bars, buttons and lines of text of a program."""
    dark = rng.random() < 0.4
    background, ink = ((30, 32, 40), (220, 220, 225)) if dark else ((245, 246, 248), (40, 40, 48))
    photo = Image.new("RGB", (SIDE_PX, SIDE_PX), background)
    draw, font = ImageDraw.Draw(photo), ImageFont.load_default(11)
    accent = tuple(int(v) for v in rng.integers(30, 230, 3))
    draw.rectangle((0, 0, SIDE_PX, int(rng.integers(18, 50))), fill=accent)
    top = 60
    while top < SIDE_PX - 20:
        left, height = int(rng.integers(8, 60)), int(rng.integers(12, 60))
        if rng.random() < 0.4:
            draw.rounded_rectangle((left, top, left + int(rng.integers(50, 240)), top + height), 6, outline=ink)
        draw.text((left + 6, top + 2), "".join(rng.choice(_LETTERS, int(rng.integers(8, 40)))), fill=ink, font=font)
        top += height + 8
    return photo


def _draw_plot(rng: np.random.Generator) -> Image.Image:
    """A chart of curves or bars on white."""
    photo = Image.new("RGB", (SIDE_PX, SIDE_PX), (255, 255, 255))
    draw = ImageDraw.Draw(photo)
    draw.line([(30, 10), (30, 290), (310, 290)], fill=(0, 0, 0), width=2)
    for _ in range(int(rng.integers(1, 5))):
        colour = tuple(int(v) for v in rng.integers(0, 220, 3))
        values = np.cumsum(rng.normal(0, 12, 28)) + rng.uniform(80, 240)
        if rng.random() < 0.5:
            draw.line([(30 + 10 * i, float(v)) for i, v in enumerate(values)], fill=colour, width=2)
        else:
            for i, v in enumerate(values):
                draw.rectangle((32 + 10 * i, min(float(v), 289.0), 38 + 10 * i, 290), fill=colour)
    return photo


KINDS: dict[str, Draw] = {
    "noise": _draw_noise,
    "walls": _draw_wall,
    "text": _draw_text,
    "screenshots": _draw_screenshot,
    FINAL_KIND: _draw_plot,
}


def draw_outside_photos(kind: str, *, num_photos: int, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Return photos of a kind of `KINDS`, (320, 320, 3) uint8 sRGB each."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    return [np.asarray(KINDS[kind](rng)) for _ in range(num_photos)]
