"""The first sentences of a report of a comparison: whether B may replace A, what changed, and whether it is chance."""

from training.comparison.compare import LEAF, Comparison, Coverage, CoverageChange, FieldChange
from training.comparison.gate import Gate
from training.comparison.text_report import GateVerdict
from training.reporting.field_titles import format_field_title
from training.reporting.page import format_percent
from vision.calibration import BRAND_FIELD
from vision.runtime.wording import format_count

__all__ = ["RULE_NAMES", "build_comparison_verdict", "describe_rule"]

_CHANCE_P_VALUE = 0.05
RULE_NAMES = {
    "max_overall_drop": "leaf accuracy",
    "max_category_drop": "accuracy of a category",
    "max_brand_drop": "brand accuracy",
    "max_coverage_drop": "share filled in",
}
"""Rule of the gate to what it is about, for people."""


def build_comparison_verdict(comparison: Comparison, verdict: GateVerdict | None) -> list[str]:
    """Sentences for whoever decides on the release, the conclusion first."""
    if verdict is None:
        first = "No gate was given, so this report decides nothing: it says what changed."
    elif verdict.passed:
        first = "B may replace A: it keeps every rule of the gate."
    else:
        broken = [f"the {RULE_NAMES[rule.name]}" for rule in verdict.rules if not rule.holds]
        first = f"B may not replace A: it does not keep the gate's rule for {' and '.join(broken)}."
    sentences = [first]
    sentences += [_describe_change(comparison.field(name)) for name in (LEAF, BRAND_FIELD)]
    sentences += filter(None, map(_describe_coverage, comparison.coverage))
    for name, sides in (("A", [c.a for c in comparison.coverage]), ("B", [c.b for c in comparison.coverage])):
        if not any(side.is_certified for side in sides):
            sentences.append(f"{name} has no certificate: it fills nothing in and only suggests.")
    return sentences


def describe_rule(gate: Gate, name: str) -> str:
    """What a rule of the gate demands."""
    limit = f"may fall by at most {100 * getattr(gate, name):g} points"
    return {
        "max_overall_drop": f"The leaf accuracy {limit}",
        "max_category_drop": f"The accuracy of each category with at least "
        f"{format_count(gate.min_category_listings, 'listing')} "
        f"{limit}",
        "max_brand_drop": f"The brand accuracy {limit}",
        "max_coverage_drop": f"The share of the listings that is filled in, of each field, {limit}",
    }[name]


def _describe_coverage(change: CoverageChange) -> str:
    """What both models fill in of a field with a guarantee of its own; empty where neither has one."""
    if change.a.alpha is None and change.b.alpha is None:
        return ""
    a, b = _describe_filled(change.a), _describe_filled(change.b)
    if a == b:
        return f"{format_field_title(change.name)}: both fill in {a}."
    return f"{format_field_title(change.name)}: A fills in {a}, B {b}."


def _describe_filled(coverage: Coverage) -> str:
    if coverage.alpha is None or not coverage.num_filled:
        return "nothing"
    right = f"{format_percent(coverage.precision)} of these right, {1 - coverage.alpha:.0%} guaranteed"
    return f"{format_percent(coverage.coverage)} of the listings ({right})"


def _describe_change(change: FieldChange) -> str:
    counts, (low, high) = change.counts, change.interval
    title = "Leaf category" if change.name == LEAF else "Brand"
    if not counts.num_listings:
        return f"{title}: no listing to compare on."
    if not counts.num_lost and not counts.num_won:
        num_right, num = round(counts.accuracy_a * counts.num_listings), format_count(counts.num_listings, "listing")
        return f"{title}: no change; both models are right on the same {num_right} of {num}."
    chance = (
        "more than chance explains"
        if counts.p_value < _CHANCE_P_VALUE
        else "which may be chance: these listings do not tell the models apart"
    )
    return (
        f"{title}: B is right for {counts.accuracy_b:.1%}, A for {counts.accuracy_a:.1%}, a change of "
        f"{100 * counts.change + 0.0:+.1f} points ({100 * low + 0.0:+.1f} to {100 * high + 0.0:+.1f}; "
        f"{counts.num_lost} lost, {counts.num_won} won, p {counts.p_value:.2g}), {chance}."
    )
