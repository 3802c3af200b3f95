"""Calibration of a model from listings that it was not trained on: temperatures, certified thresholds, histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from training.calibration.agreement import fit_agreement_limit
from training.calibration.certify import Guarantee, certify_all
from training.calibration.scope import fit_scope_threshold, sharpen_scope_threshold
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

__all__ = ["calibrate"]

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
    held_out_scope_scores: npt.NDArray[np.floating] | None = None,
    outside_scope_scores: npt.NDArray[np.floating] | None = None,
    agreement_limit: float | None = None,
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
        scope_threshold: that of an earlier calibration of the same weights; None: fitted.
        held_out_scope_scores: see `fit_scope_threshold`.
        outside_scope_scores: of photos of other things, for which the threshold is sharpened.
        agreement_limit: that of an earlier calibration on the same tune listings; None: fitted.
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
        scope_threshold = fit_scope_threshold(tune.compute_listing_scope_scores(), held_out_scope_scores)
    if outside_scope_scores is not None:
        inside_scores = tune.compute_listing_scope_scores()
        sharpened = sharpen_scope_threshold(scope_threshold, inside_scores, outside_scope_scores)
        scope_threshold, certifies = sharpened.threshold, {**certifies, "outside": sharpened.describe()}
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
        certifies=certifies,
    )
    fitted = replace(
        fitted,
        agreement_limit=fit_agreement_limit(tune, taxonomy, fitted) if agreement_limit is None else agreement_limit,
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


def _build_histograms(
    predictions: Predictions, listings: CalibrationListings, taxonomy: Taxonomy, fitted: Calibration
) -> dict[str, Histogram]:
    """Histograms of the confidences and of the photos, which drift is measured against."""
    predicted = listings.predict(taxonomy, fitted)
    # Beyond a path's end the score is 0; along a path it only falls.
    leaf = np.where(predicted.paths.nodes >= 0, predicted.paths.scores, np.inf).min(axis=1)
    num_photos = np.bincount(predictions.groups)
    values = {LEAF_PROBABILITY: leaf, PHOTOS_PER_LISTING: num_photos}
    if taxonomy.brands:
        values[BRAND_PROBABILITY] = predicted.brands.scores
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
