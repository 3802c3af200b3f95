"""Rendering of the HTML reports and the model card from the templates beside this module.

An HTML report is one file that loads nothing, and can be read on a phone and by keyboard.
"""

import base64
import functools
import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import jinja2
from markupsafe import Markup
from PIL import Image
from tqdm import tqdm

from vision.errors import PhotoError
from vision.images import decode_photo
from vision.photo_files import read_photo_with_retries
from vision.runtime.cpus import count_usable_cores
from vision.runtime.wording import format_count
from vision.suggestion import format_confidence

__all__ = [
    "create_thumbnail",
    "create_thumbnails",
    "encode_photo_uri",
    "format_percent",
    "format_points",
    "format_signed",
    "is_measured",
    "render",
]


def render(template: str, **values: object) -> str:
    """The text of a template; what an HTML template is given is escaped, unless it is `markupsafe.Markup`.

    An HTML page has one script, the report's own; its content security policy lets no other run.
    """
    environment = _create_environment()
    if template.endswith(".html"):
        script = environment.get_template("report.js").render()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        values |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment.get_template(template).render(values)


def is_measured(value: float | None) -> bool:
    """Whether a figure is neither NaN nor the null that JSON has in its place."""
    return value is not None and value == value


def format_points(share: float | None) -> str:
    """A share in percent, without the sign."""
    return f"{100 * share:.1f}" if share is not None and is_measured(share) else "–"


def format_percent(share: float | None) -> str:
    """A share in percent, with the sign."""
    return f"{share:.1%}" if share is not None and is_measured(share) else "–"


def format_signed(share: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share + 0.0:+.1f}" if share is not None and is_measured(share) else "–"


@functools.cache
def _create_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.reporting"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "counted": format_count,
        "percent": format_percent,
        "points": format_points,
        "signed": format_signed,
        "confidence": format_confidence,
    }
    environment.tests["measured"] = is_measured
    return environment


def create_thumbnail(url: str, *, max_px: int) -> str | None:
    """A photo as a small JPEG in a data URI; None where it cannot be used."""
    try:
        photo = Image.fromarray(decode_photo(read_photo_with_retries(url), at_least_px=max_px))
    except (OSError, PhotoError):
        return None
    photo.thumbnail((max_px, max_px))
    return encode_photo_uri(photo)


def encode_photo_uri(photo: Image.Image) -> str:
    """A photo as a JPEG in a data URI."""
    out = io.BytesIO()
    photo.save(out, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def create_thumbnails(urls: Iterable[str], *, max_px: int) -> dict[str, str | None]:
    """The `create_thumbnail` of each URL."""
    ordered = sorted(set(urls))
    with ThreadPoolExecutor(count_usable_cores()) as pool:
        made = pool.map(functools.partial(create_thumbnail, max_px=max_px), ordered)
        return dict(zip(ordered, tqdm(made, total=len(ordered), unit="photo", disable=None), strict=True))
