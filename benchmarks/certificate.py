"""Check that prefilled fields keep their guarantee, on Grocery Store and on 20,000 synthetic listings.

    python -m benchmarks.certificate [--only drawn|grocery] [--grocery-run RUN]

The synthetic model, and without `--grocery-run` that of Grocery Store, are trained in minutes, to be weak: the
guarantee must hold for a weak model too. Of Grocery Store's val split (296 listings) a fifth is for temperatures and
thresholds, the rest for tests; the synthetic set has a split for each. The test splits are evaluated once. Then the
calibration listings are drawn 1,000 times, with replacement, from listings that were not trained on (Grocery Store:
val itself, tuning included), and each certificate is checked on all of these: what is filled, and how often is a
guarantee broken? Beside it the usual rule: the loosest threshold at which the calibration listings are right often
enough.
"""

import dataclasses
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.common import BUILD, create_parser, find_grocery_source, run_cli, write_result
from training.calibration.calibrate import calibrate
from training.calibration.certify import Guarantee
from training.data.synthetic import create_synthetic_dataset
from training.evaluation.ground_truth import (
    build_ground_truth,
    evaluate_brands,
    evaluate_deepest_filled,
    evaluate_paths,
    find_labelled,
    merge_listing_labels,
)
from training.inference.predictions import Predictions, predict
from vision.bundle import Bundle, load_bundle
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee, get_field_name
from vision.decision import compute_prefilled
from vision.engine import OnnxEngine
from vision.manifest import Labels, Manifest
from vision.metrics import compute_expected_calibration_error, compute_wilson_interval
from vision.prediction.listings import ListingPredictions, predict_listings

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


def resample(listings: Predictions, rows: npt.NDArray[np.int64]) -> Predictions:
    """Return some listings with all their photos; one that is drawn twice is two listings."""
    order = np.argsort(listings.groups, kind="stable")
    starts = np.searchsorted(listings.groups[order], np.arange(len(listings.listing_ids) + 1))
    counts = np.diff(starts)[rows]
    groups = np.repeat(np.arange(len(rows)), counts)
    photos = order[np.arange(len(groups)) + np.repeat(starts[rows] - (np.cumsum(counts) - counts), counts)]
    labels = listings.labels
    return dataclasses.replace(
        listings,
        category_logits=listings.category_logits[photos],
        brand_logits=listings.brand_logits[photos],
        scope_scores=listings.scope_scores[photos],
        labels=Labels(category_nodes=labels.category_nodes[photos], brands=labels.brands[photos]),
        groups=groups,
        listing_ids=tuple(listings.listing_ids[row] for row in rows),
        photo_urls=tuple(listings.photo_urls[photo] for photo in photos),
        short_sides_px=None,
        num_bytes=None,
        brightness=None,
    )


class MeasuredFields(NamedTuple):
    """What a certificate comes to, a value a column of `EvaluatedListings`."""

    passed: npt.NDArray[np.bool_]
    """Whether there is a guarantee; false for a depth of a path, which has none of its own."""
    broken: npt.NDArray[np.bool_]
    filled_shares: npt.NDArray[np.floating]
    error_shares: npt.NDArray[np.floating]
    """NaN where nothing is filled."""


class EvaluatedListings:
    """Confidences and correctness of the path, of each depth and of the brand, in columns of that order."""

    def __init__(self, listings: Predictions, bundle: Bundle, calibration: Calibration) -> None:
        self.taxonomy = bundle.taxonomy
        self.names = [PATH_FIELD, *(get_field_name(d + 1) for d in range(bundle.taxonomy.max_depth)), BRAND_FIELD]
        self.predictions: ListingPredictions = predict_listings(
            listings.category_logits, listings.brand_logits, listings.scope_scores, listings.groups,
            taxonomy=self.taxonomy, calibration=calibration,
        )  # fmt: skip
        truth = build_ground_truth(merge_listing_labels(listings.labels, listings.groups), self.taxonomy)
        self.steps = evaluate_paths(self.predictions.paths, truth)
        brands = evaluate_brands(self.predictions.brands.labels, truth)
        self.brand_right = brands.right
        self.known = np.column_stack([find_labelled(truth), self.steps.known, brands.known])
        first_scores = self.predictions.paths.scores[:, :1]
        self.scores = np.column_stack([first_scores, self.predictions.paths.scores, self.predictions.brands.scores])

    def apply(self, calibration: Calibration) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return whether each column of each listing with a known truth is filled, and whether it is right."""
        filled = compute_prefilled(self.predictions, taxonomy=self.taxonomy, calibration=calibration)
        path_right = evaluate_deepest_filled(filled[:, :-1], self.steps)
        right = np.column_stack([path_right, self.steps.right, self.brand_right])
        return np.column_stack([filled[:, 0], filled]) & self.known, right

    def measure(self, calibration: Calibration) -> "MeasuredFields":
        """Measure a certificate with these listings as the whole truth."""
        filled, right = self.apply(calibration)
        num_filled = filled.sum(axis=0)
        errors = (filled & ~right).sum(axis=0) / np.maximum(num_filled, 1)
        guarantees = [calibration.field(name) for name in self.names]
        return MeasuredFields(
            passed=np.array([field is not None and field.threshold is not None for field in guarantees]),
            broken=np.array(
                [field is not None and e > field.alpha for field, e in zip(guarantees, errors, strict=True)]
            ),
            filled_shares=num_filled / self.known.sum(axis=0),
            error_shares=np.where(num_filled > 0, errors, np.nan),
        )

    def compute_best_coverage(self, column: int, alpha: float) -> float:
        """Return the largest coverage of any threshold at the guaranteed precision, with all labels known."""
        known = self.known[:, column]
        right = np.column_stack([self.steps.right[:, :1], self.steps.right, self.brand_right])
        order = np.argsort(-self.scores[known, column], kind="stable")
        precision = np.cumsum(right[known, column][order]) / np.arange(1, known.sum() + 1)
        kept = np.flatnonzero(precision >= 1 - alpha)
        return (int(kept[-1]) + 1) / int(known.sum()) if len(kept) else 0.0


def get_guarantee(calibration: Calibration, name: str) -> FieldGuarantee:
    """Return the guarantee whose threshold fills a field: that of the path for a depth."""
    field = calibration.field(name) or calibration.field(PATH_FIELD)
    assert field is not None
    return field


def evaluate_fields(evaluated: EvaluatedListings, calibration: Calibration) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    all_filled, all_right = evaluated.apply(calibration)
    for column, name in enumerate(evaluated.names):
        field = get_guarantee(calibration, name)
        known, filled, right = evaluated.known[:, column], all_filled[:, column], all_right[:, column]
        num_filled, num_right = int(filled.sum()), int((filled & right).sum())
        fields[name] = {
            **{k: v for k, v in dataclasses.asdict(field).items() if k not in ("grid", "name")},
            "test_listings": int(known.sum()),
            "test_coverage": num_filled / int(known.sum()),
            "test_precision": num_right / num_filled if num_filled else None,
            "test_precision_interval": compute_wilson_interval(num_right, num_filled) if num_filled else None,
        }
        if name != PATH_FIELD:  # whether a path is right depends on how deep it is filled
            scores = evaluated.scores[known, column]
            fields[name] |= {
                "best_possible_coverage": evaluated.compute_best_coverage(column, field.alpha),
                "ece": compute_expected_calibration_error(scores, right[known]),
                "top1": float(right[known].mean()),
            }
    return fields


def summarise_error_shares(draws: MeasuredFields) -> list[int]:
    """Return how many draws have each error share of the path, in bins of half a percent up to 10 %."""
    shares = draws.error_shares[:, 0]
    counts, _ = np.histogram(np.minimum(shares[np.isfinite(shares)], 0.0999), bins=20, range=(0, 0.1))
    return [int(count) for count in counts]


def apply_usual_rule(certified: Calibration, tested: EvaluatedListings) -> Calibration:
    """Return the calibration with the usual thresholds, which guarantee nothing.

    Of the same grid: the loosest threshold at which the calibration listings themselves are right often enough.
    """

    def choose(field: FieldGuarantee) -> FieldGuarantee:
        column = tested.names.index(field.name)
        loosest = None
        for threshold in field.grid:
            filled, right = tested.apply(
                dataclasses.replace(certified, fields=(dataclasses.replace(field, threshold=threshold),))
            )
            num_filled, num_errors = int(filled[:, column].sum()), int((filled & ~right)[:, column].sum())
            if num_filled and num_errors <= field.alpha * num_filled:
                loosest = threshold
        return dataclasses.replace(field, threshold=loosest)

    return dataclasses.replace(certified, fields=tuple(map(choose, certified.fields)))


def redraw(
    tuned_on: Predictions | None, pool: Predictions, bundle: Bundle, *, num_calibration: int, num_tune: int = 0
) -> dict[str, Any]:
    """Certify on listings drawn from the pool, which is the whole truth, and count what is filled and broken.

    Args:
        tuned_on: listings for temperatures and grids; None: the first `num_tune` of each draw, the rest of which is
            for the tests.
        num_calibration: listings in a draw.
    """
    rng = np.random.default_rng(0)
    measured: list[MeasuredFields] = []
    usual: list[MeasuredFields] = []
    population: EvaluatedListings | None = None
    # What was fitted on the same tune listings is not fitted again.
    fitted = bundle.calibration if tuned_on else None
    for _ in range(NUM_RESAMPLES):
        rows = rng.integers(0, len(pool.listing_ids), num_calibration)
        tested = resample(pool, rows[num_tune:])
        certified = calibrate(
            tuned_on or resample(pool, rows[:num_tune]),
            bundle.taxonomy,
            certifies={},
            calibration_predictions=tested,
            scope_threshold=fitted.scope_threshold if fitted else None,
            agreement_limit=fitted.agreement_limit if fitted else None,
        )
        if population is None or tuned_on is None:  # the temperatures are of the tune listings
            population = EvaluatedListings(pool, bundle, certified)
        measured.append(population.measure(certified))
        usual.append(population.measure(apply_usual_rule(certified, EvaluatedListings(tested, bundle, certified))))
    assert population is not None
    usual_draws = MeasuredFields(*map(np.array, zip(*usual, strict=True)))
    all_draws = MeasuredFields(*map(np.array, zip(*measured, strict=True)))
    columns = {
        "pass_share_by_field": all_draws.passed.mean(axis=0),
        "violation_rate_by_field": all_draws.broken.mean(axis=0),
        "filled_share_by_field": all_draws.filled_shares.mean(axis=0),
        "error_share_by_field": np.nanmean(all_draws.error_shares, axis=0),
    }
    return {
        "draws": NUM_RESAMPLES,
        "listings_a_draw": num_calibration,
        "tuned_on": num_tune if tuned_on is None else len(tuned_on.listing_ids),
        "violation_rate": float(all_draws.broken.any(axis=1).mean()),
        "usual_rule_violation_rate": float(usual_draws.broken.any(axis=1).mean()),
        "path_error_shares": summarise_error_shares(all_draws),
        "usual_rule_path_error_shares": summarise_error_shares(usual_draws),
        **{name: dict(zip(population.names, values.tolist(), strict=True)) for name, values in columns.items()},
    }


def measure_dataset(name: str, manifest_path: Path, run: Path | None) -> dict[str, Any]:
    bundle = train_model(name, manifest_path, run)
    calibration = bundle.calibration
    manifest = Manifest.load(str(manifest_path))
    engine = OnnxEngine(bundle)

    def answered(split: str) -> Predictions:
        rows = manifest.select_split(split)
        return predict(rows, bundle.taxonomy, bundle.info.preprocessing, engine.infer)

    test, val = answered("test"), answered("val")
    found = {"fields": evaluate_fields(EvaluatedListings(test, bundle, calibration), calibration)}
    if name == "grocery":
        # The whole of val is the truth; each draw is of as many listings as there are, a fifth of them for tuning.
        num = len(val.listing_ids)
        return found | redraw(None, val, bundle, num_calibration=num, num_tune=num // 5)
    # Where nearly all suggestions are right the usual guarantee holds at any threshold; a stricter one does not.
    strict = calibrate(
        val,
        bundle.taxonomy,
        certifies={},
        calibration_predictions=answered("calibrate"),
        guarantee=Guarantee(alpha_category=STRICT_ALPHA, alpha_brand=STRICT_ALPHA),
    )
    found["fields_at_1_percent"] = evaluate_fields(EvaluatedListings(test, bundle, strict), strict)
    num_calibration = max(field.num_listings for field in calibration.fields)
    return found | redraw(val, test, bundle, num_calibration=num_calibration)


def select_metrics(found: dict[str, Any]) -> dict[str, float]:
    path, *depths, brand = found["fields"].values()
    deepest = depths[-1]
    metrics = {
        "violation_rate": found["violation_rate"],
        "usual_rule_violation_rate": found["usual_rule_violation_rate"],
        "leaf_coverage_gap": deepest["best_possible_coverage"] - deepest["test_coverage"],
        "coverage_leaf": deepest["test_coverage"],
        "ece_category": max(depth["ece"] for depth in depths),
        "ece_brand": brand["ece"],
    }
    if "fields_at_1_percent" in found:
        strict = list(found["fields_at_1_percent"].values())[-2]
        metrics["leaf_coverage_gap_at_1_percent"] = strict["best_possible_coverage"] - strict["test_coverage"]
        metrics["coverage_leaf_at_1_percent"] = strict["test_coverage"]
    for name, field in (("category", path), ("brand", brand)):
        if field["test_precision"] is not None:
            metrics[f"realised_precision_{name}"] = field["test_precision"]
    return metrics


def select_grocery_metrics(found: dict[str, Any]) -> dict[str, float]:
    passed, filled, wrong = (found[f"{name}_by_field"] for name in ("pass_share", "filled_share", "error_share"))
    return {
        "path_pass_share": passed[PATH_FIELD],
        "depth2_filled_share": filled[get_field_name(2)],
        "depth3_filled_share": filled[get_field_name(3)],
        "path_error_share": wrong[PATH_FIELD],
        "brand_pass_share": passed[BRAND_FIELD],
        "brand_filled_share": filled[BRAND_FIELD],
        "brand_error_share": wrong[BRAND_FIELD],
        "violation_rate": found["violation_rate"],
        "usual_rule_violation_rate": found["usual_rule_violation_rate"],
    }


def print_fields(name: str, found: dict[str, Any]) -> None:
    for promised in ("fields", "fields_at_1_percent"):
        for field, figures in found.get(promised, {}).items():
            print(f"{name} {field}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--only", choices=("drawn", "grocery"))
    parser.add_argument("--grocery-run", type=Path, help="a finished run, such as that of grocery_accuracy")
    options = parser.parse_args()
    if options.only in (None, "drawn"):
        found = measure_dataset("drawn", create_synthetic_manifest(), None)
        print_fields("drawn", found)
        write_result("certificate", select_metrics(found), {"drawn": found})
    if options.only in (None, "grocery"):
        found = measure_dataset("grocery", import_grocery(), options.grocery_run)
        print_fields("grocery", found)
        write_result("certificate_grocery", select_grocery_metrics(found), {"grocery": found})


if __name__ == "__main__":
    main()
