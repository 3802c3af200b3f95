"""What every page made for people shares: one file, no requests, readable on a phone and by keyboard."""

import base64
import functools
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from html import escape

from PIL import Image
from tqdm import tqdm

from vision.errors import PhotoError
from vision.images import decode_photo
from vision.manifest import read_photo
from vision.runtime.cpus import usable_cores

__all__ = ["image", "page", "photo_uri", "thumbnail_uri", "thumbnails"]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif }
body { max-width: 70rem; margin: 0 auto; padding: 1rem }
ol { list-style: none; padding: 0; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
li { border: 1px solid #8886; border-radius: .5rem; padding: .75rem; overflow-wrap: anywhere }
li:focus-visible, a:focus-visible { outline: 3px solid #27f; outline-offset: 2px }
li > img { display: block; width: 100%; height: 15rem; object-fit: contain; background: #8882 }
h3 { font-size: 1rem; margin: .5rem 0 }
p { margin: .4rem 0 }
.examples img { height: 6rem; margin-right: .3rem }
code, .small { font-size: .85rem }
.missing { display: inline-block; padding: 1rem; border: 1px dashed #888a }
"""  # noqa: E501  # a rule a line


def page(*, title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML that follows the heading; whoever makes it escapes what is not his own.
        style: CSS beyond what every page has.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Names come from a manifest that anyone may have written; nothing on the page may load or run.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def thumbnail_uri(url: str, *, max_px: int) -> str | None:
    """A photo as a small JPEG in a data URI; None where it cannot be used."""
    try:
        photo = Image.fromarray(decode_photo(read_photo(url), at_least_px=max_px))
    except (OSError, PhotoError):
        return None
    photo.thumbnail((max_px, max_px))
    return photo_uri(photo)


def photo_uri(photo: Image.Image) -> str:
    """A photo as a JPEG in a data URI."""
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def thumbnails(urls: Iterable[str], *, max_px: int) -> dict[str, str | None]:
    """`thumbnail_uri` of each URL."""
    ordered = sorted(set(urls))
    with ThreadPoolExecutor(usable_cores()) as pool:
        made = pool.map(functools.partial(thumbnail_uri, max_px=max_px), ordered)
        return dict(zip(ordered, tqdm(made, total=len(ordered), unit="photo", disable=None), strict=True))


def image(uri: str | None, alt: str) -> str:
    """An image, or words in its place where there is none."""
    if uri is None:
        return f'<span class="missing">{escape(alt)}: cannot be shown</span>'
    return f'<img src="{uri}" alt="{escape(alt)}">'
