"""From a finished run to a bundle whose exports are proven to answer like the trained model."""

import logging
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import safetensors.torch
import torch

from training.calibration import calibrate
from training.model_card import model_card
from training.predictions import predict
from training.run import Run
from training.torchscript import export_torchscript, load_torchscript
from vision.bundle import Bundle, BundleInfo, Golden, certified_facts, load_bundle, seal_bundle, sha256_of
from vision.engine import INPUT_NAME, OUTPUT_NAMES, Logits
from vision.errors import ExportMismatch, PhotoError, RunError
from vision.images import Preprocessing, prepare_photo
from vision.manifest import Manifest, photo_bytes
from vision.model import ListingClassifier

__all__ = ["BATCH_SIZES", "TOLERANCE", "compare", "export_bundle", "export_onnx"]

_log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 7, 64)
"""Each is run through each export: an export whose batch is frozen passes at one size only."""
TOLERANCE = 1e-3
"""Largest allowed difference of a logit in fp32; measured differences are near 1e-5."""
OPSET = 20
_NUM_GOLDEN = 2

_Forward = Callable[[npt.NDArray[np.uint8]], Logits]


def export_bundle(run: Run, folder: Path, *, model_name: str) -> Bundle:
    """Export, compare, calibrate on the val split, seal, and load back what was written.

    The bundle appears under `folder` only when it is whole.

    Raises:
        RunError: the run has not finished, or `folder` exists.
        ExportMismatch: an export answers differently from the trained model on the same photos.
    """
    if folder.exists():
        raise RunError(f"{folder} exists; bundles are never overwritten: give another --output")
    model = run.load_model()
    recipe, taxonomy = run.recipe, run.taxonomy
    val = Manifest.load(run.asked()["manifest"]).where_split("val")
    preprocessing = Preprocessing(input_px=recipe.input_px)
    photos = _real_photos(val, preprocessing, num_photos=max(BATCH_SIZES))
    num_distinct = len(np.unique(photos.reshape(len(photos), -1), axis=0))
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    export_onnx(model, photos, building / "model.onnx")
    export_torchscript(model, torch.from_numpy(photos[:2]), building / "model.torchscript.pt")
    trained = torch_forward(model)
    onnx = onnx_forward(building / "model.onnx")
    parity = {
        "photos": f"{num_distinct} photos of the val split",
        "batch_sizes": list(BATCH_SIZES),
        "tolerance": TOLERANCE,
        "onnx": compare(trained, onnx, photos, name="ONNX"),
        "torchscript": compare(
            trained, torch_forward(load_torchscript(building / "model.torchscript.pt")), photos, name="TorchScript"
        ),
    }
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, building / "weights.safetensors"
    )
    answers = onnx(photos[:_NUM_GOLDEN])
    Golden(photos[:_NUM_GOLDEN], answers.category, answers.brand).save(building / "golden.safetensors")
    taxonomy.save(building / "taxonomy.json")
    hashes = {name: sha256_of(building / name) for name in ("weights.safetensors", "model.onnx", "taxonomy.json")}
    info = BundleInfo(
        model_name=model_name,
        model_version=hashes["weights.safetensors"][:12],
        backbone=recipe.backbone,
        mean=model.spec.mean,
        std=model.spec.std,
        num_categories=model.spec.num_categories,
        num_brands=model.spec.num_brands,
        embedding_size=answers.embedding.shape[1],
        precision="fp32",
        taxonomy_version=taxonomy.version,
        preprocessing=preprocessing,
        inputs=(INPUT_NAME,),
        outputs=OUTPUT_NAMES,
        training={**run.asked(), "last_metrics": run.metrics()[-1]},
        parity=parity,
    )
    predictions = predict(val, taxonomy, preprocessing, onnx)
    for photo in predictions.unusable:
        _log.warning("left out of calibration: %s", photo)
    calibration = calibrate(predictions, taxonomy, certifies=certified_facts(info, hashes))
    (building / "calibration.json").write_text(calibration.to_json() + "\n")
    (building / "model_card.md").write_text(model_card(info, taxonomy, calibration), encoding="utf-8")
    seal_bundle(building, info)
    load_bundle(building)
    building.rename(folder)
    return load_bundle(folder)


def export_onnx(model: ListingClassifier, photos_nhwc: npt.NDArray[np.uint8], path: Path) -> None:
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
    program.save(str(path), external_data=False)


def torch_forward(module: torch.nn.Module) -> _Forward:
    def forward(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(photos_nhwc))
        return Logits(*(tensor.numpy() for tensor in outputs))

    return forward


def onnx_forward(path: Path) -> _Forward:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda photos_nhwc: Logits(*session.run(list(OUTPUT_NAMES), {INPUT_NAME: photos_nhwc}))


def compare(trained: _Forward, exported: _Forward, photos: npt.NDArray[np.uint8], *, name: str) -> dict[str, Any]:
    """Largest difference over all outputs, batch sizes and photos, and the share of equal answers.

    Raises:
        ExportMismatch: a batch size does not run, a difference exceeds `TOLERANCE`, or an answer changed.
    """
    largest = dict.fromkeys(OUTPUT_NAMES, 0.0)
    agreed = total = 0
    for batch_size in BATCH_SIZES:
        batch = photos[:batch_size]
        wanted = trained(batch)
        try:
            got = exported(batch)
        except Exception as error:  # each runtime raises its own types
            raise ExportMismatch(f"the {name} export does not run at batch {batch_size}: {error}") from error
        for output, a, b in zip(OUTPUT_NAMES, wanted, got, strict=True):
            if a.shape != b.shape:
                raise ExportMismatch(f"the {name} export answers {output} with shape {b.shape}, not {a.shape}")
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise ExportMismatch(f"{output} holds NaN or infinity at batch {batch_size} ({name} or trained model)")
            largest[output] = max(largest[output], float(np.abs(a - b).max()))
        same = (wanted.category.argmax(1) == got.category.argmax(1)) & (wanted.brand.argmax(1) == got.brand.argmax(1))
        agreed, total = agreed + int(same.sum()), total + batch_size
    worst = max(largest, key=lambda output: largest[output])
    if not largest[worst] <= TOLERANCE:
        raise ExportMismatch(
            f"the {name} export differs from the trained model: {worst} by {largest[worst]:.3g}, more than {TOLERANCE}"
        )
    if agreed != total:
        raise ExportMismatch(f"the {name} export answers {total - agreed} of {total} photos differently")
    return {"max_abs_difference": largest, "answers_agreeing": agreed / total}


def _real_photos(manifest: Manifest, preprocessing: Preprocessing, *, num_photos: int) -> npt.NDArray[np.uint8]:
    """(num_photos, S, S, 3) from all over the manifest; where it has too few they are repeated."""
    photos: list[npt.NDArray[np.uint8]] = []
    # A stride of the golden ratio visits the rows evenly however soon enough photos are found.
    stride = next(
        s for s in range(max(1, round(len(manifest) * 0.618)), len(manifest) + 2) if math.gcd(s, len(manifest)) == 1
    )
    for row in (np.arange(len(manifest)) * stride % len(manifest)).tolist():
        if len(photos) == num_photos:
            break
        try:
            photos.append(prepare_photo(photo_bytes(manifest.photo_url(row)), preprocessing))
        except (OSError, PhotoError) as error:
            _log.warning("photo %s left out of the comparison: %s", manifest.photo_url(row), error)
    if not photos:
        raise RunError("no photo of the val split can be read; run `listing-vision data check`")
    repeats = -(-num_photos // len(photos))
    return np.stack((photos * repeats)[:num_photos])
