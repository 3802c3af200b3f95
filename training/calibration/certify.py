"""Certified thresholds: from which confidence on a field is prefilled, with a guarantee of its precision.

Learn-then-Test (Angelopoulos et al. 2021) with fixed sequences of exact binomial tests: the grids of thresholds come
from some listings (tune), the tests from others (calibrate), strictest threshold first, until the first that fails.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from training.calibration.field_rows import FieldRows
from training.calibration.fixed_sequences import SequenceResult, run_fixed_sequences
from training.calibration.splits import CalibrationListings
from training.calibration.threshold_tests import FieldTests, count_required
from training.statistics.estimates import compute_clopper_pearson_upper
from vision.calibration import (
    BRAND_FIELD,
    PATH_FIELD,
    Calibration,
    FieldGuarantee,
    OutcomeEvidence,
    UncertifiedCode,
    get_field_name,
)
from vision.decision import ONLY_CATEGORY
from vision.errors import ListingVisionError
from vision.taxonomy import Taxonomy

__all__ = [
    "CategoryRule",
    "GridSource",
    "Guarantee",
    "certify",
    "certify_all",
    "complete_fields",
    "create_uncertified",
]

WAIT_DAYS = 14
"""Days after a listing's first suggestion in which its outcome must be reported to count as one."""
CategoryRule = Literal["path", "depth"]
GridSource = Literal["labelled", "all"]


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
    outcomes_delta: float = 0.0
    """Part of `delta` that is kept for outcomes of hidden listings, which may certify looser thresholds later."""

    def list_alphas(self, taxonomy: Taxonomy) -> dict[str, float]:
        """Return the alpha of each field that has something to decide, from the roots down and the brand last."""
        depths = (np.flatnonzero(taxonomy.decides_at_depth) + 1).tolist()
        names = [get_field_name(depth) for depth in depths]
        if self.categories == "path":
            names = [PATH_FIELD] if depths else []
        alphas = dict.fromkeys(names, self.alpha_category)
        return alphas | ({BRAND_FIELD: self.alpha_brand} if taxonomy.brands else {})

    def __post_init__(self) -> None:
        for name in ("alpha_category", "alpha_brand", "delta"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ListingVisionError(f"{name} is {value}; give a probability between 0 and 1, such as 0.05")
        if not 0 <= self.outcomes_delta < self.delta:
            raise ListingVisionError(
                f"outcomes_delta is {self.outcomes_delta}; it is part of delta, {self.delta}: give 0, or less than that"
            )
        if self.outcomes_delta and self.categories == "depth":
            raise ListingVisionError(
                "outcomes certify the path of categories, not each depth; leave outcomes_delta out"
            )

    @property
    def tested_delta(self) -> float:
        """The part of `delta` for the tests on calibration listings."""
        return self.delta - self.outcomes_delta


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
    *,
    grids_from: GridSource = "labelled",
) -> list[FieldGuarantee]:
    """The guarantee of each field; they hold together with probability at least 1 - `guarantee.delta`.

    Args:
        tune: listings whose scores give the thresholds to test.
        tested: other listings, whose labels nothing has been chosen on.
        taxonomy: that of the model.
        fitted: the temperatures and gates, which come from other listings than `tested`.
        guarantee: what to certify.
        grids_from: the tune listings with a label for the field, or all of them.
    """
    alphas = guarantee.list_alphas(taxonomy)
    if len(tested.groups) == 0:
        reason = (
            f"{len(tune.truth.brands)} calibration listings are too few to fit thresholds on some and test on others"
        )
        found = {
            name: create_uncertified(name, alpha, guarantee.tested_delta / len(alphas), reason)
            for name, alpha in alphas.items()
        }
        return complete_fields(found, taxonomy, guarantee)
    tune_rows, rows = (FieldRows(listings, taxonomy, fitted) for listings in (tune, tested))
    fields: list[FieldTests] = []
    for name, alpha in alphas.items():
        grid = tune_rows.build_grid(
            name,
            tune_rows.find_known(name) if grids_from == "labelled" else tune_rows.find_all(),
            num_listings=int(rows.find_known(name).sum()),
            required=count_required(alpha, guarantee.tested_delta / len(alphas)),
            thresholds_above=fields[-1].grid if fields else (),
        )
        fields.append(rows.build_tests(name, alpha, grid))
    plan = None
    if guarantee.outcomes_delta:
        plan = OutcomeEvidence(delta=guarantee.outcomes_delta / len(alphas), wait_days=WAIT_DAYS)
    found = {
        field.name: replace(rows.add_depths(field), outcomes=plan)
        for field in certify(fields, delta=guarantee.tested_delta)
    }
    return complete_fields(found, taxonomy, guarantee)


def complete_fields(
    found: Mapping[str, FieldGuarantee], taxonomy: Taxonomy, guarantee: Guarantee
) -> list[FieldGuarantee]:
    """Return all fields of the form, categories with nothing to decide too, root level first and the brand last."""
    if guarantee.categories == "path":
        names, only = [PATH_FIELD], "the taxonomy has no choice of categories"
    else:
        names, only = [get_field_name(depth + 1) for depth in range(taxonomy.max_depth)], ONLY_CATEGORY
    fields = [
        found.get(name) or create_uncertified(name, guarantee.alpha_category, 0.0, only, code="ONLY_CATEGORY")
        for name in names
    ]
    return [*fields, *([found[BRAND_FIELD]] if taxonomy.brands else [])]


def create_uncertified(
    name: str, alpha: float, delta: float, reason: str, *, code: UncertifiedCode = "NOT_CERTIFIED"
) -> FieldGuarantee:
    """Return the guarantee of a field that is never filled."""
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
