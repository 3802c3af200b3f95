"""The bundle's page for people: what the model is, how it was made, what it promises."""

from typing import Any

from vision.bundle import BundleInfo
from vision.calibration import Calibration
from vision.taxonomy import Taxonomy

__all__ = ["model_card", "promise_lines"]


def promise_lines(calibration: Calibration) -> list[str]:
    """A line a field: from where on it is filled, on what evidence, or why not."""
    lines = []
    for field in calibration.fields:
        if field.threshold is None and field.delta == 0:
            lines.append(f"{field.name}: {field.uncertified_reason}")
        elif field.threshold is None:
            lines.append(f"{field.name}: never filled, only suggested: {field.uncertified_reason}")
        else:
            lines.append(
                f"{field.name}: filled from {field.threshold:.3f} on, in {field.coverage:.0%} of the calibration "
                f"listings; {100 * (1 - field.alpha):g}% right is promised ({field.num_errors} of {field.num_filled} "
                "were wrong)"
            )
    return lines


def model_card(info: BundleInfo, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """Markdown."""
    recipe: dict[str, Any] = info.training["recipe"]
    stages = ", ".join(f"{s['epochs']} epochs at {s['photo_px']} px" for s in recipe["stages"])
    metrics = "\n".join(
        f"| {k} | {'no labels' if v is None else format(v, '.4g')} |" for k, v in info.training["last_metrics"].items()
    )
    fields = "\n".join(
        f"| {f.name} | {100 * (1 - f.alpha):g}% | "
        + (
            f"{f.threshold:.4f} | {f.num_filled} of {f.num_listings} filled, {f.num_errors} wrong"
            if f.threshold is not None
            else f"{'never filled' if f.delta else '-'} | {f.uncertified_reason}"
        )
        + " |"
        for f in calibration.fields
    )
    converted = _converted(info)
    added = ", ".join(f"{b['name']} ({b['num_photos']} photos)" for b in info.training.get("brands_added", ()))
    parity = "\n".join(
        f"| {name} | {max(info.parity[name]['max_abs_difference'].values()):.2g} | "
        f"{info.parity[name]['answers_agreeing']:.1%} |"
        for name in ("onnx", "torchscript")
    )
    return f"""# {info.model_name} {info.model_version}

Recognises the category (one of {info.num_categories} leaves, depth {taxonomy.max_depth}) and the brand (one of
{info.num_brands - 1}, or none) of the product in listing photos. Taxonomy {info.taxonomy_version}.

- Backbone {info.backbone}, {info.precision}, photos {info.preprocessing.input_px} px square, preprocessing
  {info.preprocessing.fingerprint()}
- Trained {stages}, from {recipe["weights"]} weights; versions {info.training["versions"]}
- Brands added without training: {added or "none"}
{converted}
## Last figures of training

| figure | value |
|---|---|
{metrics}

## Promises

When a field is filled, it is right at least this often; each promise itself fails with probability at most
{sum(f.delta for f in calibration.fields):.0%} over all fields. Certified on {calibration.certifies.get("split", "-")}.

| field | precision | threshold | evidence |
|---|---|---|---|
{fields}

## Exports against the trained model

Largest difference of a logit on {info.parity["photos"]}, at batches of {info.parity["batch_sizes"]}.

| export | difference | answers agreeing |
|---|---|---|
{parity}

## Limits

The promises hold for photos like those of the calibration listings. Categories and brands outside the taxonomy are
answered with the nearest known one; look at the probability.
"""


def _converted(info: BundleInfo) -> str:
    """What became of the fp32 model, where this is another precision of it."""
    found = info.training.get("converted")
    if not found:
        return ""
    lost = -100 * found["top1_loss"] or 0.0
    speeds = found["photos_per_s_one_thread"]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in speeds.items())
    return (
        f"- {info.precision} by {found['how']}: {lost:+.2f} points of top-1 against fp32 on {found['num_photos']} tune "
        f"photos; photos/s of the model alone on one thread of the machine that converted it: {rates}\n"
    )
