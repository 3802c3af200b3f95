"""An HTML page of suspected labels, with photos."""

import json
from collections.abc import Mapping, Sequence

from training.data.label_errors import FieldLabelErrors, SuspectedLabel
from training.reporting.glossary import choose_terms
from training.reporting.page import create_thumbnails, render
from vision.runtime.wording import format_count

__all__ = ["WEAK_BELOW", "build_suspects_verdict", "render_suspects"]

WEAK_BELOW = 0.8
"""Agreement with the labels below which most suspects are mistakes of the model."""
_SUSPECT_PX = 240
_EXAMPLE_PX = 112


def render_suspects(
    found: Sequence[FieldLabelErrors], provenance: Mapping[str, object], *, title: str, max_shown: int
) -> str:
    """The page's text, with at most `max_shown` suspects of each field.

    Args:
        found: what `find_suspects` returns.
        provenance: what the suspects were found in and by, by name.
        title: the page's heading.
        max_shown: suspects of each field.
    """
    shown = [(part, suspect) for part in found for suspect in part.suspects[:max_shown]]
    examples = {url for part, suspect in shown for url in part.examples.get(suspect.suggested, ())}
    return render(
        "label_errors.html",
        title=title,
        fields=found,
        max_shown=max_shown,
        weak_below=WEAK_BELOW,
        manifest_row=_build_manifest_row,
        facts=[(name.replace("_", " "), value) for name, value in provenance.items()],
        verdict_sentences=build_suspects_verdict(found),
        terms=choose_terms("suspected label"),
        large=create_thumbnails((suspect.photo for _, suspect in shown), max_px=_SUSPECT_PX),
        small=create_thumbnails(examples, max_px=_EXAMPLE_PX),
    )


def build_suspects_verdict(found: Sequence[FieldLabelErrors]) -> list[str]:
    """Sentences for whoever corrects the labels, the conclusion first."""
    num = sum(len(part.suspects) for part in found)
    sentences = [
        f"{format_count(num, 'suspected label')}: look at each photo, and correct the manifest where "
        "the label is wrong."
    ]
    for part in found:
        if part.num_compared and part.accuracy < WEAK_BELOW:
            sentences.append(
                f"Too weak to accuse: the model agrees with only {part.accuracy:.1%} of the {part.field} labels, so "
                f"the {format_count(len(part.suspects), 'suspect')} may well be its own mistakes. Try another --model."
            )
    return sentences


def _build_manifest_row(suspect: SuspectedLabel) -> str:
    """The photo as a row of a manifest in JSON lines, with the label that is suspected."""
    row = {"listing_id": suspect.listing_id, "photo": suspect.photo, "category": "", "brand": ""}
    return json.dumps(row | {suspect.field: suspect.given}, ensure_ascii=False)
