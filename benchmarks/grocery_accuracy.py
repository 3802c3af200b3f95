"""Measure the accuracy of the `grocery` recipe on the Grocery Store test split, and its training time.

    python -m benchmarks.grocery_accuracy [--seeds 0 1 …]

Trains (or resumes, or finds finished) one run per seed in build/benchmarks/grocery_accuracy, exports it, and evaluates
the export once on the test split. All choices were made on train and val.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import BUILD, create_parser, find_grocery_source, run_cli, write_result
from training.run import Run

FOLDER = BUILD / "grocery_accuracy"


def measure_seed(seed: int, manifest: Path) -> dict[str, Any]:
    """Train, export and evaluate one model; return its figures."""
    run, bundle = FOLDER / f"seed{seed}", FOLDER / f"seed{seed}-bundle"
    run_cli("train", manifest, "--recipe", "grocery", "--run", run, "--seed", seed)
    if not bundle.exists():
        run_cli("export", run, "--output", bundle, "--name", "grocery")
    figures = {}
    for name, options in (("alone", ()), ("three", ("--photos-per-listing", 3))):
        path = FOLDER / f"seed{seed}-{name}.json"
        run_cli("evaluate", bundle, manifest, "--split", "test", "--output", path, *options)
        figures[name] = json.loads(path.read_text())
    alone = figures["alone"]["photo"]
    records = Run(run).metrics()
    return {
        "seed": seed,
        "fine_top1": alone["leaf"]["top1"],
        "fine_top5": alone["leaf"]["top5"],
        "fine_macro": alone["leaf"]["macro"],
        "fine_top1_interval": alone["leaf"]["top1_interval"],
        "coarse_top1": alone["depth_2"]["top1"],
        "brand_top1_branded": alone["brand"]["top1_branded"],
        "brand_top1_unbranded": alone["brand"]["top1_unbranded"],
        "listing3_fine_top1": figures["three"]["listing"]["leaf"]["top1"],
        "val_fine_top1": records[-1]["val_leaf_top1"],
        "train_minutes": sum(record["seconds"] for record in records) / 60,
        "epochs": records,
    }


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds: list[int] = parser.parse_args().seeds
    run_cli("data", "import", "grocery-store", find_grocery_source(), "--output", FOLDER / "data")
    by_seed = [measure_seed(seed, FOLDER / "data" / "manifest.parquet") for seed in seeds]
    means = {
        key: statistics.mean(figures[key] for figures in by_seed)
        for key in (
            "fine_top1",
            "fine_top5",
            "fine_macro",
            "coarse_top1",
            "brand_top1_branded",
            "brand_top1_unbranded",
            "listing3_fine_top1",
            "train_minutes",
        )
    }
    details = {
        "split": "test, judged once; recipe and weights chosen on train and val; temperatures and thresholds on val",
        "listing3": "three test photos of one class drawn at random, fused",
        "by_seed": by_seed,
    }
    write_result("grocery_accuracy", {**means, "seeds": len(seeds)}, details)


if __name__ == "__main__":
    main()
