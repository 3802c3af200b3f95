"""Compare suggestions and guarantees for photos decoded by a device with those decoded by Pillow.

    python -m benchmarks.gpu.agreement --bundle BUNDLE --manifest MANIFEST [--device cuda]

One network classifies a manifest's val and test photos twice, from Pillow's pixels and from the device's (nvJPEG and
scaling on the card; `--device cpu`: libjpeg-turbo and the same scaling, which isolates the effect of scaling). Then
calibration listings are drawn from the test split 300 times, with replacement, thresholds are certified from either
pixels, and checked on the whole split as the device decodes it: how often is the guarantee broken?
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.certificate import EvaluatedListings, resample
from benchmarks.common import write_result
from training.calibration.calibrate import calibrate
from training.inference.network import load_bundle_model
from training.inference.predictions import Predictions, predict
from vision.bundle import Bundle, load_bundle
from vision.engine import Logits
from vision.errors import PhotoError
from vision.images import prepare_photo
from vision.images.gpu_decoding import DECODER_LIBRARIES, DecoderLibrary, DeviceDecoder, find_plain_crop
from vision.manifest import Manifest

__all__ = ["DeviceModel", "Pair", "compare_decoding"]

NUM_RESAMPLES = 300
BATCH = 64
_T = TypeVar("_T")
_U = TypeVar("_U")


class DeviceModel:
    """A network on a device, which classifies pixels or files that the device decodes."""

    def __init__(self, bundle: Bundle, device: torch.device, library: DecoderLibrary | None = None) -> None:
        # Certificates are made in full precision.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._preprocessing = bundle.info.preprocessing
        self._network = load_bundle_model(bundle).to(device)
        self._device, self._decoder = device, DeviceDecoder(device, library)
        self.num_photos = self.num_on_device = 0
        self._grey_differences: list[float] = []

    @property
    def decodes_with(self) -> DecoderLibrary:
        return self._decoder.decodes_with

    def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return self._infer(torch.from_numpy(photos_nhwc).to(self._device))

    def infer_files(self, files: Sequence[bytes]) -> tuple[Sequence[PhotoError | None], Logits]:
        """Return logits of files; Pillow decodes what the device cannot, as in Triton's model."""
        side = self._preprocessing.input_px
        crops = [find_plain_crop(data, at_least_px=side) for data in files]
        by_pillow = [torch.from_numpy(prepare_photo(data, self._preprocessing)) for data in files]
        others = [photo for photo, crop in zip(by_pillow, crops, strict=True) if crop is None]
        plain = bytearray(b"".join(data for data, crop in zip(files, crops, strict=True) if crop))
        pixels, refused = self._decoder.decode_crops(
            torch.frombuffer(plain, dtype=torch.uint8) if plain else torch.empty(0, dtype=torch.uint8),
            crops,
            torch.stack(others) if others else torch.empty(0, side, side, 3, dtype=torch.uint8),
            photo_px=side,
        )
        for index in refused:
            pixels[index] = by_pillow[index].to(self._device)
        on_device = [i for i, crop in enumerate(crops) if crop and i not in refused]
        self.num_photos += len(files)
        self.num_on_device += len(on_device)
        differences = (pixels.cpu().int() - torch.stack(by_pillow).int()).abs().float().mean(dim=(1, 2, 3))
        self._grey_differences += differences[on_device].tolist()
        return [None] * len(files), self._infer(pixels)

    def _infer(self, pixels: torch.Tensor) -> Logits:
        with torch.inference_mode():
            return Logits(*(part.float().cpu().numpy() for part in self._network(pixels)))

    @property
    def grey_differences(self) -> npt.NDArray[np.float64]:
        """Mean grey difference from Pillow's pixels, 0…255, of each photo that the device decoded."""
        return np.array(self._grey_differences)


class Pair(NamedTuple, Generic[_T]):
    """Results for the same photos, from pixels and from files."""

    pixels: _T
    files: _T

    def map(self, of: Callable[[_T], _U]) -> "Pair[_U]":
        return Pair(of(self.pixels), of(self.files))


def predict_both(bundle: Bundle, rows: Manifest, model: DeviceModel) -> Pair[Predictions]:
    def predict_with(infer_files: Any) -> Predictions:
        return predict(
            rows, bundle.taxonomy, bundle.info.preprocessing, model.infer, infer_files=infer_files, batch_size=BATCH
        )

    return Pair(predict_with(None), predict_with(model.infer_files))


def compare_decoding(
    bundle: Bundle, tune: Pair[Predictions], test: Pair[Predictions], *, num_resamples: int = NUM_RESAMPLES
) -> dict[str, float]:
    """Return shares of changed suggestions and of broken guarantees, certified from pixels and from files."""
    calibration = bundle.calibration
    evaluated = test.map(lambda part: EvaluatedListings(part, bundle, calibration))
    filled = evaluated.map(lambda part: part.apply(calibration)[0])
    right = evaluated.map(lambda part: part.apply(calibration)[1])
    # (N, D + 1), the brand last.
    answers = evaluated.map(
        lambda part: np.column_stack([part.predictions.paths.nodes, part.predictions.brands.labels])
    )
    found = {
        "changed_leaf_share": _compute_changed_share(test.map(lambda part: part.category_logits.argmax(axis=1))),
        "mean_logit_difference": float(np.abs(test.pixels.category_logits - test.files.category_logits).mean()),
        "changed_fills_share": _compute_changed_share(filled),
    }
    names = evaluated.pixels.names
    for column, name in enumerate(names[1:], start=1):  # after the path
        known = evaluated.pixels.known[:, column]
        found[f"changed_{name}_share"] = _compute_changed_share(
            Pair(answers.pixels[:, column - 1], answers.files[:, column - 1])
        )
        found[f"{name}_top1_from_pixels"] = float(right.pixels[known, column].mean())
        found[f"{name}_top1_from_files"] = float(right.files[known, column].mean())
    for how, tuned, pool in (("pixels", tune.pixels, test.pixels), ("files", tune.files, test.files)):
        broken, filled_shares = _measure_violations(bundle, tuned, pool, test.files, num_resamples)
        found[f"violation_rate_certified_from_{how}"] = broken
        for name, share in zip(names, filled_shares, strict=True):
            found[f"{name}_filled_certified_from_{how}"] = share
    return found


def _compute_changed_share(pair: Pair[npt.NDArray[Any]]) -> float:
    """Return the share of listings whose rows differ."""
    return float((pair.pixels != pair.files).reshape(len(pair.pixels), -1).any(axis=1).mean())


def _measure_violations(
    bundle: Bundle, tune: Predictions, pool: Predictions, served: Predictions, num_resamples: int
) -> tuple[float, list[float]]:
    """Return how often a guarantee certified on drawn listings is broken, and the mean prefilled share by field."""
    rng = np.random.default_rng(0)
    broken, filled_shares = 0, []
    for _ in range(num_resamples):
        num = len(pool.listing_ids)
        tested = resample(pool, rng.integers(0, num, num))
        certified = calibrate(tune, bundle.taxonomy, certifies={}, calibration_predictions=tested)
        measured = EvaluatedListings(served, bundle, certified).measure(certified)
        broken += bool(measured.broken.any())
        filled_shares.append(measured.filled_shares)
    return broken / num_resamples, np.mean(filled_shares, axis=0).tolist()


def measure(
    bundle: Bundle, manifest: Manifest, device: torch.device, library: DecoderLibrary | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return metrics and details."""
    model = DeviceModel(bundle, device, library)
    tune, test = (predict_both(bundle, manifest.select_split(split), model) for split in ("val", "test"))
    greys = model.grey_differences
    metrics = {
        "decoded_on_device_share": model.num_on_device / model.num_photos,
        "grey_difference_mean": float(greys.mean()),
        "grey_difference_p99": float(np.percentile(greys, 99)),
        **compare_decoding(bundle, tune, test),
    }
    details = {
        "device": str(device),
        "library": model.decodes_with,
        "decoded_by": "nvJPEG, scaled on the card" if device.type == "cuda" else "libjpeg-turbo, scaled as on a card",
        "torch": torch.__version__,
        "model": f"{bundle.info.backbone}, {bundle.info.preprocessing.input_px} px, {bundle.info.model_version}",
        "test_photos": len(test.files.groups),
        "draws": NUM_RESAMPLES,
        "promises": "temperatures from val, tests on listings drawn from test, held against all of test",
    }
    return metrics, details


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--gpu-decoder", default=DECODER_LIBRARIES[0], choices=DECODER_LIBRARIES)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine has no NVIDIA GPU; --device cpu measures the scaling alone")
    bundle, manifest = load_bundle(options.bundle), Manifest.load(options.manifest)
    metrics, details = measure(bundle, manifest, torch.device(options.device), options.gpu_decoder)
    write_result("device_agreement" + ("" if options.device == "cuda" else "_cpu"), metrics, details)


if __name__ == "__main__":
    main()
