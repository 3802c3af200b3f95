"""Certified thresholds: from which confidence on a field is prefilled, with a guarantee of its precision.

Learn-then-Test (Angelopoulos et al. 2021) with fixed sequences of exact binomial tests: the grids of thresholds come
from some listings (tune), the tests from others (calibrate), strictest threshold first, until the first that fails.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.calibration.fixed_sequences import SequenceResult, run_fixed_sequences
from training.calibration.path_tests import PathRows
from training.calibration.splits import CalibrationListings
from training.calibration.threshold_tests import FieldTests, build_grid, count_required
from training.evaluation.ground_truth import evaluate_paths
from training.statistics.estimates import compute_clopper_pearson_upper
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee, UncertifiedCode, get_field_name
from vision.decision import ONLY_CATEGORY
from vision.errors import ListingVisionError
from vision.manifest import UNLABELLED
from vision.prediction.listings import ListingPredictions, compute_brand_scores, compute_path_scores
from vision.taxonomy import Taxonomy

__all__ = ["CategoryRule", "Guarantee", "certify", "certify_all"]

CategoryRule = Literal["path", "depth"]


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What is to be certified, for all fields together."""

    alpha_category: float = 0.05
    """Highest probability that a prefilled category is wrong."""
    alpha_brand: float = 0.02
    """Highest probability that a prefilled brand is wrong."""
    delta: float = 0.05
    """Highest probability, over the draw of the calibration listings, that any of these statements is false."""
    categories: CategoryRule = "path"
    """`path`: one guarantee for the deepest category that is prefilled. `depth`: one for each depth, among the listings
    prefilled to it, which needs more calibration listings."""

    def __post_init__(self) -> None:
        for name in ("alpha_category", "alpha_brand", "delta"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ListingVisionError(f"{name} is {value}; give a probability between 0 and 1, such as 0.05")


def certify(fields: Sequence[FieldTests], *, delta: float) -> list[FieldGuarantee]:
    """Return the guarantee of each field at the loosest threshold that passes its test, stricter ones having passed.

    Args:
        fields: one threshold each; a field that is one depth of several must not fill where the depth above does not.
        delta: highest probability that any guarantee is false.
    """
    certified: list[FieldGuarantee] = []
    floor = -math.inf
    for field, result in zip(fields, run_fixed_sequences(fields, delta=delta), strict=True):
        is_depth = field.name not in (PATH_FIELD, BRAND_FIELD)
        guarantee = _build_guarantee(field, result, floor=floor if is_depth else -math.inf)
        if is_depth:  # a level that is never prefilled keeps all deeper ones from being prefilled
            floor = math.inf if guarantee.threshold is None else guarantee.threshold
        certified.append(guarantee)
    return certified


def _build_guarantee(field: FieldTests, result: SequenceResult, *, floor: float) -> FieldGuarantee:
    """Args: floor: least threshold allowed, so that a prefilled child implies prefilled parents."""
    guarantee = FieldGuarantee(
        name=field.name,
        alpha=field.alpha,
        delta=result.delta,
        threshold=None,
        num_listings=field.num_listings,
        num_filled=0,
        num_errors=0,
        grid=field.grid,
        num_unlabelled=field.num_unlabelled,
        num_required=count_required(field.alpha, result.delta),
    )
    passed = field.tests[: result.num_passed]
    allowed = [test for test in passed if test.threshold >= floor]
    if allowed:
        last = allowed[-1]
        bound = compute_clopper_pearson_upper(last.num_errors, last.num_filled, alpha=result.delta)
        return replace(
            guarantee, threshold=last.threshold, num_filled=last.num_filled, num_errors=last.num_errors, bound=bound
        )
    if floor == math.inf:
        reason = "the level above is never prefilled"
        return replace(guarantee, uncertified_reason=reason, uncertified_code="PARENT_NOT_PREFILLED")
    if passed:
        return replace(guarantee, uncertified_reason="no certified threshold is as strict as that of the level above")
    return replace(guarantee, uncertified_reason=field.explain_failure(result.delta))


def certify_all(
    tune: CalibrationListings,
    tested: CalibrationListings,
    taxonomy: Taxonomy,
    fitted: Calibration,
    guarantee: Guarantee,
) -> list[FieldGuarantee]:
    """The guarantee of each field; they hold together with probability at least 1 - `guarantee.delta`."""
    depths = np.flatnonzero(taxonomy.decides_at_depth).tolist()
    if guarantee.categories == "path":
        names = [PATH_FIELD] if depths else []
    else:
        names = [get_field_name(depth + 1) for depth in depths]
    if taxonomy.brands:
        names.append(BRAND_FIELD)
    alphas = {name: guarantee.alpha_brand if name == BRAND_FIELD else guarantee.alpha_category for name in names}
    if len(tested.groups) == 0:
        reason = (
            f"{len(tune.truth.brands)} calibration listings are too few to fit thresholds on some and test on others"
        )
        found = {name: _create_uncertified(name, alphas[name], guarantee.delta / len(names), reason) for name in names}
    else:
        rows = _FieldRows(tune, tested, taxonomy, fitted)
        fields: list[FieldTests] = []
        for name in names:
            required = count_required(alphas[name], guarantee.delta / len(names))
            fields.append(rows.build_tests(name, alphas[name], required, fields[-1].grid if fields else ()))
        found = {field.name: rows.add_depths(field) for field in certify(fields, delta=guarantee.delta)}
    return _complete(found, taxonomy, guarantee)


class _FieldRows:
    """Scores and correctness of the tune and the calibration listings, by field."""

    def __init__(
        self, tune: CalibrationListings, tested: CalibrationListings, taxonomy: Taxonomy, fitted: Calibration
    ) -> None:
        self._tune, self._tested, self._taxonomy = tune, tested, taxonomy
        self._tune_predictions, self._predictions = (part.predict(taxonomy, fitted) for part in (tune, tested))
        self._tune_path_rows, self._path_rows = (
            PathRows.from_paths(predictions.paths, listings.truth, taxonomy)
            for predictions, listings in ((self._tune_predictions, tune), (self._predictions, tested))
        )

    def build_tests(self, name: str, alpha: float, required: int, grid_above: Sequence[float]) -> FieldTests:
        """Args: required: filled listings that a test needs; grid_above: of the depth above, if there is one."""
        if name == PATH_FIELD:
            num_listings = len(self._path_rows.scores)
            grid = self._tune_path_rows.build_grid(num_listings=num_listings, required=required)
            return self._path_rows.build_tests(alpha, grid)
        tune_scores, _, tune_known = self._select(name, self._tune_predictions, self._tune)
        scores, right, known = self._select(name, self._predictions, self._tested)
        grid = build_grid(
            tune_scores[tune_known],
            num_listings=int(known.sum()),
            required=required,
            thresholds_above=() if name == BRAND_FIELD else grid_above,
        )
        return FieldTests.from_scores(
            name,
            alpha=alpha,
            grid=grid,
            scores=scores[known],
            right=right[known],
            num_unlabelled=int((~known).sum()),
        )

    def add_depths(self, field: FieldGuarantee) -> FieldGuarantee:
        """Add the evidence at each depth to the guarantee of a path."""
        if field.name != PATH_FIELD or field.threshold is None:
            return field
        rows = self._path_rows
        return replace(
            field,
            depths=rows.count_depths(field.threshold),
            num_below_truth=rows.count_below_truth(field.threshold),
        )

    def _select(
        self, name: str, predictions: ListingPredictions, listings: CalibrationListings
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(N,) scores, whether right, whether known, of the brand or of a depth."""
        if name == BRAND_FIELD:
            brands, truth = predictions.brands, listings.truth.brands
            return compute_brand_scores(brands), brands.labels == truth, truth != UNLABELLED
        depth = int(name.rpartition("_")[2]) - 1
        steps = evaluate_paths(predictions.paths, listings.truth)
        return (
            compute_path_scores(predictions.paths, self._taxonomy)[:, depth],
            steps.right[:, depth],
            steps.known[:, depth],
        )


def _complete(found: dict[str, FieldGuarantee], taxonomy: Taxonomy, guarantee: Guarantee) -> list[FieldGuarantee]:
    """All fields of the form, those with nothing to decide too, root level first and the brand last."""
    if guarantee.categories == "path":
        names, only = [PATH_FIELD], "the taxonomy has no choice of categories"
    else:
        names, only = [get_field_name(depth + 1) for depth in range(taxonomy.max_depth)], ONLY_CATEGORY
    fields = [
        found.get(name) or _create_uncertified(name, guarantee.alpha_category, 0.0, only, code="ONLY_CATEGORY")
        for name in names
    ]
    no_brands = _create_uncertified(BRAND_FIELD, guarantee.alpha_brand, 0.0, "the taxonomy lists no brand")
    return [*fields, found.get(BRAND_FIELD) or no_brands]


def _create_uncertified(
    name: str, alpha: float, delta: float, reason: str, *, code: UncertifiedCode = "NOT_CERTIFIED"
) -> FieldGuarantee:
    return FieldGuarantee(
        name=name,
        alpha=alpha,
        delta=delta,
        threshold=None,
        num_listings=0,
        num_filled=0,
        num_errors=0,
        uncertified_reason=reason,
        uncertified_code=code,
    )
