"""A page of suspected labels for people."""

from collections.abc import Sequence
from html import escape

from training.data.label_errors import FieldSuspects, Suspect
from training.reporting.page import image, page, thumbnails

__all__ = ["suspects_page"]

_SUSPECT_PX = 240
_EXAMPLE_PX = 112


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
    large, small = thumbnails(photos, max_px=_SUSPECT_PX), thumbnails(examples, max_px=_EXAMPLE_PX)
    links = " · ".join(f'<a href="#{part.field}">{part.field}: {len(part.suspects)}</a>' for part in found)
    sections = "".join(_section(part, shown[part.field], large, small) for part in found)
    body = (
        "<p>Each label below was given to a photo that looks more like another label's. "
        "Some are mistakes, some are hard photos: look, and correct the manifest where the label is wrong.</p>\n"
        f'<nav aria-label="Fields"><p>{links}</p></nav>\n{sections}'
    )
    return page(title=title, body=body)


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
    alike = "".join(image(small[url], f"Example of {suspect.suggested}") for url in examples)
    return (
        f'<li tabindex="0">\n{image(large[suspect.photo], f"Photo labelled {suspect.given}")}\n'
        f"<h3>{suspect.rank}. {given} → {suggested}</h3>\n"
        f"<p>given {suspect.given_probability:.1%}, suggested {suspect.suggested_probability:.1%}</p>\n"
        f'<p class="examples">{alike}<br><span class="small">labelled {suggested}</span></p>\n'
        f'<p class="small">row {suspect.row}, listing {escape(suspect.listing_id)}</p>\n'
        f"<p><code>{escape(suspect.photo)}</code></p>\n</li>\n"
    )
