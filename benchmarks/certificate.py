"""Whether filled fields keep their promise: on Grocery Store, and on 20,000 drawn listings.

    python -m benchmarks.certificate [--only drawn|grocery] [--grocery-run RUN]

Both models are trained here in minutes, not to be good but to make mistakes: a promise must hold for a weak model too.
Grocery Store's own val split (296 listings) gives temperatures, thresholds and tests in halves; the drawn set has a
split for each. The test splits judge once. Then the calibration is drawn 1,000 times anew, with replacement, from
listings that were not trained on, and each certificate is held against all of these: how often is a promise broken?
"""

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import BUILD, cli, grocery_source, write_result
from training.calibration.calibrate import Promises, calibrate
from training.data.synthetic import draw_dataset
from training.evaluation.ground_truth import judge_paths, listing_labels, truth_by_depth
from training.inference.predictions import Predictions, predict
from vision.bundle import Bundle, load_bundle
from vision.decision import BRAND_FIELD, Answers, Calibration, answer, field_name, fills, fuse
from vision.engine import OnnxEngine
from vision.manifest import Labels, Manifest
from vision.metrics import expected_calibration_error, wilson_interval

HERE = BUILD / "certificate"
NUM_DRAWS = 1000
STRICT_ALPHA = 0.01
NUM_DRAWN = {"train": 4000, "val": 2000, "calibrate": 4000, "test": 10_000}
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


def draw_split(split: str) -> Manifest:
    folder = HERE / "drawn" / split
    seed = list(NUM_DRAWN).index(split)
    manifest, taxonomy = draw_dataset(folder, listings={split: NUM_DRAWN[split]}, seed=seed, photos_per_listing=(1, 2))
    taxonomy.save(HERE / "drawn" / "taxonomy.json")
    return manifest


def draw() -> Path:
    path = HERE / "drawn" / "manifest.parquet"
    if not path.is_file():
        with ProcessPoolExecutor() as pool:
            parts = list(pool.map(draw_split, NUM_DRAWN))
        rows = [{**row, "photo": part.photo_url(i)} for part in parts for i, row in enumerate(part.table.to_pylist())]
        Manifest.from_rows(rows, str(path.parent)).save(str(path))
    return path


def import_grocery() -> Path:
    cli("data", "import", "grocery-store", grocery_source(), "--output", HERE / "grocery")
    return HERE / "grocery" / "manifest.parquet"


def trained(name: str, manifest: Path, run: Path | None) -> Bundle:
    """The exported model: of this benchmark, or of a finished run."""
    recipe, exported = HERE / f"{name}.toml", HERE / f"{name}-bundle"
    if run is None:
        run = HERE / f"{name}-run"
        recipe.write_text(RECIPES[name])
        cli("train", manifest, "--recipe", recipe, "--run", run)
    # Made anew, so that today's code certifies.
    shutil.rmtree(exported, ignore_errors=True)
    cli("export", run, "--output", exported, "--name", name)
    return load_bundle(exported)


def as_listings(predictions: Predictions, calibration: Calibration) -> Predictions:
    """One row a listing, fused as the calibration says: what is drawn from."""
    groups, labels = predictions.groups, listing_labels(predictions.labels, predictions.groups)
    return dataclasses.replace(
        predictions,
        category_logits=fuse(predictions.category_logits, groups, how="mean"),
        brand_logits=fuse(predictions.brand_logits, groups, how=calibration.brand_fusion),
        labels=labels,
        groups=np.arange(len(predictions.listing_ids)),
        # Of photos, and there are none any more.
        short_sides_px=None,
        num_bytes=None,
        brightness=None,
    )


def drawn_anew(listings: Predictions, rows: npt.NDArray[np.int64]) -> Predictions:
    labels = Labels(category_nodes=listings.labels.category_nodes[rows], brands=listings.labels.brands[rows])
    return dataclasses.replace(
        listings,
        category_logits=listings.category_logits[rows],
        brand_logits=listings.brand_logits[rows],
        labels=labels,
        groups=np.arange(len(rows)),
        listing_ids=tuple(listings.listing_ids[row] for row in rows),
    )


class Judged:
    """Answers for listings, and which of them are right."""

    def __init__(self, listings: Predictions, bundle: Bundle, calibration: Calibration) -> None:
        self.taxonomy = bundle.taxonomy
        self.answers: Answers = answer(
            listings.category_logits, listings.brand_logits, listings.groups,
            taxonomy=self.taxonomy, calibration=calibration,
        )  # fmt: skip
        truth = truth_by_depth(listing_labels(listings.labels, listings.groups), self.taxonomy)
        verdicts = judge_paths(self.answers.paths, truth)
        brand_known = truth.brands != -1
        brand_right = brand_known & (self.answers.brands.labels == truth.brands)
        # (N, D + 1), the brand last, as `fills` has it.
        self.known = np.column_stack([verdicts.known, brand_known])
        self.right = np.column_stack([verdicts.right, brand_right])
        self.scores = np.column_stack([self.answers.paths.scores, self.answers.brands.scores])

    def filled(self, calibration: Calibration) -> npt.NDArray[np.bool_]:
        filled: npt.NDArray[np.bool_] = fills(self.answers, taxonomy=self.taxonomy, calibration=calibration)
        judged: npt.NDArray[np.bool_] = filled & self.known
        return judged

    def best_coverage(self, column: int, alpha: float) -> float:
        """The largest coverage of any threshold at the promised precision, by one who knows the labels."""
        known = self.known[:, column]
        order = np.argsort(-self.scores[known, column], kind="stable")
        precision = np.cumsum(self.right[known, column][order]) / np.arange(1, known.sum() + 1)
        kept = np.flatnonzero(precision >= 1 - alpha)
        return (int(kept[-1]) + 1) / int(known.sum()) if len(kept) else 0.0


def fields_on(judged: Judged, calibration: Calibration, names: Sequence[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    filled = judged.filled(calibration)
    for column, name in enumerate(names):
        field = calibration.field(name)
        assert field is not None
        known = judged.known[:, column]
        num_filled = int(filled[:, column].sum())
        num_right = int((filled & judged.right)[:, column].sum())
        fields[name] = {
            **{k: v for k, v in dataclasses.asdict(field).items() if k != "grid"},
            "test_listings": int(known.sum()),
            "test_coverage": num_filled / int(known.sum()),
            "test_precision": num_right / num_filled if num_filled else None,
            "test_precision_interval": wilson_interval(num_right, num_filled) if num_filled else None,
            "best_possible_coverage": judged.best_coverage(column, field.alpha),
            "ece": expected_calibration_error(judged.scores[known, column], judged.right[known, column]),
            "top1": float(judged.right[known, column].mean()),
        }
    return fields


def figures(name: str, manifest_path: Path, run: Path | None) -> dict[str, Any]:
    bundle = trained(name, manifest_path, run)
    calibration = bundle.calibration
    manifest = Manifest.load(str(manifest_path))
    engine = OnnxEngine(bundle)
    rng = np.random.default_rng(0)

    def answered(split: str) -> Predictions:
        rows = manifest.where_split(split)
        return as_listings(predict(rows, bundle.taxonomy, bundle.info.preprocessing, engine.infer), calibration)

    test, tune = answered("test"), answered("val")
    names = [*(field_name(depth + 1) for depth in range(bundle.taxonomy.max_depth)), BRAND_FIELD]
    found = {"fields": fields_on(Judged(test, bundle, calibration), calibration, names)}
    if name == "drawn":
        # Where nearly all answers are right the usual promise says little: a stricter one leaves something to choose.
        strict = calibrate(
            tune,
            bundle.taxonomy,
            certifies={},
            calibration_predictions=answered("calibrate"),
            promises=Promises(alpha_category=STRICT_ALPHA, alpha_brand=STRICT_ALPHA),
        )
        found["fields_at_1_percent"] = fields_on(Judged(test, bundle, strict), strict, names)
    pool = test
    num_calibration = max(field.num_listings for field in calibration.fields)
    # As many as the certificate itself had for temperatures and grids: without a calibrate split half of val.
    tuned_on = tune
    if name == "grocery":
        tuned_on = drawn_anew(tune, np.arange(0, len(tune.listing_ids), 2))
    broken = np.zeros(len(names), dtype=int)
    never = np.zeros(len(names), dtype=int)
    any_broken = 0
    population: Judged | None = None
    for _ in range(NUM_DRAWS):
        tested = drawn_anew(pool, rng.integers(0, len(pool.listing_ids), num_calibration))
        certified = calibrate(tuned_on, bundle.taxonomy, certifies={}, calibration_predictions=tested)
        population = population or Judged(pool, bundle, certified)
        filled = population.filled(certified)
        alphas = np.array([field.alpha for field in certified.fields])
        shares = (filled & ~population.right).sum(axis=0) / np.maximum(filled.sum(axis=0), 1)
        broken += shares > alphas
        any_broken += bool((shares > alphas).any())
        never += filled.sum(axis=0) == 0
    return {
        **found,
        "draws": NUM_DRAWS,
        "listings_a_draw": num_calibration,
        "tuned_on": len(tuned_on.listing_ids),
        "violation_rate": any_broken / NUM_DRAWS,
        "violation_rate_by_field": dict(zip(names, (broken / NUM_DRAWS).tolist(), strict=True)),
        "never_filled_by_field": dict(zip(names, (never / NUM_DRAWS).tolist(), strict=True)),
    }


def headline(found: dict[str, Any], prefix: str = "") -> dict[str, float]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("drawn", "grocery"))
    parser.add_argument("--grocery-run", type=Path, help="a finished run, such as that of grocery_accuracy")
    asked = parser.parse_args()
    only = asked.only
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, manifest in (("drawn", draw), ("grocery", import_grocery)):
        if only in (None, name):
            details[name] = figures(name, manifest(), asked.grocery_run if name == "grocery" else None)
            metrics |= headline(details[name], "" if name == "drawn" else "grocery_")
            for promised in ("fields", "fields_at_1_percent"):
                for field, f in details[name].get(promised, {}).items():
                    print(f"{name} {field}: " + ", ".join(f"{k} {v}" for k, v in f.items() if k != "name"))
    write_result("certificate" if only is None else f"certificate_{only}", metrics, details)


if __name__ == "__main__":
    main()
