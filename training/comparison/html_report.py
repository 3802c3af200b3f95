"""An HTML report of a comparison of two models: figures, and the listings that only one of them gets right."""

from typing import Any

from training.comparison.common_listings import CommonListings
from training.comparison.compare import CategoryChange, Comparison, Coverage, FieldChange
from training.comparison.text_report import ComparedModels, GateVerdict, format_testing_note
from training.comparison.verdict import build_comparison_verdict, describe_rule
from training.reporting.field_titles import format_field_title
from training.reporting.glossary import choose_terms
from training.reporting.page import create_thumbnails, format_percent, format_signed, render
from vision.runtime.wording import format_count

__all__ = ["render_comparison"]

_PHOTO_PX = 240
_SMALL_PHOTO_PX = 96
_MAX_SMALL_PHOTOS = 4


_TERMS = (
    "lost, won",
    "95 % interval",
    "p (McNemar)",
    "p (Holm)",
    "filled in",
    "right when filled in",
    "guarantee",
)


def render_comparison(
    compared: ComparedModels,
    comparison: Comparison,
    listings: CommonListings,
    verdict: GateVerdict | None,
    *,
    max_shown: int,
) -> str:
    """The page's text, with at most `max_shown` flips of each field and direction."""
    groups: list[dict[str, Any]] = [
        {
            "anchor": f"{field}-{'won' if won else 'lost'}",
            "heading": f"{field.title()} {'won: A wrong, B right' if won else 'lost: A right, B wrong'}",
            "flips": [flip for flip in comparison.flips if (flip.field, flip.won) == (field, won)],
        }
        for field in ("category", "brand")
        for won in (False, True)
    ]
    groups = [group for group in groups if group["flips"]]
    shown = {flip.listing for group in groups for flip in group["flips"][:max_shown]}
    photos = {listing: listings.get_photo_urls(listing)[: 1 + _MAX_SMALL_PHOTOS] for listing in shown}
    return render(
        "comparison.html",
        title="Two models on the same listings",
        verdict_sentences=build_comparison_verdict(comparison, verdict),
        gate=verdict,
        describe_rule=describe_rule,
        facts=_list_facts(compared, comparison, listings),
        terms=choose_terms(*_TERMS),
        comparison=comparison,
        listings=listings,
        changes=["Listings", "A right", "B right", "B − A", "95 % interval", "Lost", "Won"],
        counts=_format_counts,
        field_title=format_field_title,
        coverage=_format_coverage,
        changed=[change for change in comparison.categories if change.counts.num_lost or change.counts.num_won],
        format_testing_note=format_testing_note(comparison.categories),
        groups=groups,
        max_shown=max_shown,
        photos=photos,
        thumbnails=create_thumbnails((urls[0] for urls in photos.values()), max_px=_PHOTO_PX),
        small=create_thumbnails((url for urls in photos.values() for url in urls[1:]), max_px=_SMALL_PHOTO_PX),
    )


def _list_facts(compared: ComparedModels, comparison: Comparison, listings: CommonListings) -> list[tuple[str, object]]:
    counts = f"{format_count(comparison.num_listings, 'listing')}, {format_count(len(listings.photo_urls), 'photo')}"
    if listings.unusable:
        counts += f"; {format_count(len(listings.unusable), 'photo')} could not be used"
    return [
        ("A", f"{compared.name_a}, taxonomy {compared.taxonomy_a}"),
        ("B", f"{compared.name_b}, taxonomy {compared.taxonomy_b}"),
        ("split", compared.split),
        ("counts", counts),
        ("manifest", compared.manifest),
        ("manifest sha256", compared.manifest_sha256),
        ("date", compared.date),
    ]


def _format_counts(change: FieldChange | CategoryChange) -> list[object]:
    counts, (low, high) = change.counts, change.interval
    return [
        counts.num_listings,
        format_percent(counts.accuracy_a),
        format_percent(counts.accuracy_b),
        format_signed(counts.change),
        f"{format_signed(low)} to {format_signed(high)}",
        counts.num_lost,
        counts.num_won,
        f"{counts.p_value:.3g}",
    ]


def _format_coverage(coverage: Coverage) -> list[object]:
    guarantee = "nothing"
    if coverage.num_filled:
        guarantee = "see Category" if coverage.alpha is None else f"{1 - coverage.alpha:.0%}"
    return [format_percent(coverage.coverage), format_percent(coverage.precision), guarantee]
