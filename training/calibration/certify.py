"""Certified thresholds: from which confidence on a field is prefilled, with a guarantee of its precision.

Learn-then-Test (Angelopoulos et al. 2021) with a fixed sequence of exact binomial tests: the grid of thresholds
comes from one half of the listings (tune), the tests from the other (calibrate), strictest threshold first,
until the first that fails.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from training.calibration.splits import CalibrationListings
from training.evaluation.ground_truth import evaluate_paths
from training.statistics.estimates import compute_clopper_pearson_upper
from vision.calibration import BRAND_FIELD, Calibration, FieldGuarantee, UncertifiedCode, get_field_name
from vision.decision import compute_brand_scores, compute_path_scores
from vision.errors import ListingVisionError
from vision.manifest import UNLABELLED
from vision.taxonomy import Taxonomy

__all__ = ["Guarantee", "certify", "certify_all"]

_MIN_FIRST_COVERAGE = 0.3
"""Least coverage of the strictest threshold tried: with a stricter one the first test fails for want of listings."""


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What is to be certified, for all fields together."""

    alpha_category: float = 0.05
    """Highest probability that a prefilled category is wrong."""
    alpha_brand: float = 0.02
    """Highest probability that a prefilled brand is wrong."""
    delta: float = 0.05
    """Highest probability, over the draw of the calibration listings, that any of these statements is false."""

    def __post_init__(self) -> None:
        for name in ("alpha_category", "alpha_brand", "delta"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ListingVisionError(f"{name} is {value}; give a probability between 0 and 1, such as 0.05")


def certify(
    *,
    name: str,
    alpha: float,
    delta: float,
    tune_scores: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
    right: npt.NDArray[np.bool_],
    thresholds_above: Sequence[float] = (),
    floor: float = -math.inf,
    num_unlabelled: int = 0,
) -> FieldGuarantee:
    """The loosest threshold of a fixed grid that passes its exact binomial test, stricter ones having passed.

    Args:
        delta: of this field alone, the union bound already taken.
        tune_scores: (M,) scores that the grid is taken from, -inf where nothing can be prefilled.
        scores: (N,) scores of the calibration listings, likewise; `right`: (N,) whether their prediction is right.
        thresholds_above: the grid of the level above, so that its threshold can be this level's too.
        floor: least threshold allowed, so that a prefilled child implies prefilled parents.
        num_unlabelled: calibration listings that are not among the N, for the record.
    """
    grid = _build_grid(tune_scores, len(scores), _count_needed(alpha, delta), thresholds_above)
    passed: list[_ThresholdTest] = []
    failed = _ThresholdTest(math.nan, 0, 0)
    for threshold in grid:
        filled = scores >= threshold
        test = _ThresholdTest(threshold, int(filled.sum()), int((~right[filled]).sum()))
        if not test.passes(alpha, delta):
            failed = test
            break
        passed.append(test)
    field = FieldGuarantee(
        name=name,
        alpha=alpha,
        delta=delta,
        threshold=None,
        num_listings=len(scores),
        num_filled=0,
        num_errors=0,
        grid=tuple(grid),
        num_unlabelled=num_unlabelled,
        num_required=_count_needed(alpha, delta),
    )
    allowed = [test for test in passed if test.threshold >= floor]
    if allowed:
        last = allowed[-1]
        bound = compute_clopper_pearson_upper(last.num_errors, last.num_filled, alpha=delta)
        return replace(
            field, threshold=last.threshold, num_filled=last.num_filled, num_errors=last.num_errors, bound=bound
        )
    if floor == math.inf:
        reason = "the level above is never prefilled"
        return replace(field, uncertified_reason=reason, uncertified_code="PARENT_NOT_PREFILLED")
    if passed:
        return replace(field, uncertified_reason="no certified threshold is as strict as that of the level above")
    return replace(field, uncertified_reason=_explain_failure(field, failed))


@dataclass(frozen=True)
class _ThresholdTest:
    """What one threshold prefills of the calibration listings."""

    threshold: float
    num_filled: int
    num_errors: int

    def passes(self, alpha: float, delta: float) -> bool:
        return bool(binom.cdf(self.num_errors, self.num_filled, alpha) <= delta)


def _explain_failure(field: FieldGuarantee, failed: _ThresholdTest) -> str:
    """Why not even the strictest threshold of the grid passed its test."""
    num, needed, precision = (
        field.num_listings,
        _count_needed(field.alpha, field.delta),
        f"{100 * (1 - field.alpha):g}%",
    )
    if not field.grid:
        return "no tune listing has a known label and a prediction that can be prefilled: there is no threshold to test"
    if failed.num_filled == 0 and num >= needed:
        return f"the strictest threshold tried, {field.grid[0]:.3f}, fills none of {num} calibration listings"
    if num < needed:
        return (
            f"{num} calibration listings are too few: with no error at all, {needed} filled ones are needed for "
            f"{precision} precision"
        )
    rate = failed.num_errors / failed.num_filled if failed.num_filled else 1.0
    if rate >= field.alpha:
        advice = "no number of listings would"
    else:
        num_enough = failed.num_filled
        while not _ThresholdTest(failed.threshold, num_enough, math.ceil(rate * num_enough)).passes(
            field.alpha, field.delta
        ):
            num_enough = math.ceil(num_enough * 1.1) + 1
        advice = f"about {math.ceil(num_enough * num / failed.num_filled)} listings would"
    return (
        f"the strictest threshold tried fills {failed.num_filled} of {num} calibration listings, {failed.num_errors} "
        f"of them wrongly, which does not prove {precision}; at this share of errors {advice}"
    )


def _count_needed(alpha: float, delta: float) -> int:
    """Prefilled listings without any error that the test needs to pass."""
    return math.ceil(math.log(delta) / math.log(1 - alpha))


def _choose_first_coverage(num_listings: int, needed: int) -> float:
    # Half as many again as an errorless test needs: the calibration half fills a few more or fewer than the tune half
    # did, and one error must not end the sequence at its first step. With few listings, a thin margin is better than a
    # grid of one threshold.
    return min(1.0, max(_MIN_FIRST_COVERAGE, min(1.5 * needed / num_listings, 0.85), needed / num_listings))


def _build_grid(
    tune_scores: npt.NDArray[np.floating], num_listings: int, needed: int, thresholds_above: Sequence[float] = ()
) -> Sequence[float]:
    """Quantiles of the tune scores, strictest first; the first covers enough listings for a test that can pass."""
    strictest_first = np.sort(tune_scores[np.isfinite(tune_scores)])[::-1]
    if strictest_first.size == 0 or num_listings == 0:
        return ()
    coverages = np.linspace(_choose_first_coverage(num_listings, needed), 1.0, 12 if num_listings < 2000 else 40)
    last = np.minimum(np.ceil(coverages * len(tune_scores)).astype(int), strictest_first.size) - 1
    own = set(strictest_first[np.maximum(last, 0)].tolist())
    return sorted(own | {above for above in thresholds_above if above <= max(own)}, reverse=True)


def certify_all(
    tune: CalibrationListings,
    tested: CalibrationListings,
    taxonomy: Taxonomy,
    fitted: Calibration,
    guarantee: Guarantee,
) -> list[FieldGuarantee]:
    """The guarantee of each field, `delta` shared equally among those that have something to decide."""
    has_brands = len(taxonomy.brands) > 0
    # With one category and no brand nothing is to be decided, and nothing is guaranteed.
    delta = guarantee.delta / max(1, int(taxonomy.decides_at_depth.sum()) + has_brands)
    if len(tested.groups) == 0:
        names = [*map(get_field_name, range(1, taxonomy.max_depth + 1)), BRAND_FIELD]
        reason = (
            f"{len(tune.truth.brands)} calibration listings are too few to fit thresholds on some and test on others"
        )
        alphas = [guarantee.alpha_category] * taxonomy.max_depth + [guarantee.alpha_brand]
        return [_create_uncertified(name, alpha, delta, reason) for name, alpha in zip(names, alphas, strict=True)]
    tune_predictions, predictions = (part.predict(taxonomy, fitted) for part in (tune, tested))
    tune_known = evaluate_paths(tune_predictions.paths, tune.truth).known
    step_results = evaluate_paths(predictions.paths, tested.truth)
    tune_scores, scores = (compute_path_scores(a.paths, taxonomy) for a in (tune_predictions, predictions))
    fields: list[FieldGuarantee] = []
    floor = -math.inf
    grid: Sequence[float] = ()
    for depth in range(taxonomy.max_depth):
        name = get_field_name(depth + 1)
        if not taxonomy.decides_at_depth[depth]:
            reason = "the only category at this depth: prefilled when the one below it is"
            fields.append(_create_uncertified(name, guarantee.alpha_category, 0.0, reason, code="ONLY_CATEGORY"))
            continue
        known = step_results.known[:, depth]
        field = certify(
            name=name,
            alpha=guarantee.alpha_category,
            delta=delta,
            tune_scores=tune_scores[tune_known[:, depth], depth],
            scores=scores[known, depth],
            right=step_results.right[known, depth],
            thresholds_above=grid,
            floor=floor,
            num_unlabelled=int((~known).sum()),
        )
        # A level that is never prefilled keeps all deeper ones from being prefilled.
        floor, grid = (math.inf if field.threshold is None else field.threshold), field.grid
        fields.append(field)
    known = tested.truth.brands != UNLABELLED
    brand = certify(
        name=BRAND_FIELD,
        alpha=guarantee.alpha_brand,
        delta=delta,
        tune_scores=compute_brand_scores(tune_predictions.brands)[tune.truth.brands != UNLABELLED],
        scores=compute_brand_scores(predictions.brands)[known],
        right=(predictions.brands.labels == tested.truth.brands)[known],
        num_unlabelled=int((~known).sum()),
    )
    no_brands = _create_uncertified(BRAND_FIELD, guarantee.alpha_brand, 0.0, "the taxonomy lists no brand")
    return [*fields, brand if has_brands else no_brands]


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
