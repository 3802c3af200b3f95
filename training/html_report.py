"""A page of suspected labels for people: one file, no requests, readable on a phone and by keyboard."""

import base64
import functools
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape

from PIL import Image
from tqdm import tqdm

from training.suspects import FieldSuspects, Suspect
from vision.errors import PhotoError
from vision.images import decode_photo
from vision.manifest import photo_bytes

__all__ = ["suspects_page", "thumbnail_uri"]

_SUSPECT_PX = 240
_EXAMPLE_PX = 112

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


def suspects_page(found: Sequence[FieldSuspects], *, title: str, max_shown: int) -> str:
    """The page's text, with at most `max_shown` suspects of each field."""
    shown = {part.field: part.suspects[:max_shown] for part in found}
    photos = {suspect.photo for suspects in shown.values() for suspect in suspects}
    examples = {
        url
        for part in found
        for label in {suspect.suggested for suspect in shown[part.field]}
        for url in part.examples.get(label, ())
    }
    large, small = _thumbnails(photos, max_px=_SUSPECT_PX), _thumbnails(examples, max_px=_EXAMPLE_PX)
    links = " · ".join(f'<a href="#{part.field}">{part.field}: {len(part.suspects)}</a>' for part in found)
    sections = "".join(_section(part, shown[part.field], large, small) for part in found)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Names come from a manifest that anyone may have written; nothing on the page may load or run.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n<p>Each label below was given to a photo that looks more like another label's. "
        "Some are mistakes, some are hard photos: look, and correct the manifest where the label is wrong.</p>\n"
        f'<nav aria-label="Fields"><p>{links}</p></nav>\n{sections}</main>\n</body>\n</html>\n'
    )


def thumbnail_uri(url: str, *, max_px: int) -> str | None:
    """A photo as a small JPEG in a data URI; None where it cannot be used."""
    try:
        photo = Image.fromarray(decode_photo(photo_bytes(url), at_least_px=max_px))
    except (OSError, PhotoError):
        return None
    photo.thumbnail((max_px, max_px))
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _thumbnails(urls: set[str], *, max_px: int) -> dict[str, str | None]:
    ordered = sorted(urls)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = pool.map(functools.partial(thumbnail_uri, max_px=max_px), ordered)
        return dict(zip(ordered, tqdm(made, total=len(ordered), unit="photo", disable=None), strict=True))


def _section(
    part: FieldSuspects, shown: Sequence[Suspect], large: dict[str, str | None], small: dict[str, str | None]
) -> str:
    cards = "".join(_card(suspect, part.examples.get(suspect.suggested, ()), large, small) for suspect in shown)
    facts = [f"{part.num_judged} photos compared, {len(part.suspects)} suspected, the first {len(shown)} shown."]
    if part.num_judged:
        facts.append(f"{part.accuracy:.1%} of the labels compared are also the likeliest.")
    if part.num_unlabelled:
        facts.append(f"{part.num_unlabelled} photos have no label.")
    if part.num_inner:
        facts.append(f"{part.num_inner} carry an inner category, which is no mistake.")
    if part.num_rare:
        rare = ", ".join(part.rare_classes)
        facts.append(f"Not looked at, for too few listings to judge: {part.num_rare} photos of {rare}.")
    return (
        f'<section aria-labelledby="{part.field}">\n<h2 id="{part.field}">{part.field.title()}</h2>\n'
        f"<p>{escape(' '.join(facts))}</p>\n<ol>\n{cards}</ol>\n</section>\n"
    )


def _card(suspect: Suspect, examples: Sequence[str], large: dict[str, str | None], small: dict[str, str | None]) -> str:
    given, suggested = escape(suspect.given), escape(suspect.suggested)
    alike = "".join(_img(small[url], f"Example of {suspect.suggested}") for url in examples)
    return (
        f'<li tabindex="0">\n{_img(large[suspect.photo], f"Photo labelled {suspect.given}")}\n'
        f"<h3>{suspect.rank}. {given} → {suggested}</h3>\n"
        f"<p>given {suspect.given_probability:.1%}, suggested {suspect.suggested_probability:.1%}</p>\n"
        f'<p class="examples">{alike}<br><span class="small">labelled {suggested}</span></p>\n'
        f'<p class="small">row {suspect.row}, listing {escape(suspect.listing_id)}</p>\n'
        f"<p><code>{escape(suspect.photo)}</code></p>\n</li>\n"
    )


def _img(uri: str | None, alt: str) -> str:
    if uri is None:
        return f'<span class="missing">{escape(alt)}: cannot be shown</span>'
    return f'<img src="{uri}" alt="{escape(alt)}">'
