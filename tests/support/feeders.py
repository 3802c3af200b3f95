"""Photos of one colour, whose number the pixels tell, for feeders."""

from pathlib import Path

from PIL import Image

from vision.images import Preprocessing

PREPROCESSING = Preprocessing(input_px=32)


def write_numbered_photos(folder: Path, numbers) -> list[str]:
    """Write a photo for each number up to 255, its red; return the paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in numbers]
    for path, number in zip(paths, numbers, strict=True):
        Image.new("RGB", (64, 64), (number, 7, 9)).save(path)
    return [str(path) for path in paths]


def read_numbers(photos_nhwc) -> list[int]:
    assert (photos_nhwc == photos_nhwc[:, :1, :1]).all()
    return photos_nhwc[:, 0, 0, 0].tolist()
