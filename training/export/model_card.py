"""The model card of a bundle: what the model is, how it was trained, what is guaranteed."""

from collections.abc import Iterator

from training.reporting.field_titles import format_field_title
from training.reporting.page import render
from training.statistics.estimates import compute_clopper_pearson_interval
from vision.bundle import BundleInfo
from vision.calibration import Calibration, FieldGuarantee, OutcomeEvidence, OutcomeTest
from vision.taxonomy import Taxonomy

__all__ = ["describe_depths", "describe_outcomes", "format_guarantees", "render_model_card"]


def format_guarantees(calibration: Calibration) -> list[str]:
    """Return a line for each field: its threshold and evidence, or why there is none; and what scope lets pass."""
    lines = []
    for field in calibration.fields:
        title = format_field_title(field.name)
        if field.threshold is None and field.delta == 0:
            lines.append(f"{title}: {field.uncertified_reason}")
        elif field.threshold is None:
            lines.append(f"{title}: never prefilled, only suggested: {field.uncertified_reason}")
        else:
            lines.append(
                f"{title}: prefilled from a confidence of {field.threshold:.3f}, for {field.coverage:.0%} of the "
                f"{_name_covered(field)} listings; guaranteed precision {100 * (1 - field.alpha):g}% "
                f"({field.num_errors} of {field.num_filled} were wrong)"
            )
            lines += [f"  {line}" for line in describe_depths(field)]
        lines += [f"  {line}" for line in describe_outcomes(field)]
    if "outcomes" in calibration.certifies:
        lines.append(f"outcomes: {calibration.certifies['outcomes']}")
    if "outside" in calibration.certifies:
        lines.append(f"scope: {calibration.certifies['outside']}")
    return lines


def _name_covered(field: FieldGuarantee) -> str:
    if field.decided_by_outcomes:
        return "hidden"
    return "calibration" if field.unlabelled_coverage is None else "unlabelled"


def describe_depths(field: FieldGuarantee) -> Iterator[str]:
    """Yield what a path's threshold did at each depth, with exact 95 % intervals; the guarantee is for the path."""
    for depth in field.depths:
        low, high = compute_clopper_pearson_interval(depth.num_errors, depth.num_filled)
        yield (
            f"depth {depth.depth}: {depth.num_filled} of {depth.num_listings} prefilled, {depth.num_errors} wrong "
            f"({low:.1%}-{high:.1%}; measured, not guaranteed)"
        )
    if field.num_below_truth:
        yield f"{field.num_below_truth} of the errors are categories below a label that is an inner category"


def describe_outcomes(field: FieldGuarantee) -> Iterator[str]:
    """Yield what outcomes of hidden listings certified and withdrew, and how far the next threshold is."""
    evidence = field.outcomes
    if evidence is None:
        return
    if not evidence.tests:
        yield f"outcomes of hidden listings may certify looser thresholds, at {evidence.delta:g} of delta"
        return
    first, enough = field.first.threshold, 1 / evidence.delta
    if field.threshold is not None and field.decided_by_outcomes:
        test = next(one for one in evidence.tests if one.threshold == field.threshold)
        before = "certified no threshold" if first is None else f"certified {first:.3f}"
        yield f"by outcomes: {_describe_test(test, evidence)}; the calibration listings alone {before}"
    withdrawn = [test for test in evidence.tests if test.withdrawing >= enough]
    open_ones = [
        test for test in evidence.tests if test.certifying < enough and (first is None or test.threshold < first)
    ]
    if withdrawn:
        yield f"withdrawn by outcomes, with all looser thresholds: {_describe_test(withdrawn[0], evidence)}"
    elif open_ones:
        strictest = open_ones[0]
        yield (
            f"next: {_describe_test(strictest, evidence)}; their evidence is {strictest.certifying:.1f}, and "
            f"{enough:.0f} certifies it"
        )


def _describe_test(test: OutcomeTest, evidence: OutcomeEvidence) -> str:
    text = (
        f"a confidence of {test.threshold:.3f} fills {test.num_filled} of {evidence.num_listings} hidden listings, "
        f"{test.num_errors} wrong"
    )
    return text + (f" ({test.num_unknown} of these not known, and counted as wrong)" if test.num_unknown else "")


def render_model_card(info: BundleInfo, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """The text of `model_card.md`."""
    return render(
        "model_card.md",
        info=info,
        taxonomy=taxonomy,
        calibration=calibration,
        describe_depths=describe_depths,
        title=format_field_title,
        describe_outcomes=describe_outcomes,
    )
