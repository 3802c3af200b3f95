"""Measure speed and accuracy of INT8 and of a smaller student on the CPU, with the Grocery Store photos.

    python -m benchmarks.precision --teacher BUNDLE [--student BUNDLE]

Teacher and student are converted to INT8 (ranges from train, method and gate on val). Each model is evaluated once on
the test split. Speed is that of the model alone, one photo at a time on one thread, in turns.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BUILD, create_parser, find_grocery_source, run_cli, write_result
from training.evaluation.ground_truth import build_ground_truth
from training.export.precision import convert_bundle, measure_onnx_speeds
from training.inference.forward import onnx_forward
from training.inference.predictions import predict
from vision.bundle import Bundle, load_bundle
from vision.manifest import Manifest

FOLDER = BUILD / "precision"


def measure_top1(bundle: Bundle, manifest: Manifest, split: str) -> float:
    rows = manifest.select_split(split)
    answers = predict(rows, bundle.taxonomy, bundle.info.preprocessing, onnx_forward(bundle.onnx_path))
    leaves = build_ground_truth(answers.labels, bundle.taxonomy).leaves
    return float((answers.category_logits.argmax(axis=1) == leaves)[leaves >= 0].mean())


def measure_speeds(bundles: dict[str, Bundle]) -> dict[str, float]:
    """Return photos/s by model name; each model gets photos of its own size."""
    rates: dict[str, list[float]] = {name: [] for name in bundles}
    for _ in range(5):
        for name, bundle in bundles.items():
            found = measure_onnx_speeds({name: bundle.onnx_path}, bundle.golden.photos_nhwc, rounds=1, seconds=2.0)
            rates[name].append(found[name])
    return {name: float(np.median(found)) for name, found in rates.items()}


def convert_model(bundle: Bundle, manifest: Manifest, name: str) -> Bundle:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    # The gate is reported, not enforced: a loss above it is a result too.
    return convert_bundle(bundle, manifest, folder, precision="int8", max_top1_loss=1.0)


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path)
    options = parser.parse_args()
    run_cli("data", "import", "grocery-store", find_grocery_source(), "--output", FOLDER / "data")
    manifest = Manifest.load(str(FOLDER / "data" / "manifest.parquet"))
    bundles = {"teacher": load_bundle(options.teacher)}
    if options.student:
        bundles["student"] = load_bundle(options.student)
    bundles |= {f"{name}_int8": convert_model(bundle, manifest, f"{name}-int8") for name, bundle in bundles.items()}
    rates = measure_speeds(bundles)
    accuracy = {
        name: {split: measure_top1(b, manifest, split) for split in ("val", "test")} for name, b in bundles.items()
    }
    metrics = {
        "int8_speedup_cpu": rates["teacher_int8"] / rates["teacher"],
        "int8_top1_loss": accuracy["teacher"]["test"] - accuracy["teacher_int8"]["test"],
        "int8_top1_loss_val": accuracy["teacher"]["val"] - accuracy["teacher_int8"]["val"],
    }
    if options.student:
        metrics |= {
            "student_speedup": rates["student"] / rates["teacher"],
            "student_top1_loss": accuracy["teacher"]["test"] - accuracy["student"]["test"],
            "student_int8_speedup": rates["student_int8"] / rates["teacher"],
            "student_int8_speedup_of_student": rates["student_int8"] / rates["student"],
            "student_int8_top1_loss": accuracy["teacher"]["test"] - accuracy["student_int8"]["test"],
        }
    for name in bundles:
        metrics |= {f"{name}_test_top1": accuracy[name]["test"], f"{name}_photos_per_s": rates[name]}
    details: dict[str, Any] = {
        "models": {
            name: {
                "backbone": bundle.info.backbone,
                "input_px": bundle.info.preprocessing.input_px,
                "precision": bundle.info.precision,
                "how": bundle.info.training.get("converted", {}).get("how"),
                **{name: bundle.info.training["recipe"][name] for name in ("stages", "seed", "distillation_weight")},
                **{f"{split}_top1": value for split, value in accuracy[name].items()},
                "photos_per_s_one_thread": rates[name],
            }
            for name, bundle in bundles.items()
        },
        "split": "method and gate on val, test judged once",
    }
    write_result("precision", metrics, details)


if __name__ == "__main__":
    main()
