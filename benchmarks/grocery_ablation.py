"""Measure what each ingredient of the grocery recipe gives: short runs that differ in one thing.

    python -m benchmarks.grocery_ablation [--seeds 0 1 2] [--epochs 6] [--photo-px 112] [--keep]

The val split has 296 photos: the accuracy of one run has an error of about 4 points, so compare differences with the
spread between seeds. The test split is not used. Interrupted, the command resumes: finished runs of the same commit are
not repeated, and runs of another commit have another folder. The result is written after each run. With --keep, the
runs of the committed result stay as they are and the others are added: each names its seed and the commit that it is
of, and a variant is compared with the recipe over the seeds that both have.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.common import (
    BUILD,
    RESULTS,
    create_parser,
    describe_commit,
    find_grocery_source,
    run_cli,
    write_result,
)
from training.recipe import Recipe, Stage, load_recipe
from training.run import Run
from training.trainer.training_loop import TrainingLoop
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

FOLDER = BUILD / "grocery_ablation" / describe_commit()
WITH_ICONIC = "with iconic photos"
"""The variant of the same recipe with one more training photo of each class, by the shop."""


Runs: TypeAlias = dict[str, list[dict[str, Any]]]
"""Seed, commit, accuracies and minutes of each run, by variant."""


def base(photo_px: int, epochs: int) -> Recipe:
    stages = (
        Stage(photo_px=photo_px, epochs=1, trains="heads"),
        Stage(photo_px=photo_px, epochs=epochs - 1),
    )
    return dataclasses.replace(load_recipe("grocery"), stages=stages, input_px=round(photo_px * 1.14 / 16) * 16)


def create_variants(made: Recipe) -> dict[str, Recipe]:
    whole, epochs = made.stages[-1], made.num_epochs
    changes: dict[str, dict[str, Any]] = {
        "recipe": {},
        "lite0 instead of lite2": {"backbone": "tf_efficientnet_lite0"},
        "nothing frozen": {"frozen_groups": 0},
        "heads not first": {"stages": (dataclasses.replace(whole, epochs=epochs),)},
        "no TrivialAugment": {"trivial_augment": False},
        "no erasing": {"erasing_probability": 0.0},
        "no label smoothing": {"label_smoothing": 0.0},
        "no averaged weights": {"ema_decay": 0.0},
        "with mixup and CutMix": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0},
        "with logit adjustment": {"long_tail": "logit_adjustment"},
        "with losses of inner nodes": {"inner_node_loss_weight": 1.0},
        WITH_ICONIC: {},
    }
    return {name: dataclasses.replace(made, **change) for name, change in changes.items()}


def read_kept(asked: argparse.Namespace) -> Runs:
    """Return the runs of the committed result; none if they are of another size, or do not name their seeds."""
    details = json.loads((RESULTS / "grocery_ablation.json").read_text())["details"]
    is_same_size = all(details["setting"][key] == getattr(asked, key) for key in ("epochs", "photo_px"))
    runs: Runs = details["runs"]
    return runs if is_same_size and all("seed" in run for run in itertools.chain(*runs.values())) else {}


def train_model(recipe: Recipe, data: Path, folder: Path) -> dict[str, Any]:
    manifest = data / "manifest.parquet"
    trainer = TrainingLoop(
        recipe,
        manifest_url=str(manifest),
        manifest=Manifest.load(str(manifest)),
        taxonomy=Taxonomy.load(data / "taxonomy.json"),
        run=Run(folder),
    )
    trainer.run()
    if trainer.interrupted:
        raise SystemExit(75)
    records = Run(folder).metrics()
    return {
        "seed": recipe.seed,
        "commit": describe_commit(),
        "val_leaf_top1": records[-1]["val_leaf_top1"],
        "val_brand_top1": records[-1]["val_brand_top1"],
        "minutes": sum(record["seconds"] for record in records) / 60,
    }


def write_results(asked: argparse.Namespace, runs: Runs) -> None:
    of_recipe = {run["seed"]: run["val_leaf_top1"] for run in runs["recipe"]}
    metrics = {"seeds": float(len(of_recipe)), "recipe": statistics.mean(of_recipe.values())}
    for name, found in runs.items():
        gains = [run["val_leaf_top1"] - of_recipe[run["seed"]] for run in found if run["seed"] in of_recipe]
        if name != "recipe" and gains:
            metrics[f"{name}: points"] = 100 * statistics.mean(gains)
    setting = {"epochs": asked.epochs, "photo_px": asked.photo_px}
    write_result("grocery_ablation", metrics, {"setting": setting, "split": "val, 296 photos", "runs": runs})


def main() -> None:
    parser = create_parser(__doc__, epochs=6, photo_px=112)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", action="store_true", help="add runs to those of the committed result")
    asked = parser.parse_args()
    source = find_grocery_source()
    run_cli("data", "import", "grocery-store", source, "--output", FOLDER / "data")
    run_cli("data", "import", "grocery-store", source, "--iconic", "--output", FOLDER / "data-iconic")
    runs = read_kept(asked) if asked.keep else {}
    variants = create_variants(base(asked.photo_px, asked.epochs))
    for seed, (name, recipe) in itertools.product(asked.seeds, variants.items()):
        done = runs.setdefault(name, [])
        if any(run["seed"] == seed for run in done):
            continue
        data = FOLDER / ("data-iconic" if name == WITH_ICONIC else "data")
        folder = FOLDER / f"{name.replace(' ', '-')}-{asked.photo_px}px-{asked.epochs}-seed{seed}"
        done.append(train_model(dataclasses.replace(recipe, seed=seed), data, folder))
        print(f"{name} seed {seed}: {done[-1]['val_leaf_top1']:.1%}, {done[-1]['minutes']:.1f} min", flush=True)
        write_results(asked, runs)


if __name__ == "__main__":
    main()
