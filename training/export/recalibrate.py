"""A bundle with new guarantees: the same model, tested on other listings or with another backend."""

import shutil
from pathlib import Path

from training.calibration.calibrate import calibrate
from training.calibration.certify import Guarantee
from training.export.model_card import render_model_card
from training.inference.predictions import Predictions
from vision.bundle import FILES, Bundle, certificate_binding, load_bundle, new_bundle, refuse_existing, seal_bundle

__all__ = ["recalibrate"]


def recalibrate(
    bundle: Bundle,
    folder: Path,
    *,
    tune: Predictions,
    tested: Predictions | None,
    split: str,
    backend: str,
    guarantee: Guarantee,
) -> Bundle:
    """Write a bundle of the same model with new guarantees; `folder` appears when it is complete.

    Args:
        bundle: its weights, exports and golden photos are copied.
        folder: the new bundle.
        tune: predictions for the listings that temperatures and thresholds come from.
        tested: predictions for the listings that the tests are made on; None: half of `tune`.
        split: their description for the certificate.
        backend: what computed the predictions.
        guarantee: what to certify.

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
        guarantee=guarantee,
        category_log_prior=bundle.calibration.category_log_prior,
        brand_log_prior=bundle.calibration.brand_log_prior,
    )
    with new_bundle(folder) as building:
        for name in FILES:
            shutil.copy2(bundle.folder / name, building / name)
        (building / "calibration.json").write_text(calibration.to_json() + "\n")
        (building / "model_card.md").write_text(
            render_model_card(bundle.info, bundle.taxonomy, calibration), encoding="utf-8"
        )
        seal_bundle(building, bundle.info)
    return load_bundle(folder)
