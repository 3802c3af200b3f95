"""The bundle's page for people: what the model is, how it was made, what it promises."""

from typing import Any

from vision.bundle import BundleInfo
from vision.decision import Calibration
from vision.taxonomy import Taxonomy

__all__ = ["model_card"]


def model_card(info: BundleInfo, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """Markdown."""
    recipe: dict[str, Any] = info.training["recipe"]
    stages = ", ".join(f"{s['epochs']} epochs at {s['photo_px']} px" for s in recipe["stages"])
    metrics = "\n".join(
        f"| {k} | {'no labels' if v is None else format(v, '.4g')} |" for k, v in info.training["last_metrics"].items()
    )
    fields = "\n".join(
        f"| {f.name} | {1 - f.alpha:.0%} | "
        + (
            f"{f.threshold:.4f} | {f.num_filled} of {f.num_listings} filled, {f.num_errors} wrong"
            if f.threshold is not None
            else f"never filled | {f.why_not}"
        )
        + " |"
        for f in calibration.fields
    )
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
