"""A comparison of two models as JSON for machines and as a table for a terminal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.comparison.common_listings import CommonListings
from training.comparison.compare import CategoryChange, Comparison, Coverage
from training.comparison.gate import Gate, RuleResult
from training.reporting.field_titles import format_field_title
from training.statistics.paired import NUM_RESAMPLES, Difference
from vision.runtime.wording import format_count

__all__ = [
    "ComparedModels",
    "GateVerdict",
    "build_comparison_json",
    "format_comparison",
    "format_testing_note",
    "format_verdict",
]

_MAX_CATEGORIES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ComparedModels:
    """What was compared on what."""

    name_a: str
    name_b: str
    taxonomy_a: str
    taxonomy_b: str
    manifest: str
    manifest_sha256: str
    split: str
    date: str


@dataclass(frozen=True, kw_only=True)
class GateVerdict:
    gate: Gate
    rules: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        return all(rule.holds for rule in self.rules)


def build_comparison_json(
    compared: ComparedModels, comparison: Comparison, listings: CommonListings, verdict: GateVerdict | None
) -> dict[str, Any]:
    """The whole comparison in plain values; NaN where there was nothing to measure."""
    return {
        **asdict(compared),
        "num_listings": comparison.num_listings,
        "num_photos": len(listings.photo_urls),
        "unusable_photos": list(listings.unusable),
        "num_resamples": NUM_RESAMPLES,
        "fields": {field.name: _counts_to_dict(field.counts, field.interval) for field in comparison.fields},
        "categories": [
            {
                "category_id": change.category_id,
                "name": change.name,
                **_counts_to_dict(change.counts, change.interval),
                "p_holm": change.p_holm,
            }
            for change in comparison.categories
        ],
        "coverage": {
            change.name: {"a": _coverage_to_dict(change.a), "b": _coverage_to_dict(change.b)}
            for change in comparison.coverage
        },
        "excluded_labels": [asdict(label) for label in comparison.excluded_labels],
        "flips": [
            {
                **asdict(flip),
                "listing": listings.listing_ids[flip.listing],
                "photos": list(listings.get_photo_urls(flip.listing)),
            }
            for flip in comparison.flips
        ],
        "gate": None
        if verdict is None
        else {"passed": verdict.passed, **asdict(verdict.gate), "rules": [asdict(rule) for rule in verdict.rules]},
    }


def _counts_to_dict(counts: Difference, interval: tuple[float, float]) -> dict[str, Any]:
    return {
        **asdict(counts),
        "accuracy_a": counts.accuracy_a,
        "accuracy_b": counts.accuracy_b,
        "change": counts.change,
        "interval": interval,
        "p_value": counts.p_value,
    }


def _coverage_to_dict(coverage: Coverage) -> dict[str, Any]:
    return {**asdict(coverage), "coverage": coverage.coverage, "precision": coverage.precision}


def format_comparison(compared: ComparedModels, comparison: Comparison, listings: CommonListings) -> str:
    """The figures as a text table, shares in percent."""
    lines = [
        f"A  {compared.name_a} (taxonomy {compared.taxonomy_a})",
        f"B  {compared.name_b} (taxonomy {compared.taxonomy_b})",
        f"{format_count(comparison.num_listings, 'listing')} with "
        f"{format_count(len(listings.photo_urls), 'usable photo')} of split {compared.split}",
        "",
        "right in % of listings  listings      A      B   B - A   95 % interval   lost    won   p (McNemar)",
    ]
    for field in comparison.fields:
        c, (low, high) = field.counts, field.interval
        lines.append(
            f"  {format_field_title(field.name):<20}  {c.num_listings:8d}"
            f"  {_format_percent(c.accuracy_a)}  {_format_percent(c.accuracy_b)}"
            f"  {_format_signed(c.change)}  {_format_signed(low)} – {_format_signed(high)}"
            f"  {c.num_lost:5d}  {c.num_won:5d}   {c.p_value:.3g}"
        )
    lines += ["", "filled in, % of listings       A  (right)       B  (right)"]
    for change in comparison.coverage:
        shown = "  ".join(
            f"{_format_percent(c.coverage)}  ({_format_percent(c.precision)})" for c in (change.a, change.b)
        )
        lines.append(f"  {format_field_title(change.name):<22}  {shown}")
    lines += _format_categories(comparison.categories)
    lines += _format_excluded_labels(comparison)
    if listings.unusable:
        lines.append(f"{format_count(len(listings.unusable), 'photo')} could not be used")
    return "\n".join(lines)


def format_testing_note(categories: Sequence[CategoryChange]) -> str:
    """How to read that many tests at once."""
    by_chance = sum(change.counts.p_value < 0.05 for change in categories)
    proven = sum(change.p_holm < 0.05 for change in categories)
    return (
        f"{format_count(len(categories), 'category')} compared, {by_chance} with p < 0.05 taken alone (chance gives up "
        f"to {0.05 * len(categories):.1f}) and {proven} after Holm's correction for their number"
    )


def format_verdict(verdict: GateVerdict) -> list[str]:
    """The verdict, and every rule with its numbers."""
    broken = [rule.name for rule in verdict.rules if not rule.holds]
    lines = [f"gate not passed: {', '.join(broken)}" if broken else "gate passed"]
    for rule in verdict.rules:
        state = "broken" if not rule.holds else "holds" if rule.num_checked else "holds, nothing to measure it on"
        lines += [f"  {rule.name} {state}: {detail}" for detail in rule.details]
    return lines


def _format_categories(categories: Sequence[CategoryChange]) -> list[str]:
    worse = [change for change in categories if change.counts.change < 0]
    better = [change for change in reversed(categories) if change.counts.change > 0]
    lines = []
    for name, changes in (("worse", worse), ("better", better)):
        if changes:
            lines += ["", f"{format_count(len(changes), 'category')} {name}:"]
        for change in changes[:_MAX_CATEGORIES_SHOWN]:
            c, (low, high) = change.counts, change.interval
            lines.append(
                f"  {_format_signed(c.change)} ({_format_signed(low)} – {_format_signed(high)})"
                f"  {c.num_lost} lost, {c.num_won} won of {c.num_listings},"
                f" p = {c.p_value:.2g}, Holm {change.p_holm:.2g}  {change.name}"
            )
        if len(changes) > _MAX_CATEGORIES_SHOWN:
            lines.append(f"  … and {len(changes) - _MAX_CATEGORIES_SHOWN} more; --output writes all")
    return [*lines, "", format_testing_note(categories)]


def _format_excluded_labels(comparison: Comparison) -> list[str]:
    lines = []
    for field, reason in dict.fromkeys((label.field, label.reason) for label in comparison.excluded_labels):
        labels = [label for label in comparison.excluded_labels if (label.field, label.reason) == (field, reason)]
        num_listings = sum(label.num_listings for label in labels)
        named = ", ".join(repr(label.label) for label in labels[:5]) + (", …" if len(labels) > 5 else "")
        lines.append(f"not compared: {format_count(num_listings, 'listing')} whose {field} is {reason} ({named})")
    return lines


def _format_percent(share: float) -> str:
    return "    -" if share != share else f"{100 * share:5.1f}"


def _format_signed(share: float) -> str:
    return "    -" if share != share else f"{100 * share + 0.0:+5.1f}"
