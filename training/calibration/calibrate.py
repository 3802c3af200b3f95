"""Calibration of a model from listings that it was not trained on: temperatures, certified thresholds, histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from training.calibration.certify import Guarantee, certify_all
from training.calibration.splits import CalibrationListings, choose_tune_listings
from training.calibration.temperature import fit_brand_fusion, fit_depth_temperatures, fit_temperature
from training.inference.predictions import Predictions
from training.statistics.drift import (
    BRAND_PROBABILITY,
    BYTES_PER_PHOTO,
    LEAF_PROBABILITY,
    PHOTOS_PER_LISTING,
    build_histogram,
)
from vision.calibration import Calibration, Histogram
from vision.manifest import UNLABELLED
from vision.prediction.fusion import fuse_logits, softmax
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = ["AGREEMENT_LIMIT", "calibrate", "fit_scope_threshold"]

AGREEMENT_LIMIT = 0.05
"""See `Calibration`. The same for all models, not fitted; `benchmarks.scope` measures what it does."""
_MAX_IN_SCOPE_LOST_SHARE = 0.01
"""Share of listings of the taxonomy's products that may be taken as out of scope."""
_MIN_OTHER_BRANDS = 20
"""Tune listings of brands outside the taxonomy from which on they decide where 'unknown brand' begins."""
_MAX_RIGHT_LOST_SHARE = 0.01
"""Share of right brands that may become 'unknown brand' where there are fewer."""


def calibrate(
    predictions: Predictions,
    taxonomy: Taxonomy,
    *,
    certifies: Mapping[str, str],
    calibration_predictions: Predictions | None = None,
    guarantee: Guarantee | None = None,
    scope_threshold: float | None = None,
    category_log_prior: Sequence[float] = (),
    brand_log_prior: Sequence[float] = (),
) -> Calibration:
    """Fit temperatures and grids on tune listings, and test guarantees on others.

    Args:
        predictions: the tune listings; without `calibration_predictions`, a fifth of them are, by hash of the listing
            id, and the others are for the tests.
        taxonomy: that of the model.
        certifies: what the guarantees hold for.
        calibration_predictions: listings kept for the tests alone.
        guarantee: default where None.
        scope_threshold: that of an earlier calibration of the same weights; None: fitted on the tune listings.
        category_log_prior: see `Calibration`.
        brand_log_prior: see `Calibration`.
    """
    if calibration_predictions is None:
        # Where too few to divide, none is left for the tests: temperatures are useful without guarantees too.
        is_tune = choose_tune_listings(predictions)
        certifies = {"split": "val, four fifths of the listings by hash of listing id", **certifies}
        tune, tested = (
            CalibrationListings.from_predictions(predictions, taxonomy, chosen) for chosen in (is_tune, ~is_tune)
        )
    else:
        tune, tested = (
            CalibrationListings.from_predictions(p, taxonomy) for p in (predictions, calibration_predictions)
        )
    if scope_threshold is None:
        scope_threshold = fit_scope_threshold(tune.compute_listing_scope_scores())
    tune = tune.drop_photos_out_of_scope(scope_threshold)
    category_prior, brand_prior = tuple(map(float, category_log_prior)), tuple(map(float, brand_log_prior))
    category_logits = fuse_logits(tune.category_logits, tune.groups, how="mean")
    if category_prior:
        category_logits = category_logits + np.asarray(category_prior)
    brand_fusion, brand_temperature = fit_brand_fusion(tune, brand_prior)
    temperature = fit_temperature(category_logits, tune.truth.leaves)
    depth_temperatures = fit_depth_temperatures(softmax(category_logits / temperature), tune.truth, taxonomy)
    fitted = Calibration(
        category_temperature=temperature,
        category_depth_temperatures=depth_temperatures,
        brand_temperature=brand_temperature,
        brand_fusion=brand_fusion,
        category_log_prior=category_prior,
        brand_log_prior=brand_prior,
        scope_threshold=scope_threshold,
        agreement_limit=AGREEMENT_LIMIT,
        certifies=certifies,
    )
    fitted = replace(fitted, unknown_brand_below=_fit_unknown_brand_below(tune, taxonomy, fitted))
    fitted = replace(
        fitted,
        expected=_build_histograms(
            predictions, CalibrationListings.from_predictions(predictions, taxonomy), taxonomy, fitted
        ),
    )
    guarantee = guarantee or Guarantee()
    return replace(fitted, fields=tuple(certify_all(tune, tested, taxonomy, fitted, guarantee)), delta=guarantee.delta)


def fit_scope_threshold(scores: npt.NDArray[np.floating]) -> float | None:
    """Return the scope score that at most one in a hundred listings of the taxonomy's products fall short of.

    The k-th smallest of n scores, k = (n + 1) / 100 rounded down: a new listing of their kind is below it with
    probability k / (n + 1). With fewer than 99 scores their smallest, which loses 1 / (n + 1).

    Args:
        scores: (n,) of photos or listings that the model was not trained on; NaN where not known.

    Returns:
        None where no score is known: the model computes none.
    """
    known = np.sort(scores[np.isfinite(scores)])
    if known.size == 0:
        return None
    return float(known[max(1, int(_MAX_IN_SCOPE_LOST_SHARE * (known.size + 1))) - 1])


def _build_histograms(
    predictions: Predictions, listings: CalibrationListings, taxonomy: Taxonomy, fitted: Calibration
) -> dict[str, Histogram]:
    """Histograms of the confidences and of the photos, which drift is measured against."""
    predicted = listings.predict(taxonomy, fitted)
    # Beyond a path's end the score is 0; along a path it only falls.
    leaf = np.where(predicted.paths.nodes >= 0, predicted.paths.scores, np.inf).min(axis=1)
    num_photos = np.bincount(predictions.groups)
    values = {LEAF_PROBABILITY: leaf, BRAND_PROBABILITY: predicted.brands.scores, PHOTOS_PER_LISTING: num_photos}
    if predictions.num_bytes is not None:
        values[BYTES_PER_PHOTO] = np.bincount(predictions.groups, predictions.num_bytes) / num_photos
    return {name: build_histogram(column) for name, column in values.items()}


def _fit_unknown_brand_below(tune: CalibrationListings, taxonomy: Taxonomy, fitted: Calibration) -> float | None:
    """The least logit of a brand that is named, chosen on tune listings.

    Where these hold listings of other brands, the value that makes most brands right; otherwise one at which few of the
    right ones are lost.
    """
    predicted = tune.predict(taxonomy, fitted).brands
    fused = fuse_logits(tune.brand_logits, tune.groups, how=fitted.brand_fusion)
    named = (predicted.labels > 0) & (tune.truth.brands != UNLABELLED)
    logits = np.take_along_axis(fused, predicted.labels[:, None], axis=1)[named, 0]
    right = (predicted.labels == tune.truth.brands)[named]
    other = (tune.truth.brands == OTHER_BRAND)[named]
    if other.sum() >= _MIN_OTHER_BRANDS:
        order = np.argsort(logits, kind="stable")
        # Below the i-th smallest logit: its i predecessors are predicted as unknown.
        num_right = np.concatenate([[0], np.cumsum(other[order])]) + np.concatenate(
            [np.cumsum(right[order][::-1])[::-1], [0]]
        )
        at = int(num_right.argmax())
        return float(logits[order][at]) if at < len(order) else float(np.nextafter(logits.max(), np.inf))
    return float(np.quantile(logits[right], _MAX_RIGHT_LOST_SHARE, method="lower")) if right.any() else None
