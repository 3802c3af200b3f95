"""Which listings temperatures and thresholds are fitted on, and which the guarantees are tested on."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from training.evaluation.ground_truth import GroundTruth, build_ground_truth, merge_listing_labels
from training.inference.predictions import Predictions
from vision.calibration import Calibration
from vision.errors import ManifestError
from vision.manifest import PLANNED_SPLIT, Labels, Manifest
from vision.prediction.listings import ListingPredictions, predict_listings
from vision.prediction.photo_selection import compute_listing_scope_scores, select_photos
from vision.taxonomy import Taxonomy

__all__ = [
    "CALIBRATION_SPLIT",
    "CalibrationListings",
    "choose_tune_listings",
    "exclude_labelled",
    "refuse_planned_rows",
    "select_forecast_rows",
    "select_listings",
    "select_tested_rows",
    "select_tune_rows",
    "split_calibration_rows",
]

CALIBRATION_SPLIT = "calibrate"
_TUNE_BYTES = 51
"""Values of a hash's first byte, out of 256, that mean tuning: a fifth."""


@dataclass(frozen=True)
class CalibrationListings:
    """Logits and ground truth of listings that the model was not trained on: P photos, N listings."""

    category_logits: npt.NDArray[np.floating]
    """(P, C)."""
    brand_logits: npt.NDArray[np.floating]
    """(P, B)."""
    scope_scores: npt.NDArray[np.floating]
    """(P,)."""
    groups: npt.NDArray[np.int64]
    """(P,) 0…N-1."""
    truth: GroundTruth

    @classmethod
    def from_predictions(
        cls, predictions: Predictions, taxonomy: Taxonomy, chosen: npt.NDArray[np.bool_] | None = None
    ) -> "CalibrationListings":
        """All listings of the predictions, or those that `chosen`, (N,), marks."""
        if chosen is None:
            chosen = np.ones(len(predictions.listing_ids), dtype=bool)
        photos = chosen[predictions.groups]
        groups = (np.cumsum(chosen) - 1)[predictions.groups[photos]]
        labels = merge_listing_labels(predictions.labels, predictions.groups)
        truth = build_ground_truth(
            Labels(category_nodes=labels.category_nodes[chosen], brands=labels.brands[chosen]), taxonomy
        )
        return cls(
            predictions.category_logits[photos],
            predictions.brand_logits[photos],
            predictions.scope_scores[photos],
            groups,
            truth,
        )

    def compute_listing_scope_scores(self) -> npt.NDArray[np.floating]:
        """Return the (N,) best scope score of each listing of a product that the taxonomy covers; NaN for others."""
        return np.where(self.truth.out_of_scope, np.nan, compute_listing_scope_scores(self.scope_scores, self.groups))

    def drop_photos_out_of_scope(self, threshold: float | None) -> "CalibrationListings":
        """Return the listings with the photos that decide; nothing is to be fitted on the others."""
        gate = Calibration(scope_threshold=threshold, certifies={})
        selection = select_photos(self.category_logits, self.brand_logits, self.scope_scores, self.groups, gate)
        used = selection.used
        return replace(
            self,
            category_logits=self.category_logits[used],
            brand_logits=self.brand_logits[used],
            scope_scores=self.scope_scores[used],
            groups=self.groups[used],
        )

    def predict(self, taxonomy: Taxonomy, calibration: Calibration) -> ListingPredictions:
        return predict_listings(
            self.category_logits,
            self.brand_logits,
            self.scope_scores,
            self.groups,
            taxonomy=taxonomy,
            calibration=calibration,
        )


def split_calibration_rows(manifest: Manifest, *, tune_split: str = "val") -> tuple[Manifest, Manifest | None, str]:
    """Rows for temperatures and grids, rows for the tests, and a description of both for the certificate.

    The second are None where the manifest has no calibration split: a fifth of the tune split is then for tuning.

    Raises:
        ManifestError: a split that may not be tuned on, or without rows.
    """
    if tune_split in (CALIBRATION_SPLIT, "train"):
        raise ManifestError(
            f"temperatures and thresholds cannot come from the split {tune_split!r}: a guarantee is tested on listings "
            "that nothing was chosen on; use val"
        )
    splits = set(manifest.column("split").unique().to_pylist())
    tune = manifest.select_split(tune_split)
    if CALIBRATION_SPLIT not in splits:
        return tune, None, f"{tune_split}, four fifths of the listings by hash of listing id"
    return tune, manifest.select_split(CALIBRATION_SPLIT), f"{CALIBRATION_SPLIT}; thresholds to test from {tune_split}"


def select_tested_rows(manifest: Manifest) -> Manifest:
    """Return the rows of the calibration split, for tests of a bundle that keeps its temperatures.

    Raises:
        ManifestError: there is none; temperatures and selection may have seen any other split.
    """
    if CALIBRATION_SPLIT not in manifest.column("split").unique().to_pylist():
        raise ManifestError(
            f"no row of the manifest has split {CALIBRATION_SPLIT!r}: with thresholds from unlabelled listings, the "
            "guarantee is tested on that split alone, because the bundle's temperatures may come from any other; give "
            "it to listings that nothing was chosen on (`listing-vision data split --calibrate 0.1`)"
        )
    return manifest.select_split(CALIBRATION_SPLIT)


def exclude_labelled(manifest: Manifest, labelled: Manifest) -> Manifest:
    """Return the rows of listings that are not in `labelled`, without their labels.

    Raises:
        ManifestError: every listing is.
    """
    rows = manifest.table.filter(pa.compute.invert(_find_listings(manifest, labelled.column("listing_id"))))
    if rows.num_rows == 0:
        raise ManifestError("every unlabelled listing is in the labelled manifest too; give others")
    return Manifest.from_table(rows.drop_columns(["category", "brand", "split"]), manifest.base_url)


def refuse_planned_rows(manifest: Manifest) -> None:
    """Check that no row is of listings that were drawn above a threshold.

    Raises:
        ManifestError: one is.
    """
    if PLANNED_SPLIT in manifest.column("split").unique().to_pylist():
        raise ManifestError(
            f"the manifest has rows of split {PLANNED_SPLIT!r}, which `calibrate-plan` drew among those that a "
            "threshold fills: they show nothing about looser ones; give their plan with --plan, or leave these rows out"
        )


def select_forecast_rows(manifest: Manifest) -> Manifest:
    """Return the labelled rows whose errors are like those to come: of split val or calibrate, or without one.

    Raises:
        ManifestError: there is none.
    """
    usable = pa.array(["val", CALIBRATION_SPLIT, ""])
    rows = manifest.table.filter(pa.compute.is_in(manifest.column("split").cast(pa.string()), value_set=usable))
    if rows.num_rows == 0:
        raise ManifestError(
            f"no labelled row has split val, {CALIBRATION_SPLIT} or none: the share of errors cannot come from "
            "listings that were trained on, kept for the test or drawn above a threshold"
        )
    return Manifest(rows, manifest.base_url)


def select_listings(manifest: Manifest, listing_ids: Iterable[str]) -> Manifest:
    """Return the rows of these listings.

    Raises:
        ManifestError: there is none.
    """
    rows = manifest.table.filter(_find_listings(manifest, pa.array(sorted(listing_ids), pa.large_string())))
    if rows.num_rows == 0:
        raise ManifestError(
            "no listing of the plan is in the manifest; give the rows that `calibrate-plan` wrote, labelled"
        )
    return Manifest(rows, manifest.base_url)


def _find_listings(manifest: Manifest, listing_ids: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.compute.is_in(manifest.column("listing_id"), value_set=listing_ids)


def choose_tune_listings(predictions: Predictions) -> npt.NDArray[np.bool_]:
    """(N,) whether each listing is for tuning, a fifth of them by the hash of their id; all, where too few to divide.

    Temperatures and grids need few listings, the tests many: of 296 listings of Grocery Store, halves certify a third
    as many levels (`benchmarks.certificate`).
    """
    return _mark_tune(predictions.listing_ids)


def select_tune_rows(manifest: Manifest, *, tune_split: str = "val") -> Manifest:
    """The rows of a split that no guarantee is tested on, as `calibrate` divides it.

    Raises:
        ManifestError: as `split_calibration_rows`.
    """
    tune, tested, _ = split_calibration_rows(manifest, tune_split=tune_split)
    if tested is not None:
        return tune
    return tune.take(np.flatnonzero(_mark_tune(tune.column("listing_id").to_pylist())))


def _mark_tune(listing_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    is_tune = np.array([hashlib.sha256(name.encode()).digest()[0] < _TUNE_BYTES for name in listing_ids])
    return is_tune if is_tune.any() and not is_tune.all() else np.ones(len(is_tune), dtype=bool)
