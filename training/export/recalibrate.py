"""A bundle with new promises: the same model, tested on other listings or another backend."""

import shutil
from pathlib import Path

from training.calibration.calibrate import Promises, calibrate
from training.export.model_card import model_card
from training.inference.predictions import Predictions
from vision.bundle import FILES, Bundle, certificate_binding, load_bundle, new_bundle, refuse_existing, seal_bundle
from vision.errors import ManifestError
from vision.manifest import Manifest

__all__ = ["CALIBRATION_SPLIT", "recalibrate", "tune_and_calibration_rows"]

CALIBRATION_SPLIT = "calibrate"


def tune_and_calibration_rows(manifest: Manifest, *, tune_split: str = "val") -> tuple[Manifest, Manifest | None, str]:
    """Listings for temperatures and grids, listings for the tests, and what a certificate says of them.

    Without a calibration split, None in its place: the tune split is then halved.

    Raises:
        ManifestError: a split that may not be tuned on, or without rows.
    """
    if tune_split in (CALIBRATION_SPLIT, "train"):
        raise ManifestError(
            f"temperatures and thresholds cannot come from the split {tune_split!r}: a promise is tested on listings "
            "that chose nothing; take val"
        )
    splits = set(manifest.column("split").unique().to_pylist())
    tune = manifest.where_split(tune_split)
    if CALIBRATION_SPLIT not in splits:
        return tune, None, f"{tune_split}, half of the listings by hash of listing id"
    return tune, manifest.where_split(CALIBRATION_SPLIT), f"{CALIBRATION_SPLIT}; thresholds to test from {tune_split}"


def recalibrate(
    bundle: Bundle,
    folder: Path,
    *,
    tune: Predictions,
    tested: Predictions | None,
    split: str,
    backend: str,
    promises: Promises,
) -> Bundle:
    """Write the same model with promises tested anew; it appears under `folder` only when it is whole.

    Args:
        bundle: its weights, exports and golden photos are taken over.
        folder: of the new bundle.
        tune: answers for the listings that temperatures and thresholds come from.
        tested: answers for the listings that the tests are made on; None: half of `tune`.
        split: what the certificate says of these.
        backend: what computed the answers.
        promises: what to certify.

    Raises:
        BundleError: `folder` exists.
    """
    refuse_existing(folder)  # before the work
    facts = certificate_binding(bundle.info, bundle.sha256, backend=backend)
    calibration = calibrate(
        tune,
        bundle.taxonomy,
        certifies={**facts, "split": split},
        calibration_predictions=tested,
        promises=promises,
        category_log_prior=bundle.calibration.category_log_prior,
        brand_log_prior=bundle.calibration.brand_log_prior,
    )
    with new_bundle(folder) as building:
        for name in FILES:
            shutil.copy2(bundle.folder / name, building / name)
        (building / "calibration.json").write_text(calibration.to_json() + "\n")
        (building / "model_card.md").write_text(model_card(bundle.info, bundle.taxonomy, calibration), encoding="utf-8")
        seal_bundle(building, bundle.info)
    return load_bundle(folder)
