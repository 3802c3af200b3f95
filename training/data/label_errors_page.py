"""An HTML page of suspected labels, with photos."""

from collections.abc import Sequence

from training.data.label_errors import FieldLabelErrors
from training.reporting.page import create_thumbnails, render

__all__ = ["render_suspects"]

_SUSPECT_PX = 240
_EXAMPLE_PX = 112


def render_suspects(found: Sequence[FieldLabelErrors], *, title: str, max_shown: int) -> str:
    """The page's text, with at most `max_shown` suspects of each field."""
    shown = [(part, suspect) for part in found for suspect in part.suspects[:max_shown]]
    examples = {url for part, suspect in shown for url in part.examples.get(suspect.suggested, ())}
    return render(
        "label_errors.html",
        title=title,
        fields=found,
        max_shown=max_shown,
        large=create_thumbnails((suspect.photo for _, suspect in shown), max_px=_SUSPECT_PX),
        small=create_thumbnails(examples, max_px=_EXAMPLE_PX),
    )
