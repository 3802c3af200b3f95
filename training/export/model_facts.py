"""What a bundle records of its training for the model card: the data, and figures on the test split."""

from typing import Any

from training.evaluation.evaluate import evaluate
from training.inference.predictions import Infer, predict
from vision.calibration import Calibration
from vision.images import Preprocessing
from vision.manifest import SPLITS, Manifest
from vision.taxonomy import Taxonomy

__all__ = ["count_photos", "measure_on_test"]


def count_photos(manifest: Manifest) -> dict[str, int]:
    """Photos of each split that has any."""
    counts = {entry["values"]: entry["counts"] for entry in manifest.column("split").value_counts().to_pylist()}
    return {split: counts[split] for split in SPLITS if split in counts}


def measure_on_test(
    manifest: Manifest, taxonomy: Taxonomy, preprocessing: Preprocessing, infer: Infer
) -> dict[str, Any] | None:
    """Top-1 per photo of the test split by what it is of: `num`, `top1` and `top1_interval`; None without such a split.

    Brands that the taxonomy lacks are not counted.

    Raises:
        ManifestError: unknown categories, or no photo of the split can be used.
    """
    if "test" not in count_photos(manifest):
        return None
    predictions = predict(manifest.select_split("test"), taxonomy, preprocessing, infer, other_brands=True)
    figures = evaluate(predictions, taxonomy=taxonomy, calibration=Calibration(certifies={}))["photo"]
    measured = {"category": figures["leaf"], **({"brand": figures["brand"]} if taxonomy.brands else {})}
    kept = ("num", "top1", "top1_interval")
    return {name: {key: part[key] for key in kept} for name, part in measured.items() if part["num"]}
