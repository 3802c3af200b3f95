"""Temperatures and certified thresholds from listings that the model was not trained on.

Learn-then-Test (Angelopoulos et al. 2021) with a fixed sequence of exact binomial tests: the grid of thresholds
comes from one half of the listings (tune), the tests from the other (calibrate), strictest threshold first,
until the first that fails.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from training.evaluation import Truth, judge_paths, listing_labels, truth_by_depth
from training.predictions import Predictions
from vision.decision import (
    BRAND_FIELD,
    Calibration,
    Field,
    answer_paths,
    brand_probabilities,
    category_probabilities,
    field_name,
    fuse,
    softmax,
)
from vision.taxonomy import Taxonomy

__all__ = ["ALPHA_BRAND", "ALPHA_CATEGORY", "DELTA", "calibrate", "certify", "fit_temperature"]

ALPHA_CATEGORY = 0.05
ALPHA_BRAND = 0.02
DELTA = 0.05

_LEAST_FIRST_COVERAGE = 0.3
"""Of the strictest threshold tried: starting stricter stops at once, for want of listings."""


def calibrate(predictions: Predictions, taxonomy: Taxonomy, *, certifies: Mapping[str, str]) -> Calibration:
    """Temperatures fitted on one half of the listings, promises tested on the other; halves by hash of listing id."""
    is_tune = np.array([_is_tune(listing_id) for listing_id in predictions.listing_ids])
    labels = listing_labels(predictions.labels, predictions.groups)
    truth = truth_by_depth(labels, taxonomy)
    category_logits = fuse(predictions.category_logits, predictions.groups, how="mean")
    category_temperature = fit_temperature(category_logits[is_tune], truth.leaves[is_tune])
    brand_fusion, brand_temperature = _brand_fit(predictions, is_tune, truth.brands)
    without_promises = Calibration(
        category_temperature=category_temperature,
        brand_temperature=brand_temperature,
        brand_fusion=brand_fusion,
        certifies={**certifies, "split": "val, half of the listings by hash of listing id"},
    )
    leaves = category_probabilities(predictions.category_logits, predictions.groups, without_promises)
    brands = brand_probabilities(predictions.brand_logits, predictions.groups, without_promises)
    fields = _certify_all(leaves, brands, truth, is_tune, taxonomy)
    return Calibration(
        category_temperature=category_temperature,
        brand_temperature=brand_temperature,
        brand_fusion=brand_fusion,
        fields=fields,
        certifies=without_promises.certifies,
    )


def fit_temperature(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017), in [0.25, 10]; 1 without labels.

    The bounds matter where no answer is wrong: the likelihood then grows for ever as the temperature falls.
    """
    labelled = labels >= 0
    if not labelled.any():
        return 1.0
    logits, labels = logits[labelled], labels[labelled]

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / math.exp(log_temperature))
        return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.25), math.log(10)), method="bounded")
    return math.exp(float(found.x))


def certify(
    *,
    name: str,
    alpha: float,
    delta: float,
    tune_scores: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
    right: npt.NDArray[np.bool_],
    thresholds_above: Sequence[float] = (),
    floor: float = 0.0,
) -> Field:
    """The loosest threshold of a fixed grid that passes its exact binomial test, stricter ones having passed.

    Args:
        delta: of this field alone, the union bound already taken.
        tune_scores: (M,) scores that the grid is taken from.
        scores: (N,) scores of the calibration listings; `right`: (N,) whether their answer is right.
        thresholds_above: the grid of the level above, so that its threshold can be this level's too.
        floor: least threshold allowed, so that a filled child implies filled parents.
    """
    needed = _needed(alpha, delta)
    passed: list[tuple[float, int, int]] = []
    failed = (0, 0)
    for threshold in _grid(tune_scores, len(scores), needed, thresholds_above):
        filled = scores >= threshold
        num_filled, num_errors = int(filled.sum()), int((~right[filled]).sum())
        if binom.cdf(num_errors, num_filled, alpha) > delta:
            failed = (num_filled, num_errors)
            break
        passed.append((threshold, num_filled, num_errors))
    allowed = [step for step in passed if step[0] >= floor]
    if allowed:
        threshold, num_filled, num_errors = allowed[-1]
        return Field(
            name=name,
            alpha=alpha,
            delta=delta,
            threshold=threshold,
            num_listings=len(scores),
            num_filled=num_filled,
            num_errors=num_errors,
        )
    if floor == math.inf:
        why = "the level above is never filled"
    elif passed:
        why = "no certified threshold is as strict as that of the level above"
    elif len(scores) < needed:
        why = (
            f"{len(scores)} calibration listings are too few: with no error at all, {needed} filled ones are needed "
            f"for {1 - alpha:.0%} precision"
        )
    else:
        why = (
            f"the strictest threshold tried fills {failed[0]} of {len(scores)} calibration listings, {failed[1]} of "
            f"them wrongly, which does not prove {1 - alpha:.0%}"
        )
    return Field(
        name=name,
        alpha=alpha,
        delta=delta,
        threshold=None,
        num_listings=len(scores),
        num_filled=0,
        num_errors=0,
        why_not=why,
    )


def _needed(alpha: float, delta: float) -> int:
    """Filled listings without any error that the test needs to pass."""
    return math.ceil(math.log(delta) / math.log(1 - alpha))


def _first_coverage(num_listings: int, needed: int) -> float:
    # Half as many again as an errorless test needs: the calibration half fills a few more or fewer than the tune half
    # did, and one error must not end the sequence at its first step. With few listings rather a thin margin than a
    # grid of one threshold.
    return min(1.0, max(_LEAST_FIRST_COVERAGE, min(1.5 * needed / num_listings, 0.85), needed / num_listings))


def _grid(
    tune_scores: npt.NDArray[np.floating], num_listings: int, needed: int, thresholds_above: Sequence[float] = ()
) -> Sequence[float]:
    """Quantiles of the tune scores, strictest first; the first covers enough listings for a test that can pass."""
    if tune_scores.size == 0 or num_listings == 0:
        return ()
    coverages = np.linspace(_first_coverage(num_listings, needed), 1.0, 12 if num_listings < 2000 else 40)
    own = {float(quantile) for quantile in np.quantile(tune_scores, 1 - coverages)}
    return sorted(own | {above for above in thresholds_above if above <= max(own)}, reverse=True)


def _certify_all(
    leaves: npt.NDArray[np.floating],
    brands: npt.NDArray[np.floating],
    truth: Truth,
    is_tune: npt.NDArray[np.bool_],
    taxonomy: Taxonomy,
) -> tuple[Field, ...]:
    paths = answer_paths(leaves, taxonomy)
    verdicts = judge_paths(paths, truth)
    delta = DELTA / (taxonomy.max_depth + 1)
    fields: list[Field] = []
    floor = 0.0
    grid: Sequence[float] = ()
    for depth in range(taxonomy.max_depth):
        known = verdicts.known[:, depth]
        field = certify(
            name=field_name(depth + 1),
            alpha=ALPHA_CATEGORY,
            delta=delta,
            tune_scores=paths.scores[known & is_tune, depth],
            scores=paths.scores[known & ~is_tune, depth],
            right=verdicts.right[known & ~is_tune, depth],
            thresholds_above=grid,
            floor=floor,
        )
        num_listings = int((known & ~is_tune).sum())
        grid = _grid(paths.scores[known & is_tune, depth], num_listings, _needed(ALPHA_CATEGORY, delta), grid)
        # A level that is never filled keeps all deeper ones from being filled.
        floor = math.inf if field.threshold is None else field.threshold
        fields.append(field)
    known = truth.brands >= 0
    fields.append(
        certify(
            name=BRAND_FIELD,
            alpha=ALPHA_BRAND,
            delta=delta,
            tune_scores=brands.max(axis=1)[known & is_tune],
            scores=brands.max(axis=1)[known & ~is_tune],
            right=(brands.argmax(axis=1) == truth.brands)[known & ~is_tune],
        )
    )
    return tuple(fields)


def _brand_fit(
    predictions: Predictions, is_tune: npt.NDArray[np.bool_], brands: npt.NDArray[np.int64]
) -> tuple[Literal["mean", "max"], float]:
    """Mean or max over photos, whichever explains the tune listings better: a logo may show in one photo only."""
    known = is_tune & (brands >= 0)
    best: tuple[float, Literal["mean", "max"], float] = (math.inf, "mean", 1.0)
    hows: tuple[Literal["mean", "max"], ...] = ("mean", "max")
    for how in hows:
        logits = fuse(predictions.brand_logits, predictions.groups, how=how)[known]
        if len(logits) == 0:
            break
        temperature = fit_temperature(logits, brands[known])
        likelihoods = softmax(logits / temperature)[np.arange(len(logits)), brands[known]]
        loss = float(-np.log(np.maximum(likelihoods, 1e-12)).mean())
        if loss < best[0] - 1e-9:
            best = (loss, how, temperature)
    return best[1], best[2]


def _is_tune(listing_id: str) -> bool:
    return hashlib.sha256(listing_id.encode()).digest()[0] % 2 == 0
