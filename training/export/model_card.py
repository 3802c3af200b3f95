"""The model card of a bundle: what the model is, how it was trained, what is guaranteed."""

from training.reporting.page import render
from vision.bundle import BundleInfo
from vision.calibration import Calibration
from vision.taxonomy import Taxonomy

__all__ = ["format_guarantees", "render_model_card"]


def format_guarantees(calibration: Calibration) -> list[str]:
    """One line for each field: the certified threshold with its evidence, or why there is none."""
    lines = []
    for field in calibration.fields:
        if field.threshold is None and field.delta == 0:
            lines.append(f"{field.name}: {field.uncertified_reason}")
        elif field.threshold is None:
            lines.append(f"{field.name}: never prefilled, only suggested: {field.uncertified_reason}")
        else:
            lines.append(
                f"{field.name}: prefilled from a confidence of {field.threshold:.3f}, for {field.coverage:.0%} of the "
                f"calibration listings; guaranteed precision {100 * (1 - field.alpha):g}% ({field.num_errors} of "
                f"{field.num_filled} were wrong)"
            )
    return lines


def render_model_card(info: BundleInfo, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """The text of `model_card.md`."""
    return render("model_card.md", info=info, taxonomy=taxonomy, calibration=calibration)
