"""A comparison of two models for people to look through: figures, and the listings that only one of them gets right."""

from collections.abc import Sequence
from html import escape

from training.comparison.common_listings import LeftOut, SharedListings
from training.comparison.compare import CategoryChange, Comparison, Coverage, FieldChange, Flip
from training.comparison.text_report import ComparedModels, GateVerdict, testing_note, verdict_lines
from training.reporting.page import image, page, thumbnails

__all__ = ["comparison_page"]

_PHOTO_PX = 240
_SMALL_PX = 96
_MAX_SMALL = 4
_STYLE = """
.table { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0 }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
"""


def comparison_page(
    compared: ComparedModels,
    comparison: Comparison,
    listings: SharedListings,
    verdict: GateVerdict | None,
    *,
    max_shown: int,
) -> str:
    """The page's text, with at most `max_shown` flips of each field and direction."""
    groups = {
        (field, won): [flip for flip in comparison.flips if (flip.field, flip.won) == (field, won)]
        for field in ("category", "brand")
        for won in (False, True)
    }
    shown = {key: flips[:max_shown] for key, flips in groups.items()}
    photos = {flip.listing: listings.photos_of(flip.listing) for flips in shown.values() for flip in flips}
    large = thumbnails([urls[0] for urls in photos.values()], max_px=_PHOTO_PX)
    small = thumbnails([url for urls in photos.values() for url in urls[1 : 1 + _MAX_SMALL]], max_px=_SMALL_PX)
    links = " · ".join(
        f'<a href="#{_anchor(field, won)}">{escape(_heading(field, won))}: {len(flips)}</a>'
        for (field, won), flips in groups.items()
    )
    sections = "".join(
        _section(field, won, len(groups[field, won]), flips, photos, listings, large, small)
        for (field, won), flips in shown.items()
    )
    body = (
        f"<p>A: {escape(compared.name_a)}, taxonomy {escape(compared.taxonomy_a)}<br>\n"
        f"B: {escape(compared.name_b)}, taxonomy {escape(compared.taxonomy_b)}<br>\n"
        f"{comparison.num_listings} listings with {len(listings.photo_urls)} usable photos, split "
        f"{escape(compared.split)} of <code>{escape(compared.manifest)}</code></p>\n"
        f"{_verdict(verdict)}{_fields(comparison.fields)}{_coverage(comparison)}{_categories(comparison.categories)}"
        f"{_left_out(comparison.left_out)}"
        f'<nav aria-label="Flips"><p>{links}</p></nav>\n{sections}'
    )
    return page(title="Two models on the same listings", body=body, style=_STYLE)


def _verdict(verdict: GateVerdict | None) -> str:
    if verdict is None:
        return ""
    first, *rest = verdict_lines(verdict)
    rules = "<br>\n".join(escape(line.strip()) for line in rest)
    heading = f'<h2 id="gate">{escape(first.capitalize())}</h2>'
    return f'<section aria-labelledby="gate">\n{heading}\n<p>{rules}</p>\n</section>\n'


def _fields(fields: Sequence[FieldChange]) -> str:
    rows = [
        (
            field.name,
            str(field.counts.num_listings),
            _percent(field.counts.accuracy_a),
            _percent(field.counts.accuracy_b),
            _signed(field.counts.change),
            f"{_signed(field.interval[0])} to {_signed(field.interval[1])}",
            str(field.counts.num_lost),
            str(field.counts.num_won),
            f"{field.counts.p_value:.3g}",
        )
        for field in fields
    ]
    heads = ("Field", "Listings", "A right", "B right", "B − A", "95 % interval", "Lost", "Won", "p (McNemar)")
    note = (
        "<p>Lost: A is right and B is wrong; won: the other way round. p: how often two equally good models would "
        "differ at least so much.</p>\n"
    )
    return _table("Accuracy per listing", heads, rows) + note


def _coverage(comparison: Comparison) -> str:
    rows = [(change.name, *_filled(change.a), *_filled(change.b)) for change in comparison.coverage]
    heads = ("Field", "A filled", "A right", "A promises", "B filled", "B right", "B promises")
    return _table("Filled in without asking, and right when filled", heads, rows)


def _filled(coverage: Coverage) -> tuple[str, str, str]:
    promise = "nothing" if coverage.threshold is None or coverage.alpha is None else f"{1 - coverage.alpha:.0%}"
    return _percent(coverage.coverage), _percent(coverage.precision), promise


def _categories(categories: Sequence[CategoryChange]) -> str:
    changed = [change for change in categories if change.counts.num_lost or change.counts.num_won]
    rows = [
        (
            change.name,
            str(change.counts.num_listings),
            _percent(change.counts.accuracy_a),
            _percent(change.counts.accuracy_b),
            _signed(change.counts.change),
            f"{_signed(change.interval[0])} to {_signed(change.interval[1])}",
            str(change.counts.num_lost),
            str(change.counts.num_won),
            f"{change.counts.p_value:.3g}",
            f"{change.p_holm:.3g}",
        )
        for change in changed
    ]
    heads = ("Category", "Listings", "A right", "B right", "B − A", "95 % interval", "Lost", "Won", "p", "p (Holm)")
    note = f"<p>{escape(testing_note(categories))}. {len(categories) - len(changed)} did not change.</p>\n"
    return _table("Categories that changed, the largest drop first", heads, rows) + note


def _left_out(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return ""
    rows = [(label.label, label.field, label.reason, str(label.num_listings)) for label in left_out]
    return _table("Labels that are not compared", ("Label", "Field", "Why", "Listings"), rows)


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows
    )
    # A scrolling box must be reachable by keyboard.
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n"
        "</table>\n</div>\n"
    )


def _section(
    field: str,
    won: bool,
    num_flips: int,
    shown: Sequence[Flip],
    photos: dict[int, tuple[str, ...]],
    listings: SharedListings,
    large: dict[str, str | None],
    small: dict[str, str | None],
) -> str:
    cards = "".join(_card(flip, photos[flip.listing], listings, large, small) for flip in shown)
    facts = f"{num_flips} listings, the surest mistakes first"
    if num_flips > len(shown):
        facts += f"; the first {len(shown)} are shown, compare.json has all"
    anchor = _anchor(field, won)
    return (
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(_heading(field, won))}</h2>\n'
        f"<p>{escape(facts)}.</p>\n<ol>\n{cards}</ol>\n</section>\n"
    )


def _card(
    flip: Flip,
    photos: Sequence[str],
    listings: SharedListings,
    large: dict[str, str | None],
    small: dict[str, str | None],
) -> str:
    listing_id = listings.listing_ids[flip.listing]
    more = "".join(image(small[url], f"Another photo of {listing_id}") for url in photos[1 : 1 + _MAX_SMALL])
    answers = "<br>\n".join(
        f"{name}: {escape(answer)} ({probability:.1%}{', filled in' if filled else ''}) {'✓' if right else '✗'}"
        for name, answer, probability, filled, right in (
            ("A", flip.answer_a, flip.probability_a, flip.filled_a, not flip.won),
            ("B", flip.answer_b, flip.probability_b, flip.filled_b, flip.won),
        )
    )
    return (
        f'<li tabindex="0">\n{image(large[photos[0]], f"Photo of {listing_id}")}\n'
        f"<h3>{escape(flip.truth)}</h3>\n<p>{answers}</p>\n"
        + (f'<p class="examples">{more}</p>\n' if more else "")
        + f'<p class="small">listing {escape(listing_id)}</p>\n<p><code>{escape(photos[0])}</code></p>\n</li>\n'
    )


def _heading(field: str, won: bool) -> str:
    return f"{field.title()} won: A wrong, B right" if won else f"{field.title()} lost: A right, B wrong"


def _anchor(field: str, won: bool) -> str:
    return f"{field}-{'won' if won else 'lost'}"


def _percent(share: float) -> str:
    return "–" if share != share else f"{share:.1%}"


def _signed(share: float) -> str:
    return "–" if share != share else f"{100 * share + 0.0:+.1f}"
