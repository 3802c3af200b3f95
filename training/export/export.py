"""Export of a finished run to a bundle whose exports are verified against the trained model."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from training.calibration.calibrate import calibrate
from training.calibration.splits import split_calibration_rows
from training.errors import ExportMismatch, RunError
from training.export.aot_inductor import export_aot_inductor, require_compiler
from training.export.model_card import render_model_card
from training.export.model_facts import count_photos, measure_on_test
from training.export.scope_head import add_scope_head
from training.export.torchscript import export_torchscript, load_torchscript
from training.inference.aot_inductor import load_aot_inductor
from training.inference.forward import onnx_forward, torch_forward
from training.inference.predictions import Infer, predict
from training.recipe import KeptWeights, Recipe
from training.run import Run
from training.trainer.loading.sampler import compute_sampling_weights
from training.trainer.losses import compute_log_class_shares
from vision.bundle import (
    Bundle,
    BundleInfo,
    Golden,
    certificate_binding,
    check_model_name,
    create_bundle,
    load_bundle,
    require_new_folder,
    seal_bundle,
)
from vision.bundle_manifest import NUM_VERSION_DIGITS
from vision.calibration import Calibration
from vision.engine import INPUT_NAME, OUTPUT_NAMES
from vision.errors import PhotoError
from vision.images import Preprocessing, prepare_photo
from vision.manifest import Manifest
from vision.model import ListingClassifier
from vision.photo_files import read_photo_with_retries
from vision.runtime.files import compute_sha256
from vision.taxonomy import Taxonomy

__all__ = [
    "BATCH_SIZES",
    "TOLERANCE",
    "UncalibratedBundle",
    "build_bundle",
    "compare_export",
    "compute_log_priors",
    "export_bundle",
    "export_onnx",
]

_log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 7, 64)
"""Each is run through each export: an export whose batch is frozen passes at one size only."""
TOLERANCE = 1e-3
"""Largest allowed difference of a logit in fp32; measured differences are near 1e-5."""
OPSET = 20
_NUM_GOLDEN_PHOTOS = 2


def export_bundle(
    run: Run, folder: Path, *, model_name: str, weights: KeptWeights | None = None, pt2: bool = False
) -> Bundle:
    """Export, compare, calibrate on the val split, seal, and load back what was written.

    Args:
        run: a finished one.
        folder: of the new bundle.
        model_name: in responses.
        weights: of which epoch; None for the one that the recipe chose.
        pt2: whether the bundle also has a `model.pt2`, compiled for CPUs of this kind.

    Raises:
        ListingVisionError: `pt2`, and there is no C++ compiler.
        RunError: the run has not finished, or has no such weights.
        BundleError: `folder` exists, or the name cannot be one.
        ExportMismatch: an export predicts differently from the trained model on the same photos.
    """
    require_new_folder(folder)
    check_model_name(model_name)
    if pt2:
        require_compiler()
    model, recipe, taxonomy = run.load_model(weights), run.recipe, run.taxonomy
    manifest = _load_manifest(run)
    val, tested, split = split_calibration_rows(manifest)
    preprocessing = Preprocessing(input_px=recipe.input_px)
    trained = manifest.select_split("train")
    category_log_prior, brand_log_prior = compute_log_priors(recipe, trained, taxonomy)
    held_out_scope_scores = add_scope_head(model, trained, taxonomy, preprocessing)

    def calibrate_export(exported: UncalibratedBundle) -> Calibration:
        tune_predictions, tested_predictions = (
            predict(rows, taxonomy, preprocessing, exported.infer) if rows else None for rows in (val, tested)
        )
        assert tune_predictions is not None
        for photo in (*tune_predictions.unusable, *(tested_predictions.unusable if tested_predictions else ())):
            _log.warning("left out of calibration: %s", photo)
        return calibrate(
            tune_predictions,
            taxonomy,
            certifies={
                **certificate_binding(exported.info, exported.sha256),
                "split": split,
                "selected_on": "val, whose metrics each epoch of the training shows",
            },
            calibration_predictions=tested_predictions,
            held_out_scope_scores=held_out_scope_scores,
            category_log_prior=category_log_prior,
            brand_log_prior=brand_log_prior,
        )

    return build_bundle(
        model,
        folder,
        model_name=model_name,
        taxonomy=taxonomy,
        preprocessing=preprocessing,
        photos_nhwc=_prepare_photos(val, preprocessing, num_photos=max(BATCH_SIZES)),
        photos_from="the val split",
        training={
            **run.read_settings(),
            "photos": count_photos(manifest),
            "test": measure_on_test(manifest, taxonomy, preprocessing, torch_forward(model)),
        },
        calibrate_export=calibrate_export,
        pt2=pt2,
    )


def _load_manifest(run: Run) -> Manifest:
    manifest = Manifest.load(run.read_settings()["manifest"])
    if manifest.compute_digest() != run.read_settings()["manifest_sha256"]:
        _log.warning(
            "the manifest has changed since training; a guarantee holds only if no calibration listing was trained on"
        )
    return manifest


def compute_log_priors(recipe: Recipe, train: Manifest, taxonomy: Taxonomy) -> tuple[list[float], list[float]]:
    """Log priors for the category and brand logits that restore the classes' natural frequencies; empty where not
    needed.

    Training with adjusted logits removes class frequencies, balanced sampling replaces them by its own.
    """
    if recipe.long_tail == "none" and recipe.balanced_sampling == 0:
        return [], []
    labels = train.resolve_labels(taxonomy, out_of_scope=True)
    weights = compute_sampling_weights(labels.category_nodes, recipe.balanced_sampling)

    def log_prior(nodes: npt.NDArray[np.int64], leaves_below: npt.NDArray[np.bool_]) -> list[float]:
        natural = compute_log_class_shares(nodes, leaves_below)
        learned = compute_log_class_shares(nodes, leaves_below, weights) if recipe.long_tail == "none" else np.zeros(1)
        return (natural - learned).tolist()  # type: ignore[no-any-return]

    each_brand = np.eye(len(taxonomy.brand_labels), dtype=bool)
    return log_prior(labels.category_nodes, taxonomy.leaves_below), log_prior(labels.brands, each_brand)


@dataclass(frozen=True, kw_only=True)
class UncalibratedBundle:
    """A bundle without its calibration."""

    info: BundleInfo
    sha256: Mapping[str, str]
    """Digests of the files that guarantees hold for, by name."""
    infer: Infer
    """The ONNX export."""


def build_bundle(
    model: ListingClassifier,
    folder: Path,
    *,
    model_name: str,
    taxonomy: Taxonomy,
    preprocessing: Preprocessing,
    photos_nhwc: npt.NDArray[np.uint8],
    photos_from: str,
    training: Mapping[str, Any],
    calibrate_export: Callable[[UncalibratedBundle], Calibration],
    pt2: bool = False,
) -> Bundle:
    """Export, compare, calibrate and seal a bundle, and load it back; `folder` appears when it is complete.

    Args:
        model: in evaluation mode, on the CPU.
        folder: the new bundle.
        model_name: shown to people; the version follows from the weights.
        taxonomy: in the order of the model's labels.
        preprocessing: that of the photos.
        photos_nhwc: (N, S, S, 3) that the exports are compared on; the first become the golden ones.
        photos_from: where they come from, for the record.
        training: how the model was made, for the record.
        calibrate_export: computes the calibration of the finished export.
        pt2: whether to compile a `model.pt2` too.

    Raises:
        BundleError: `folder` exists.
        ExportMismatch: an export predicts differently from the model on the same photos.
    """
    with create_bundle(folder) as building:
        parity = _write_exports(model, building, photos_nhwc, photos_from=photos_from, pt2=pt2)
        safetensors.torch.save_file(
            {k: v.contiguous() for k, v in model.state_dict().items()}, building / "weights.safetensors"
        )
        infer = onnx_forward(building / "model.onnx")
        golden = photos_nhwc[:_NUM_GOLDEN_PHOTOS]
        logits = infer(golden)
        Golden(golden, logits.category, logits.brand, logits.scope).save(building / "golden.safetensors")
        taxonomy.save(building / "taxonomy.json")
        sha256 = {
            name: compute_sha256(building / name) for name in ("weights.safetensors", "model.onnx", "taxonomy.json")
        }
        info = BundleInfo(
            model_name=model_name,
            model_version=sha256["weights.safetensors"][:NUM_VERSION_DIGITS],
            backbone=model.spec.backbone,
            mean=model.spec.mean,
            std=model.spec.std,
            num_categories=model.spec.num_categories,
            num_brands=model.spec.num_brands,
            embedding_size=logits.embedding.shape[1],
            precision="fp32",
            taxonomy_version=taxonomy.version,
            preprocessing=preprocessing,
            inputs=(INPUT_NAME,),
            outputs=OUTPUT_NAMES,
            training=training,
            parity=parity,
            brand_head=model.spec.brand_head,
        )
        calibration = calibrate_export(UncalibratedBundle(info=info, sha256=sha256, infer=infer))
        (building / "calibration.json").write_text(calibration.to_json() + "\n", encoding="utf-8")
        (building / "model_card.md").write_text(render_model_card(info, taxonomy, calibration), encoding="utf-8")
        seal_bundle(building, info)
    return load_bundle(folder)


def _write_exports(
    model: ListingClassifier, folder: Path, photos_nhwc: npt.NDArray[np.uint8], *, photos_from: str, pt2: bool
) -> dict[str, Any]:
    """Write the exports and return how much their logits differ from the model's."""
    num_distinct = len(np.unique(photos_nhwc.reshape(len(photos_nhwc), -1), axis=0))
    repeats = -(-max(BATCH_SIZES) // len(photos_nhwc))
    photos = np.concatenate([photos_nhwc] * repeats)[: max(BATCH_SIZES)]
    export_onnx(model, photos, folder / "model.onnx")
    export_torchscript(model, torch.from_numpy(photos[:2]), folder / "model.torchscript.pt")
    trained = torch_forward(model)
    torchscript = torch_forward(load_torchscript(folder / "model.torchscript.pt"))
    parity = {
        "photos": f"{num_distinct} photos of {photos_from}",
        "batch_sizes": list(BATCH_SIZES),
        "tolerance": TOLERANCE,
        "onnx": compare_export(trained, onnx_forward(folder / "model.onnx"), photos, name="ONNX"),
        "torchscript": compare_export(trained, torchscript, photos, name="TorchScript"),
    }
    if pt2:
        path = folder / "model.pt2"
        compiled_for = export_aot_inductor(model, torch.from_numpy(photos[:2]), path)
        compiled = torch_forward(load_aot_inductor(path))
        compared = compare_export(trained, compiled, photos, name="AOTInductor")
        parity["aot_inductor"] = {**compared, "compiled_for": compiled_for}
    return parity


def export_onnx(model: torch.nn.Module, photos_nhwc: npt.NDArray[np.uint8], path: Path) -> None:
    """Write the model as ONNX with a dynamic batch."""
    # An example of one photo freezes the batch in the exported graph (pytorch#157621).
    example = torch.from_numpy(photos_nhwc[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes={"photos_nhwc": {0: torch.export.Dim("batch", min=1, max=1024)}},
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces of this machine, a fifth of a small model's file
    program.save(str(path), external_data=False)


def compare_export(
    trained: Infer, exported: Infer, photos: npt.NDArray[np.uint8], *, name: str, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Compare an export with the trained model: the largest difference of all outputs, and the share of equal
    predictions.

    Raises:
        ExportMismatch: a batch size does not run, a difference exceeds `tolerance`, or a prediction changed.
    """
    largest = dict.fromkeys(OUTPUT_NAMES, 0.0)
    agreed = total = 0
    for batch_size in BATCH_SIZES:
        batch = photos[:batch_size]
        expected = trained(batch)
        try:
            actual = exported(batch)
        except Exception as error:  # each runtime raises its own types
            raise ExportMismatch(f"the {name} export does not run at batch {batch_size}: {error}") from error
        for output, a, b in zip(OUTPUT_NAMES, expected, actual, strict=True):
            if a.shape != b.shape:
                raise ExportMismatch(f"the {name} export returns {output} with shape {b.shape}, not {a.shape}")
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise ExportMismatch(f"{output} holds NaN or infinity at batch {batch_size} ({name} or trained model)")
            largest[output] = max(largest[output], float(np.abs(a - b).max()))
        same = (expected.category.argmax(1) == actual.category.argmax(1)) & (
            expected.brand.argmax(1) == actual.brand.argmax(1)
        )
        agreed, total = agreed + int(same.sum()), total + batch_size
    worst = max(largest, key=lambda output: largest[output])
    if not largest[worst] <= tolerance:
        raise ExportMismatch(
            f"the {name} export differs from the trained model: {worst} by {largest[worst]:.3g}, more than {tolerance}"
        )
    if agreed != total:
        raise ExportMismatch(f"the {name} export predicts {total - agreed} of {total} photos differently")
    return {"max_abs_difference": largest, "answers_agreeing": agreed / total}


def _prepare_photos(manifest: Manifest, preprocessing: Preprocessing, *, num_photos: int) -> npt.NDArray[np.uint8]:
    """(num_photos, S, S, 3) photos spread over the manifest, or as many as can be read."""
    photos: list[npt.NDArray[np.uint8]] = []
    # A stride of the golden ratio spreads the rows evenly, wherever the loop ends.
    stride = next(
        s for s in range(max(1, round(len(manifest) * 0.618)), len(manifest) + 2) if math.gcd(s, len(manifest)) == 1
    )
    for row in (np.arange(len(manifest)) * stride % len(manifest)).tolist():
        if len(photos) == num_photos:
            break
        try:
            photos.append(prepare_photo(read_photo_with_retries(manifest.get_photo_url(row)), preprocessing))
        except (OSError, PhotoError) as error:
            _log.warning("photo %s left out of the comparison: %s", manifest.get_photo_url(row), error)
    if not photos:
        raise RunError("no photo of the val split can be read; run `listing-vision data check`")
    return np.stack(photos)
