"""Photos to send: synthetic ones of a phone's size, or files."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["create_phone_photos", "read_photos"]

NUM_SYNTHETIC = 64
_NOISE_STD = 7.65
"""Standard deviation of the noise in levels of 255; with the quality it sets the bytes, which decoding time follows."""
_JPEG_QUALITY = 80


def create_phone_photos(numbers: Iterable[int] = range(NUM_SYNTHETIC)) -> list[bytes]:
    """Return synthetic photos as an app uploads them after scaling: 1440x1080 JPEGs of about 300 KB."""
    return [_create_phone_photo(number) for number in numbers]


def read_photos(folder: Path) -> list[bytes]:
    """Return all files of a folder, sorted by name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    if not paths:
        raise ValueError(f"{folder} holds no files; give a folder of photos")
    return [path.read_bytes() for path in paths]


def _create_phone_photo(number: int) -> bytes:
    from training.data.synthetic import PRODUCTS, create_synthetic_photo

    rng = np.random.default_rng(number)
    drawn = (
        Image.open(io.BytesIO(create_synthetic_photo(number % len(PRODUCTS), 1, rng)))
        .convert("RGB")
        .resize((1440, 1080))
    )
    grain = rng.normal(0, _NOISE_STD, (1080, 1440, 1))
    out = io.BytesIO()
    Image.fromarray((np.asarray(drawn) + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()
