"""Scores and correctness of listings, by field of the form: what grids are built from and tests are made on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from training.calibration.path_tests import PathRows
from training.calibration.splits import CalibrationListings
from training.calibration.threshold_tests import FieldTests, build_grid
from training.evaluation.ground_truth import evaluate_brands, evaluate_paths, find_labelled
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee
from vision.prediction.listings import compute_brand_scores, compute_path_scores
from vision.taxonomy import Taxonomy

__all__ = ["FieldRows"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]


class FieldRows:
    """N listings as a model with fitted temperatures predicts them; a `chosen` of the methods is (N,)."""

    def __init__(self, listings: CalibrationListings, taxonomy: Taxonomy, fitted: Calibration) -> None:
        self._truth, self._taxonomy = listings.truth, taxonomy
        self._predictions = listings.predict(taxonomy, fitted)
        self._steps = evaluate_paths(self._predictions.paths, self._truth)
        self._brands = evaluate_brands(self._predictions.brands.labels, self._truth)

    def find_all(self) -> Bools:
        """Return (N,) ones."""
        return np.ones(len(self._truth.brands), dtype=bool)

    def find_known(self, name: str) -> Bools:
        """Return (N,) whether the label shows if the field is right."""
        if name == PATH_FIELD:
            return find_labelled(self._truth)
        if name == BRAND_FIELD:
            return self._brands.known
        known: Bools = self._steps.known[:, _get_column(name)]
        return known

    def compute_scores(self, name: str) -> Floats:
        """Return (N,) scores to compare with the field's threshold, -inf where it can never be filled.

        For a path, whether anything is filled.
        """
        if name == BRAND_FIELD:
            return compute_brand_scores(self._predictions.brands)
        scores = compute_path_scores(self._predictions.paths, self._taxonomy)
        if name == PATH_FIELD:
            return scores[:, int(self._taxonomy.decides_at_depth.argmax())]
        return scores[:, _get_column(name)]

    def build_grid(
        self,
        name: str,
        chosen: Bools,
        *,
        num_listings: int,
        required: int,
        thresholds_above: Sequence[float] = (),
    ) -> tuple[float, ...]:
        """Return thresholds to test on other listings, strictest first.

        Args:
            name: of the field.
            chosen: listings whose scores are used.
            num_listings: calibration listings to be tested on.
            required: filled ones without error that a test needs.
            thresholds_above: for a depth, the grid of the depth above.
        """
        if name == PATH_FIELD:
            return self._select_path_rows(chosen).build_grid(num_listings=num_listings, required=required)
        return build_grid(
            self.compute_scores(name)[chosen],
            num_listings=num_listings,
            required=required,
            thresholds_above=() if name == BRAND_FIELD else thresholds_above,
        )

    def build_tests(self, name: str, alpha: float, grid: tuple[float, ...], chosen: Bools | None = None) -> FieldTests:
        """Return the tests of a grid on the chosen listings; by default on those with a label for the field.

        A chosen listing without a label counts as wrong where it is filled.
        """
        considered = self.find_known(name) if chosen is None else chosen
        num_unlabelled = int((~considered).sum()) if chosen is None else 0
        if name == PATH_FIELD:
            return replace(self._select_path_rows(considered).build_tests(alpha, grid), num_unlabelled=num_unlabelled)
        right = self._brands.right if name == BRAND_FIELD else self._steps.right[:, _get_column(name)]
        return FieldTests.from_scores(
            name,
            alpha=alpha,
            grid=grid,
            scores=self.compute_scores(name)[considered],
            right=right[considered],
            num_unlabelled=num_unlabelled,
        )

    def add_depths(self, field: FieldGuarantee, chosen: Bools | None = None) -> FieldGuarantee:
        """Add the evidence at each depth to the guarantee of a path; others are returned as they are."""
        if field.name != PATH_FIELD or field.threshold is None:
            return field
        rows = self._select_path_rows(self.find_known(PATH_FIELD) if chosen is None else chosen)
        return replace(
            field,
            depths=rows.count_depths(field.threshold),
            num_below_truth=rows.count_below_truth(field.threshold),
        )

    def _select_path_rows(self, chosen: Bools) -> PathRows:
        return PathRows.from_paths(self._predictions.paths, self._truth, self._taxonomy, chosen)


def _get_column(name: str) -> int:
    return int(name.rpartition("_")[2]) - 1
