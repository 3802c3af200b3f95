"""Check that prefilled fields keep their guarantee, on Grocery Store and on 20,000 synthetic listings.

    python -m benchmarks.certificate [--only drawn|grocery] [--grocery-run RUN]

Both models are trained in minutes, to be weak: the guarantee must hold for a weak model too. Grocery Store's own val
split (296 listings) is halved for temperatures and for tests; the synthetic set has a split for each. The test splits
are evaluated once. Then the calibration listings are drawn 1,000 times, with replacement, from listings that were not
trained on, and each certificate is checked on all of these: how often is the guarantee broken?
"""

import dataclasses
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import BUILD, create_parser, find_grocery_source, run_cli, write_result
from training.calibration.calibrate import calibrate
from training.calibration.certify import Guarantee
from training.data.synthetic import create_synthetic_dataset
from training.evaluation.ground_truth import build_ground_truth, evaluate_paths, merge_listing_labels
from training.inference.predictions import Predictions, predict
from vision.bundle import Bundle, load_bundle
from vision.calibration import BRAND_FIELD, Calibration, get_field_name
from vision.decision import ListingPredictions, compute_prefilled, fuse_logits, predict_listings
from vision.engine import OnnxEngine
from vision.manifest import Labels, Manifest
from vision.metrics import compute_expected_calibration_error, compute_wilson_interval

FOLDER = BUILD / "certificate"
NUM_RESAMPLES = 1000
STRICT_ALPHA = 0.01
NUM_SYNTHETIC = {"train": 4000, "val": 2000, "calibrate": 4000, "test": 10_000}
RECIPES = {
    "drawn": """backbone = "tf_efficientnet_lite0"
input_px = 64
label_smoothing = 0.0

[[stages]]
photo_px = 64
epochs = 4
""",
    "grocery": """backbone = "tf_efficientnet_lite2"
input_px = 144
frozen_groups = 3

[[stages]]
photo_px = 128
epochs = 2
trains = "heads"

[[stages]]
photo_px = 128
epochs = 8
""",
}


def create_synthetic_split(split: str) -> Manifest:
    folder = FOLDER / "drawn" / split
    seed = list(NUM_SYNTHETIC).index(split)
    manifest, taxonomy = create_synthetic_dataset(
        folder, listings={split: NUM_SYNTHETIC[split]}, seed=seed, photos_per_listing=(1, 2)
    )
    taxonomy.save(FOLDER / "drawn" / "taxonomy.json")
    return manifest


def create_synthetic_manifest() -> Path:
    path = FOLDER / "drawn" / "manifest.parquet"
    if not path.is_file():
        with ProcessPoolExecutor() as pool:
            parts = list(pool.map(create_synthetic_split, NUM_SYNTHETIC))
        rows = [
            {**row, "photo": part.get_photo_url(i)} for part in parts for i, row in enumerate(part.table.to_pylist())
        ]
        Manifest.from_rows(rows, str(path.parent)).save(str(path))
    return path


def import_grocery() -> Path:
    run_cli("data", "import", "grocery-store", find_grocery_source(), "--output", FOLDER / "grocery")
    return FOLDER / "grocery" / "manifest.parquet"


def train_model(name: str, manifest: Path, run: Path | None) -> Bundle:
    """Export a model that is trained here, or a finished run; return its folder."""
    recipe, exported = FOLDER / f"{name}.toml", FOLDER / f"{name}-bundle"
    if run is None:
        run = FOLDER / f"{name}-run"
        recipe.write_text(RECIPES[name])
        run_cli("train", manifest, "--recipe", recipe, "--run", run)
    # Exported again, so that the present code certifies.
    shutil.rmtree(exported, ignore_errors=True)
    run_cli("export", run, "--output", exported, "--name", name)
    return load_bundle(exported)


def fuse_listings(predictions: Predictions, calibration: Calibration) -> Predictions:
    """Fuse photos to one row per listing, as the calibration says."""
    groups, labels = predictions.groups, merge_listing_labels(predictions.labels, predictions.groups)
    return dataclasses.replace(
        predictions,
        category_logits=fuse_logits(predictions.category_logits, groups, how="mean"),
        brand_logits=fuse_logits(predictions.brand_logits, groups, how=calibration.brand_fusion),
        labels=labels,
        groups=np.arange(len(predictions.listing_ids)),
        # It is for photos; these are listings.
        short_sides_px=None,
        num_bytes=None,
        brightness=None,
    )


def resample(listings: Predictions, rows: npt.NDArray[np.int64]) -> Predictions:
    labels = Labels(category_nodes=listings.labels.category_nodes[rows], brands=listings.labels.brands[rows])
    return dataclasses.replace(
        listings,
        category_logits=listings.category_logits[rows],
        brand_logits=listings.brand_logits[rows],
        labels=labels,
        groups=np.arange(len(rows)),
        listing_ids=tuple(listings.listing_ids[row] for row in rows),
    )


class EvaluatedListings:
    """Confidences and correctness of the fields of listings."""

    def __init__(self, listings: Predictions, bundle: Bundle, calibration: Calibration) -> None:
        self.taxonomy = bundle.taxonomy
        self.predictions: ListingPredictions = predict_listings(
            listings.category_logits, listings.brand_logits, listings.groups,
            taxonomy=self.taxonomy, calibration=calibration,
        )  # fmt: skip
        truth = build_ground_truth(merge_listing_labels(listings.labels, listings.groups), self.taxonomy)
        verdicts = evaluate_paths(self.predictions.paths, truth)
        brand_known = truth.brands != -1
        brand_right = brand_known & (self.predictions.brands.labels == truth.brands)
        # (N, D + 1), the brand last, as `compute_prefilled` has it.
        self.known = np.column_stack([verdicts.known, brand_known])
        self.right = np.column_stack([verdicts.right, brand_right])
        self.scores = np.column_stack([self.predictions.paths.scores, self.predictions.brands.scores])

    def find_filled(self, calibration: Calibration) -> npt.NDArray[np.bool_]:
        filled: npt.NDArray[np.bool_] = compute_prefilled(
            self.predictions, taxonomy=self.taxonomy, calibration=calibration
        )
        evaluated: npt.NDArray[np.bool_] = filled & self.known
        return evaluated

    def compute_best_coverage(self, column: int, alpha: float) -> float:
        """Return the largest coverage of any threshold at the guaranteed precision, with all labels known."""
        known = self.known[:, column]
        order = np.argsort(-self.scores[known, column], kind="stable")
        precision = np.cumsum(self.right[known, column][order]) / np.arange(1, known.sum() + 1)
        kept = np.flatnonzero(precision >= 1 - alpha)
        return (int(kept[-1]) + 1) / int(known.sum()) if len(kept) else 0.0


def evaluate_fields(evaluated: EvaluatedListings, calibration: Calibration, names: Sequence[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    filled = evaluated.find_filled(calibration)
    for column, name in enumerate(names):
        field = calibration.field(name)
        assert field is not None
        known = evaluated.known[:, column]
        num_filled = int(filled[:, column].sum())
        num_right = int((filled & evaluated.right)[:, column].sum())
        fields[name] = {
            **{k: v for k, v in dataclasses.asdict(field).items() if k != "grid"},
            "test_listings": int(known.sum()),
            "test_coverage": num_filled / int(known.sum()),
            "test_precision": num_right / num_filled if num_filled else None,
            "test_precision_interval": compute_wilson_interval(num_right, num_filled) if num_filled else None,
            "best_possible_coverage": evaluated.compute_best_coverage(column, field.alpha),
            "ece": compute_expected_calibration_error(evaluated.scores[known, column], evaluated.right[known, column]),
            "top1": float(evaluated.right[known, column].mean()),
        }
    return fields


def measure_dataset(name: str, manifest_path: Path, run: Path | None) -> dict[str, Any]:
    bundle = train_model(name, manifest_path, run)
    calibration = bundle.calibration
    manifest = Manifest.load(str(manifest_path))
    engine = OnnxEngine(bundle)
    rng = np.random.default_rng(0)

    def answered(split: str) -> Predictions:
        rows = manifest.select_split(split)
        return fuse_listings(predict(rows, bundle.taxonomy, bundle.info.preprocessing, engine.infer), calibration)

    test, tune = answered("test"), answered("val")
    names = [*(get_field_name(depth + 1) for depth in range(bundle.taxonomy.max_depth)), BRAND_FIELD]
    found = {"fields": evaluate_fields(EvaluatedListings(test, bundle, calibration), calibration, names)}
    if name == "drawn":
        # Where nearly all suggestions are right the usual guarantee holds at any threshold; a stricter one does not.
        strict = calibrate(
            tune,
            bundle.taxonomy,
            certifies={},
            calibration_predictions=answered("calibrate"),
            guarantee=Guarantee(alpha_category=STRICT_ALPHA, alpha_brand=STRICT_ALPHA),
        )
        found["fields_at_1_percent"] = evaluate_fields(EvaluatedListings(test, bundle, strict), strict, names)
    pool = test
    num_calibration = max(field.num_listings for field in calibration.fields)
    # As many as the certificate itself had for temperatures and grids: without a calibrate split half of val.
    tuned_on = tune
    if name == "grocery":
        tuned_on = resample(tune, np.arange(0, len(tune.listing_ids), 2))
    broken = np.zeros(len(names), dtype=int)
    never = np.zeros(len(names), dtype=int)
    any_broken = 0
    population: EvaluatedListings | None = None
    for _ in range(NUM_RESAMPLES):
        tested = resample(pool, rng.integers(0, len(pool.listing_ids), num_calibration))
        certified = calibrate(tuned_on, bundle.taxonomy, certifies={}, calibration_predictions=tested)
        population = population or EvaluatedListings(pool, bundle, certified)
        filled = population.find_filled(certified)
        alphas = np.array([field.alpha for field in certified.fields])
        shares = (filled & ~population.right).sum(axis=0) / np.maximum(filled.sum(axis=0), 1)
        broken += shares > alphas
        any_broken += bool((shares > alphas).any())
        never += filled.sum(axis=0) == 0
    return {
        **found,
        "draws": NUM_RESAMPLES,
        "listings_a_draw": num_calibration,
        "tuned_on": len(tuned_on.listing_ids),
        "violation_rate": any_broken / NUM_RESAMPLES,
        "violation_rate_by_field": dict(zip(names, (broken / NUM_RESAMPLES).tolist(), strict=True)),
        "never_filled_by_field": dict(zip(names, (never / NUM_RESAMPLES).tolist(), strict=True)),
    }


def select_metrics(found: dict[str, Any], prefix: str = "") -> dict[str, float]:
    categories = [f for name, f in found["fields"].items() if name != BRAND_FIELD]
    brand = found["fields"][BRAND_FIELD]
    deepest = categories[-1]
    filled = [f for f in categories if f["test_precision"] is not None]
    metrics = {
        "violation_rate": found["violation_rate"],
        "leaf_coverage_gap": deepest["best_possible_coverage"] - deepest["test_coverage"],
        "coverage_leaf": deepest["test_coverage"],
        "ece_category": max(f["ece"] for f in categories),
        "ece_brand": brand["ece"],
    }
    if "fields_at_1_percent" in found:
        strict = list(found["fields_at_1_percent"].values())[-2]
        metrics["leaf_coverage_gap_at_1_percent"] = strict["best_possible_coverage"] - strict["test_coverage"]
        metrics["coverage_leaf_at_1_percent"] = strict["test_coverage"]
    if filled:
        metrics["realised_precision_category"] = min(f["test_precision"] for f in filled)
    if brand["test_precision"] is not None:
        metrics["realised_precision_brand"] = brand["test_precision"]
    return {prefix + key: value for key, value in metrics.items()}


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--only", choices=("drawn", "grocery"))
    parser.add_argument("--grocery-run", type=Path, help="a finished run, such as that of grocery_accuracy")
    options = parser.parse_args()
    only = options.only
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, manifest in (("drawn", create_synthetic_manifest), ("grocery", import_grocery)):
        if only in (None, name):
            details[name] = measure_dataset(name, manifest(), options.grocery_run if name == "grocery" else None)
            metrics |= select_metrics(details[name], "" if name == "drawn" else "grocery_")
            for promised in ("fields", "fields_at_1_percent"):
                for field, f in details[name].get(promised, {}).items():
                    print(f"{name} {field}: " + ", ".join(f"{k} {v}" for k, v in f.items() if k != "name"))
    write_result("certificate" if only is None else f"certificate_{only}", metrics, details)


if __name__ == "__main__":
    main()
