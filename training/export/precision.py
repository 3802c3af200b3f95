"""Conversion of a bundle to another precision: fp16 for GPUs, INT8 for CPUs.

Each conversion is a bundle of its own, with its own calibration, because its predictions differ.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from training.calibration.calibrate import calibrate
from training.calibration.splits import split_calibration_rows
from training.errors import PrecisionRefused
from training.evaluation.ground_truth import build_ground_truth
from training.export.export import compare_export, export_onnx
from training.export.model_card import render_model_card
from training.export.quantization import METHODS, export_quantized_onnx
from training.export.torchscript import export_torchscript, load_torchscript
from training.inference.forward import onnx_forward, torch_forward
from training.inference.network import load_bundle_model
from training.inference.predictions import Infer, Predictions, predict
from vision.bundle import (
    Bundle,
    Golden,
    certificate_binding,
    create_bundle,
    load_bundle,
    require_new_folder,
    seal_bundle,
)
from vision.errors import BundleError, ListingVisionError, PhotoError
from vision.images import prepare_photo
from vision.manifest import Manifest
from vision.model import ListingClassifier, Outputs
from vision.photo_files import read_photo_with_retries
from vision.runtime.files import compute_sha256

__all__ = ["MAX_TOP1_LOSS", "Fp16Classifier", "Precision", "convert_bundle", "measure_onnx_speeds"]

_log = logging.getLogger(__name__)

Precision = Literal["fp16", "int8"]
MAX_TOP1_LOSS = 0.005
"""Highest share of the tune photos with a known leaf whose prediction may become wrong."""
NUM_RANGE_PHOTOS = 128
"""Training photos that the ranges of activations are taken from."""
_FP16_TOLERANCE = 0.25
"""Largest difference of a logit between the fp16 network and its exports; each rounds sums at other places."""


class Fp16Classifier(nn.Module):
    """The classifier with its backbone in fp16; normalisation and heads, which cost nothing, stay in fp32."""

    def __init__(self, model: ListingClassifier) -> None:
        super().__init__()
        self.model = model
        self.model.backbone.half()

    def forward(self, photos_nhwc: torch.Tensor) -> Outputs:
        model = self.model
        photos_nchw = model.normalise(photos_nhwc).half().contiguous(memory_format=torch.channels_last)
        return model.apply_heads(*(features.float() for features in model.compute_features(photos_nchw)))


class _Candidate(NamedTuple):
    """One candidate conversion, evaluated on the tune split."""

    how: str
    onnx: Path
    tune: Predictions
    top1_loss: float
    """As a share of the tune photos with a known leaf; negative where the candidate is better."""


def convert_bundle(
    bundle: Bundle,
    manifest: Manifest,
    folder: Path,
    *,
    precision: Precision,
    max_top1_loss: float = MAX_TOP1_LOSS,
    measure_s: float = 1.0,
) -> Bundle:
    """Write a bundle of the same model in another precision, with guarantees certified again.

    Args:
        bundle: the fp32 bundle.
        manifest: with the splits train (ranges of activations), val (choice and gate) and, if there is one, calibrate.
        folder: the new bundle.
        precision: that of the new exports.
        max_top1_loss: highest allowed loss on the tune split, as a share of its photos.
        measure_s: duration of each of the speed measurements that the record gets.

    Raises:
        BundleError: `folder` exists, or `bundle` is not in fp32.
        PrecisionRefused: the loss is higher.
        ExportMismatch: an export predicts differently from the network on the same photos.
    """
    require_new_folder(folder)
    if precision not in get_args(Precision):
        raise ListingVisionError(f"precision {precision!r} is not one of {', '.join(get_args(Precision))}")
    if bundle.info.precision != "fp32":
        raise BundleError(f"bundle {bundle.folder} is in {bundle.info.precision}; convert the fp32 one it came from")
    if "model.pt2" in bundle.files:
        _log.warning("%s has a model.pt2, which is in fp32 only: the new bundle has none", bundle.folder)
    with create_bundle(folder) as building:
        tune_rows, tested_rows, split = split_calibration_rows(manifest)
        reference = _predict(bundle, tune_rows, onnx_forward(bundle.onnx_path))
        candidates = (
            _export_half(bundle, building) if precision == "fp16" else _export_quantized(bundle, manifest, building)
        )
        chosen = _choose(bundle, tune_rows, reference, candidates)
        if chosen.top1_loss > max_top1_loss:
            raise PrecisionRefused(
                f"{precision} ({chosen.how}) predicts {100 * chosen.top1_loss:.2f} points fewer of the tune split's "
                f"leaves correctly than fp32, more than {100 * max_top1_loss:.2f}; allow more with --max-top1-loss, or "
                "keep fp32"
            )
        chosen.onnx.replace(building / "model.onnx")
        for path in building.glob("candidate-*.onnx"):
            path.unlink()
        speeds = measure_onnx_speeds(
            {"fp32": bundle.onnx_path, precision: building / "model.onnx"},
            bundle.golden.photos_nhwc,
            seconds=measure_s,
        )
        _seal(bundle, building, chosen, precision, speeds, tested_rows, split)
    return load_bundle(folder)


def _predict(bundle: Bundle, rows: Manifest, infer: Infer) -> Predictions:
    predictions = predict(rows, bundle.taxonomy, bundle.info.preprocessing, infer)
    for photo in predictions.unusable:
        _log.warning("left out: %s", photo)
    return predictions


def _export_half(bundle: Bundle, building: Path) -> dict[str, Path]:
    """Export the network with its backbone in fp16 to ONNX and TorchScript, and compare both with it."""
    model = Fp16Classifier(load_bundle_model(bundle)).eval()
    photos = np.concatenate([bundle.golden.photos_nhwc] * 32)[:64]
    path = building / "candidate-fp16.onnx"
    export_onnx(model, photos, path)
    export_torchscript(model, torch.from_numpy(photos[:2]), building / "model.torchscript.pt")
    network = torch_forward(model)
    for name, exported in (
        ("fp16 ONNX", onnx_forward(path)),
        ("fp16 TorchScript", torch_forward(load_torchscript(building / "model.torchscript.pt"))),
    ):
        compare_export(network, exported, photos, name=name, tolerance=_FP16_TOLERANCE)
    return {"backbone in fp16": path}


def _export_quantized(bundle: Bundle, manifest: Manifest, building: Path) -> dict[str, Path]:
    """Export one INT8 candidate for each method of finding activation ranges."""
    shutil.copy2(bundle.torchscript_path, building / "model.torchscript.pt")
    photos = _prepare_training_photos(bundle, manifest.select_split("train"))
    found = {}
    for method in METHODS:
        path = building / f"candidate-{method}.onnx"
        export_quantized_onnx(bundle.onnx_path, photos, path, method=method)
        found[f"static QDQ, ranges by {method} over {len(photos)} training photos"] = path
    return found


def _prepare_training_photos(bundle: Bundle, train: Manifest) -> npt.NDArray[np.uint8]:
    """(NUM_RANGE_PHOTOS, S, S, 3), drawn at random, or as many as there are and can be read."""
    photos: list[npt.NDArray[np.uint8]] = []
    for row in np.random.default_rng(0).permutation(len(train)):
        if len(photos) == NUM_RANGE_PHOTOS:
            break
        try:
            photos.append(
                prepare_photo(read_photo_with_retries(train.get_photo_url(int(row))), bundle.info.preprocessing)
            )
        except (OSError, PhotoError) as error:
            _log.warning("photo %s left out of the ranges: %s", train.get_photo_url(int(row)), error)
    if not photos:
        raise ListingVisionError("no photo of the train split can be read; run `listing-vision data check`")
    return np.stack(photos)


def _choose(bundle: Bundle, rows: Manifest, reference: Predictions, candidates: Mapping[str, Path]) -> _Candidate:
    """Choose the candidate that loses least; among equals, the one whose logits are nearest to the reference."""
    leaves = build_ground_truth(reference.labels, bundle.taxonomy).leaves
    known = leaves >= 0

    def measure_top1(predictions: Predictions) -> float:
        return float((predictions.category_logits.argmax(axis=1) == leaves)[known].mean()) if known.any() else 0.0

    choices, differences = [], []
    for how, path in candidates.items():
        predictions = _predict(bundle, rows, onnx_forward(path))
        choices.append(_Candidate(how, path, predictions, measure_top1(reference) - measure_top1(predictions)))
        differences.append(float(np.square(predictions.category_logits - reference.category_logits).mean()))
        _log.info("%s: %.2f points of top-1 lost on the tune split", how, 100 * choices[-1].top1_loss)
    order = sorted(range(len(choices)), key=lambda i: (choices[i].top1_loss, differences[i]))
    return choices[order[0]]


def _seal(
    bundle: Bundle,
    building: Path,
    chosen: _Candidate,
    precision: Precision,
    speeds: Mapping[str, float],
    tested_rows: Manifest | None,
    split: str,
) -> None:
    for name in ("weights.safetensors", "taxonomy.json"):
        shutil.copy2(bundle.folder / name, building / name)
    infer = onnx_forward(building / "model.onnx")
    golden = bundle.golden.photos_nhwc
    logits = infer(golden)
    Golden(golden, logits.category, logits.brand, logits.scope).save(building / "golden.safetensors")
    converted = {
        "how": chosen.how,
        "top1_loss": chosen.top1_loss,
        "num_photos": len(chosen.tune.category_logits),
        "photos_per_s_one_thread": {name: round(speed, 2) for name, speed in speeds.items()},
    }
    info = replace(
        bundle.info,
        # The version names the precision too: no two models of one version predict differently.
        model_version=f"{bundle.info.model_version}-{precision}",
        precision=precision,
        parity={name: found for name, found in bundle.info.parity.items() if name != "aot_inductor"},
        training={**bundle.info.training, "converted": converted},
    )
    sha256 = {name: compute_sha256(building / name) for name in ("weights.safetensors", "model.onnx", "taxonomy.json")}
    calibration = calibrate(
        chosen.tune,
        bundle.taxonomy,
        certifies={**certificate_binding(info, sha256), "split": split},
        calibration_predictions=_predict(bundle, tested_rows, infer) if tested_rows else None,
        category_log_prior=bundle.calibration.category_log_prior,
        brand_log_prior=bundle.calibration.brand_log_prior,
    )
    (building / "calibration.json").write_text(calibration.to_json() + "\n", encoding="utf-8")
    (building / "model_card.md").write_text(render_model_card(info, bundle.taxonomy, calibration), encoding="utf-8")
    seal_bundle(building, info)


def measure_onnx_speeds(
    models: Mapping[str, Path], photos_nhwc: npt.NDArray[np.uint8], *, rounds: int = 3, seconds: float = 1.0
) -> dict[str, float]:
    """Measure the photos/s of ONNX models on one thread of this machine, one photo at a time: medians of alternating
    rounds."""
    runs = {name: onnx_forward(path, num_threads=1) for name, path in models.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, infer in runs.items():
            infer(photos_nhwc[:1])
            number, began_s = 0, time.monotonic()
            while time.monotonic() - began_s < seconds:
                infer(photos_nhwc[:1])
                number += 1
            rates[name].append(number / (time.monotonic() - began_s))
    return {name: float(np.median(found)) for name, found in rates.items()}
