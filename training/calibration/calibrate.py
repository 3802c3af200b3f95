"""Temperatures and certified thresholds from listings that the model was not trained on.

Learn-then-Test (Angelopoulos et al. 2021) with a fixed sequence of exact binomial tests: the grid of thresholds
comes from one half of the listings (tune), the tests from the other (calibrate), strictest threshold first,
until the first that fails.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom

from training.evaluation.ground_truth import Truth, judge_paths, listing_labels, truth_by_depth
from training.inference.predictions import Predictions
from training.statistics.sequential import (
    BRAND_PROBABILITY,
    BYTES_PER_PHOTO,
    LEAF_PROBABILITY,
    PHOTOS_PER_LISTING,
    spread_of,
)
from vision.calibration import BRAND_FIELD, Calibration, FieldGuarantee, Histogram, field_name
from vision.decision import (
    ListingPredictions,
    compute_brand_scores,
    compute_path_scores,
    fuse_logits,
    predict_listings,
    softmax,
)
from vision.errors import ListingVisionError
from vision.manifest import UNLABELLED, Labels
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = ["Promises", "calibrate", "certify", "clopper_pearson_bound", "fit_depth_temperatures", "fit_temperature"]

_LEAST_FIRST_COVERAGE = 0.3
"""Of the strictest threshold tried: starting stricter stops at once, for want of listings."""
_TEMPERATURE_SPREAD = 0.5
"""Standard deviation of the log of a depth's temperature, before any listing is seen (a normal prior). Chosen
on Grocery Store's val split."""
_LEAST_OTHER_BRANDS = 20
"""Tune listings of brands not listed, from which on they set where 'none that I know' begins."""
_RIGHT_GIVEN_UP = 0.01
"""Where there are fewer: the share of rightly answered brands that may become 'none that I know'."""


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What is to be certified."""

    alpha_category: float = 0.05
    """A filled category is wrong with at most this probability …"""
    alpha_brand: float = 0.02
    """… a filled brand with at most this …"""
    delta: float = 0.05
    """… and any of these promises fails with at most this probability over the draw of the calibration listings."""

    def __post_init__(self) -> None:
        for name in ("alpha_category", "alpha_brand", "delta"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ListingVisionError(f"{name} is {value}; give a probability between 0 and 1, such as 0.05")


@dataclass(frozen=True)
class _Listings:
    category_logits: npt.NDArray[np.floating]
    """(P, C)."""
    brand_logits: npt.NDArray[np.floating]
    """(P, B)."""
    groups: npt.NDArray[np.int64]
    """(P,) 0…N-1."""
    truth: Truth
    """Of the N listings."""

    @classmethod
    def of(
        cls, predictions: Predictions, taxonomy: Taxonomy, chosen: npt.NDArray[np.bool_] | None = None
    ) -> "_Listings":
        """All listings of the predictions, or the (N,) chosen ones."""
        if chosen is None:
            chosen = np.ones(len(predictions.listing_ids), dtype=bool)
        photos = chosen[predictions.groups]
        groups = (np.cumsum(chosen) - 1)[predictions.groups[photos]]
        labels = listing_labels(predictions.labels, predictions.groups)
        truth = truth_by_depth(
            Labels(category_nodes=labels.category_nodes[chosen], brands=labels.brands[chosen]), taxonomy
        )
        return cls(predictions.category_logits[photos], predictions.brand_logits[photos], groups, truth)

    def answered(self, taxonomy: Taxonomy, calibration: Calibration) -> ListingPredictions:
        return predict_listings(
            self.category_logits, self.brand_logits, self.groups, taxonomy=taxonomy, calibration=calibration
        )


def calibrate(
    predictions: Predictions,
    taxonomy: Taxonomy,
    *,
    certifies: Mapping[str, str],
    calibration_predictions: Predictions | None = None,
    promises: Promises | None = None,
    category_log_prior: Sequence[float] = (),
    brand_log_prior: Sequence[float] = (),
) -> Calibration:
    """Temperatures and grids fitted on tune listings, promises tested on others.

    Args:
        predictions: the tune listings; without `calibration_predictions` half of them, by hash of the listing id, and
            the other half is calibrated on.
        taxonomy: of the model.
        certifies: what the promises hold for.
        calibration_predictions: listings kept for the tests alone.
        promises: defaults where None.
        category_log_prior: see `Calibration`.
        brand_log_prior: see `Calibration`.
    """
    promises = promises or Promises()
    if calibration_predictions is None:
        is_tune = np.array([_is_tune(listing_id) for listing_id in predictions.listing_ids])
        certifies = {"split": "val, half of the listings by hash of listing id", **certifies}
        if is_tune.all() or not is_tune.any():
            # Too few to halve: temperatures are worth having, promises cannot be tested.
            is_tune = np.ones(len(is_tune), dtype=bool)
        tune, tested = (_Listings.of(predictions, taxonomy, chosen) for chosen in (is_tune, ~is_tune))
    else:
        tune, tested = (_Listings.of(p, taxonomy) for p in (predictions, calibration_predictions))
    category_prior, brand_prior = tuple(map(float, category_log_prior)), tuple(map(float, brand_log_prior))
    category_logits = fuse_logits(tune.category_logits, tune.groups, how="mean")
    if category_prior:
        category_logits = category_logits + np.asarray(category_prior)
    brand_fusion, brand_temperature = _brand_fit(tune, brand_prior)
    temperature = fit_temperature(category_logits, tune.truth.leaves)
    depth_temperatures = fit_depth_temperatures(softmax(category_logits / temperature), tune.truth, taxonomy)
    fitted = Calibration(
        category_temperature=temperature,
        category_depth_temperatures=depth_temperatures,
        brand_temperature=brand_temperature,
        brand_fusion=brand_fusion,
        category_log_prior=category_prior,
        brand_log_prior=brand_prior,
        certifies=certifies,
    )
    fitted = replace(fitted, unknown_brand_below=_unknown_brand_threshold(tune, taxonomy, fitted))
    fitted = replace(fitted, expected=_expected(predictions, _Listings.of(predictions, taxonomy), taxonomy, fitted))
    return replace(fitted, fields=tuple(_certify_all(tune, tested, taxonomy, fitted, promises)))


def _expected(
    predictions: Predictions, listings: _Listings, taxonomy: Taxonomy, fitted: Calibration
) -> dict[str, Histogram]:
    """How certain the answers are, and what the photos are like."""
    answered = listings.answered(taxonomy, fitted)
    # Beyond a path's end the score is 0; along a path it only falls.
    leaf = np.where(answered.paths.nodes >= 0, answered.paths.scores, np.inf).min(axis=1)
    num_photos = np.bincount(predictions.groups)
    values = {LEAF_PROBABILITY: leaf, BRAND_PROBABILITY: answered.brands.scores, PHOTOS_PER_LISTING: num_photos}
    if predictions.num_bytes is not None:
        values[BYTES_PER_PHOTO] = np.bincount(predictions.groups, predictions.num_bytes) / num_photos
    return {name: spread_of(found) for name, found in values.items()}


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


def fit_depth_temperatures(leaves: npt.NDArray[np.floating], truth: Truth, taxonomy: Taxonomy) -> tuple[float, ...]:
    """For each depth the temperature of a node's share among its siblings, given that their parent is right.

    Minimises the negative log-likelihood of each depth by itself, drawn towards 1 where listings are few, in [1/3, 3];
    1 where no label tells siblings apart.

    Args:
        leaves: (N, C) probabilities at the leaves' temperature.
        truth: of the N listings.
        taxonomy: of the leaves.
    """
    temperatures = []
    sums_above = leaves.sum(axis=1, keepdims=True)
    for groups, nodes in zip(taxonomy.leaf_groups, truth.nodes.T, strict=True):
        sums = np.add.reduceat(leaves[:, groups.order], groups.starts, axis=1)
        ends = np.append(groups.sibling_starts[1:], len(groups.nodes))
        pieces, positions = [], []
        for row in np.flatnonzero(nodes >= 0).tolist():
            true = int(np.searchsorted(groups.nodes, nodes[row]))
            of_one_parent = groups.sibling_sets[true]
            siblings = groups.sibling_order[groups.sibling_starts[of_one_parent] : ends[of_one_parent]]
            if len(siblings) > 1:
                shares = sums[row, siblings] / max(sums_above[row, groups.parents[true]], 1e-300)
                pieces.append(np.log(np.maximum(shares, 1e-300)))
                positions.append(int(np.flatnonzero(siblings == true)[0]))
        temperatures.append(_sibling_temperature(pieces, positions))
        sums_above = sums
    return tuple(temperatures)


def _sibling_temperature(log_shares: Sequence[npt.NDArray[np.float64]], true: Sequence[int]) -> float:
    """Of rows that differ in length; `true` is the right position in each."""
    if not log_shares:
        return 1.0
    flat = np.concatenate(log_shares)
    starts = np.cumsum([0, *(len(row) for row in log_shares[:-1])])
    right = flat[starts + np.asarray(true)]
    # The largest of each row is taken off before the exponential, or all would vanish.
    largest = np.maximum.reduceat(flat, starts)
    lengths = [len(row) for row in log_shares]

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        totals = np.add.reduceat(np.exp((flat - np.repeat(largest, lengths)) / temperature), starts)
        likelihood = (np.log(totals) - (right - largest) / temperature).sum()
        return float(likelihood + log_temperature**2 / (2 * _TEMPERATURE_SPREAD**2))

    found = minimize_scalar(loss, bounds=(-math.log(3), math.log(3)), method="bounded")
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
    floor: float = -math.inf,
    num_unlabelled: int = 0,
) -> FieldGuarantee:
    """The loosest threshold of a fixed grid that passes its exact binomial test, stricter ones having passed.

    Args:
        delta: of this field alone, the union bound already taken.
        tune_scores: (M,) scores that the grid is taken from, -inf where nothing can be filled.
        scores: (N,) scores of the calibration listings, likewise; `right`: (N,) whether their answer is right.
        thresholds_above: the grid of the level above, so that its threshold can be this level's too.
        floor: least threshold allowed, so that a filled child implies filled parents.
        num_unlabelled: calibration listings that are not among the N, for the record.
    """
    needed = _needed(alpha, delta)
    grid = _grid(tune_scores, len(scores), needed, thresholds_above)
    passed: list[tuple[float, int, int]] = []
    failed = (0, 0)
    for threshold in grid:
        filled = scores >= threshold
        num_filled, num_errors = int(filled.sum()), int((~right[filled]).sum())
        if binom.cdf(num_errors, num_filled, alpha) > delta:
            failed = (num_filled, num_errors)
            break
        passed.append((threshold, num_filled, num_errors))
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
    )
    allowed = [step for step in passed if step[0] >= floor]
    if allowed:
        threshold, num_filled, num_errors = allowed[-1]
        bound = clopper_pearson_bound(num_errors, num_filled, delta)
        return replace(field, threshold=threshold, num_filled=num_filled, num_errors=num_errors, bound=bound)
    if floor == math.inf:
        why = "the level above is never filled"
    elif passed:
        why = "no certified threshold is as strict as that of the level above"
    elif not grid:
        why = "no tune listing has a known truth and an answer that can be filled, so there is no threshold to test"
    elif failed[0] == 0 and len(scores) >= needed:
        why = f"the strictest threshold tried, {grid[0]:.3f}, fills none of {len(scores)} calibration listings"
    elif len(scores) < needed:
        why = (
            f"{len(scores)} calibration listings are too few: with no error at all, {needed} filled ones are needed "
            f"for {100 * (1 - alpha):g}% precision"
        )
    else:
        why = (
            f"the strictest threshold tried fills {failed[0]} of {len(scores)} calibration listings, {failed[1]} of "
            f"them wrongly, which does not prove {100 * (1 - alpha):g}%; {_how_many(failed, len(scores), alpha, delta)}"
        )
    return replace(field, uncertified_reason=why)


def clopper_pearson_bound(num_errors: int, num_filled: int, delta: float) -> float:
    """Upper bound of a share of errors that fails with probability at most delta (Clopper and Pearson 1934)."""
    return 1.0 if num_errors >= num_filled else float(beta.ppf(1 - delta, num_errors + 1, num_filled - num_errors))


def _how_many(failed: tuple[int, int], num_listings: int, alpha: float, delta: float) -> str:
    num_filled, num_errors = failed
    rate = num_errors / num_filled if num_filled else 1.0
    if rate >= alpha:
        return "at this share of errors no number of listings would"
    enough = num_filled
    while binom.cdf(math.ceil(rate * enough), enough, alpha) > delta:
        enough = math.ceil(enough * 1.1) + 1
    return f"at this share of errors about {math.ceil(enough * num_listings / num_filled)} listings would"


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
    strictest_first = np.sort(tune_scores[np.isfinite(tune_scores)])[::-1]
    if strictest_first.size == 0 or num_listings == 0:
        return ()
    coverages = np.linspace(_first_coverage(num_listings, needed), 1.0, 12 if num_listings < 2000 else 40)
    last = np.minimum(np.ceil(coverages * len(tune_scores)).astype(int), strictest_first.size) - 1
    own = set(strictest_first[np.maximum(last, 0)].tolist())
    return sorted(own | {above for above in thresholds_above if above <= max(own)}, reverse=True)


def _certify_all(
    tune: _Listings, tested: _Listings, taxonomy: Taxonomy, fitted: Calibration, promises: Promises
) -> list[FieldGuarantee]:
    has_brands = len(taxonomy.brands) > 0
    # With one category and no brand nothing is to be decided, and nothing is promised.
    delta = promises.delta / max(1, int(taxonomy.decides_at_depth.sum()) + has_brands)
    if len(tested.groups) == 0:
        names = [*map(field_name, range(1, taxonomy.max_depth + 1)), BRAND_FIELD]
        why = f"{len(tune.truth.brands)} calibration listings are too few to fit thresholds on some and test on others"
        alphas = [promises.alpha_category] * taxonomy.max_depth + [promises.alpha_brand]
        return [_never(name, alpha, delta, why) for name, alpha in zip(names, alphas, strict=True)]
    tune_answers, answers = (part.answered(taxonomy, fitted) for part in (tune, tested))
    tune_known = judge_paths(tune_answers.paths, tune.truth).known
    verdicts = judge_paths(answers.paths, tested.truth)
    tune_scores, scores = (compute_path_scores(a.paths, taxonomy) for a in (tune_answers, answers))
    fields: list[FieldGuarantee] = []
    floor = -math.inf
    grid: Sequence[float] = ()
    for depth in range(taxonomy.max_depth):
        name = field_name(depth + 1)
        if not taxonomy.decides_at_depth[depth]:
            why = "the only category at this depth: filled when the one below it is"
            fields.append(_never(name, promises.alpha_category, 0.0, why))
            continue
        known = verdicts.known[:, depth]
        field = certify(
            name=name,
            alpha=promises.alpha_category,
            delta=delta,
            tune_scores=tune_scores[tune_known[:, depth], depth],
            scores=scores[known, depth],
            right=verdicts.right[known, depth],
            thresholds_above=grid,
            floor=floor,
            num_unlabelled=int((~known).sum()),
        )
        # A level that is never filled keeps all deeper ones from being filled.
        floor, grid = (math.inf if field.threshold is None else field.threshold), field.grid
        fields.append(field)
    known = tested.truth.brands != UNLABELLED
    brand = certify(
        name=BRAND_FIELD,
        alpha=promises.alpha_brand,
        delta=delta,
        tune_scores=compute_brand_scores(tune_answers.brands)[tune.truth.brands != UNLABELLED],
        scores=compute_brand_scores(answers.brands)[known],
        right=(answers.brands.labels == tested.truth.brands)[known],
        num_unlabelled=int((~known).sum()),
    )
    no_brands = _never(BRAND_FIELD, promises.alpha_brand, 0.0, "the taxonomy lists no brand")
    return [*fields, brand if has_brands else no_brands]


def _never(name: str, alpha: float, delta: float, why: str) -> FieldGuarantee:
    return FieldGuarantee(
        name=name,
        alpha=alpha,
        delta=delta,
        threshold=None,
        num_listings=0,
        num_filled=0,
        num_errors=0,
        uncertified_reason=why,
    )


def _brand_fit(tune: _Listings, log_prior: tuple[float, ...]) -> tuple[Literal["mean", "max"], float]:
    """Mean or max over photos, whichever explains the tune listings better: a logo may show in one photo only."""
    known = tune.truth.brands >= 0
    brands = tune.truth.brands[known]
    best: tuple[float, Literal["mean", "max"], float] = (math.inf, "mean", 1.0)
    hows: tuple[Literal["mean", "max"], ...] = ("mean", "max")
    for how in hows:
        logits = fuse_logits(tune.brand_logits, tune.groups, how=how)[known]
        if len(logits) == 0:
            break
        if log_prior:
            logits = logits + np.asarray(log_prior)
        temperature = fit_temperature(logits, brands)
        likelihoods = softmax(logits / temperature)[np.arange(len(logits)), brands]
        loss = float(-np.log(np.maximum(likelihoods, 1e-12)).mean())
        if loss < best[0] - 1e-9:
            best = (loss, how, temperature)
    return best[1], best[2]


def _unknown_brand_threshold(tune: _Listings, taxonomy: Taxonomy, fitted: Calibration) -> float | None:
    """The least logit of a brand that is named, chosen on tune listings.

    Where these hold listings of other brands: what makes most brand answers right. Else what gives up few of the
    right ones.
    """
    answers = tune.answered(taxonomy, fitted).brands
    fused = fuse_logits(tune.brand_logits, tune.groups, how=fitted.brand_fusion)
    named = (answers.labels > 0) & (tune.truth.brands != UNLABELLED)
    logits = np.take_along_axis(fused, answers.labels[:, None], axis=1)[named, 0]
    right = (answers.labels == tune.truth.brands)[named]
    other = (tune.truth.brands == OTHER_BRAND)[named]
    if other.sum() >= _LEAST_OTHER_BRANDS:
        order = np.argsort(logits, kind="stable")
        # Below the i-th smallest logit: its i predecessors are answered 'none that I know'.
        num_right = np.concatenate([[0], np.cumsum(other[order])]) + np.concatenate(
            [np.cumsum(right[order][::-1])[::-1], [0]]
        )
        at = int(num_right.argmax())
        return float(logits[order][at]) if at < len(order) else float(np.nextafter(logits.max(), np.inf))
    return float(np.quantile(logits[right], _RIGHT_GIVEN_UP, method="lower")) if right.any() else None


def _is_tune(listing_id: str) -> bool:
    return hashlib.sha256(listing_id.encode()).digest()[0] % 2 == 0
