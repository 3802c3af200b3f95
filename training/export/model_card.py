"""The model card of a bundle: what the model is, how it was trained, what is guaranteed."""

from collections.abc import Iterator

from training.reporting.field_titles import format_field_title
from training.reporting.page import render
from training.statistics.estimates import compute_clopper_pearson_interval
from vision.bundle import BundleInfo
from vision.calibration import Calibration, FieldGuarantee
from vision.taxonomy import Taxonomy

__all__ = ["describe_depths", "format_guarantees", "render_model_card"]


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
    if "outside" in calibration.certifies:
        lines.append(f"scope: {calibration.certifies['outside']}")
    return lines


def _name_covered(field: FieldGuarantee) -> str:
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


def render_model_card(info: BundleInfo, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """The text of `model_card.md`."""
    return render(
        "model_card.md",
        info=info,
        taxonomy=taxonomy,
        calibration=calibration,
        describe_depths=describe_depths,
        title=format_field_title,
    )
