import math

import numpy as np
import pytest

from training.calibration.certify import Guarantee, certify
from training.calibration.threshold_tests import FieldTests, build_grid, count_required
from training.statistics.estimates import compute_clopper_pearson_upper
from vision.errors import ListingVisionError


def sample_scores(rng, count):
    """Scores of an over-confident model, and whether each answer is right."""
    truth = rng.beta(8, 0.7, count)
    return truth**0.3, rng.random(count) < truth


def error_share_by_threshold(scores, right):
    """A function from a threshold to the share of errors among the scores that reach it."""
    order = np.argsort(-scores)
    falling, shares = -scores[order], np.cumsum(~right[order]) / np.arange(1, len(scores) + 1)
    return lambda threshold: shares[np.searchsorted(falling, -threshold, side="right") - 1]


def field(rng, num_listings, alpha=0.05, delta=0.05):
    tune_scores, _ = sample_scores(rng, num_listings)
    scores, right = sample_scores(rng, num_listings)
    return certify_scores(tune_scores, scores, right, alpha=alpha, delta=delta)


def certify_scores(tune_scores, scores, right, *, alpha=0.05, delta=0.05):
    grid = build_grid(tune_scores, num_listings=len(scores), required=count_required(alpha, delta))
    (certified,) = certify(
        [FieldTests.from_scores("brand", alpha=alpha, grid=grid, scores=scores, right=right)], delta=delta
    )
    return certified


@pytest.mark.parametrize("num_listings", [500, 2500])
def test_the_guarantee_is_broken_at_most_delta_of_the_time(num_listings):
    rng = np.random.default_rng(0)
    measure_errors = error_share_by_threshold(*sample_scores(rng, 1_000_000))
    broken = filled = 0
    for _ in range(1000):
        threshold = field(rng, num_listings).threshold
        if threshold is not None:
            filled += 1
            broken += measure_errors(threshold) > 0.05
    assert filled > 500  # it is not kept by never filling
    # Three standard errors above delta.
    assert broken / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_the_threshold_where_calibration_precision_reaches_the_guarantee_breaks_it_half_the_time():
    """Why the exact test is there: what everyone does instead."""
    rng = np.random.default_rng(0)
    measure_errors = error_share_by_threshold(*sample_scores(rng, 1_000_000))
    broken = 0
    for _ in range(300):
        drawn, drawn_right = sample_scores(rng, 1000)
        order = np.argsort(-drawn)
        shares = np.cumsum(~drawn_right[order]) / np.arange(1, 1001)
        threshold = drawn[order][np.flatnonzero(shares <= 0.05)[-1]]
        broken += measure_errors(threshold) > 0.05
    assert 0.3 < broken / 300 < 0.7


def test_a_filled_field_carries_the_evidence_for_its_guarantee():
    certified = field(np.random.default_rng(8), 2500)
    assert certified.threshold in certified.grid
    assert list(certified.grid) == sorted(certified.grid, reverse=True)
    assert certified.bound <= certified.alpha
    assert certified.bound == compute_clopper_pearson_upper(certified.num_errors, certified.num_filled, alpha=0.05)
    assert certified.coverage == certified.num_filled / 2500


def test_no_tune_listing_says_that_there_was_nothing_to_test():
    scores = np.linspace(0.5, 1, 500)
    never = certify_scores(np.empty(0), scores, np.ones(500, bool))
    assert "there is no threshold to test" in never.uncertified_reason
    shifted = certify_scores(scores + 1, scores, np.ones(500, bool))
    assert "the strictest threshold tried, 1.851, fills none of 500 calibration listings" in shifted.uncertified_reason


def test_guarantees_are_probabilities():
    with pytest.raises(ListingVisionError, match=r"alpha_brand is 2; give a probability"):
        Guarantee(alpha_brand=2)


def test_too_few_listings_say_how_many_are_needed():
    never = field(np.random.default_rng(1), 40)
    assert never.threshold is None
    assert "40 calibration listings are too few: with no error at all, 59 filled ones" in never.uncertified_reason


def test_a_model_that_is_wrong_too_often_is_never_filled():
    rng = np.random.default_rng(2)
    scores = rng.random(1000)
    never = certify_scores(scores, scores, rng.random(1000) < 0.5)
    assert never.threshold is None
    assert "of them wrongly, which does not prove 95%; at this share of errors no number" in never.uncertified_reason


def test_where_more_listings_would_do_it_says_how_many():
    # 3 % of all are wrong whatever the score: 200 cannot prove 95 %, some more can.
    scores, right = np.linspace(0.5, 1, 200), np.arange(200) % 33 != 0
    never = certify_scores(scores, scores, right)
    assert never.threshold is None
    wanted = int(never.uncertified_reason.split("about ")[1].split(" ")[0])
    scores, right = np.linspace(0.5, 1, 2 * wanted), np.arange(2 * wanted) % 33 != 0
    assert certify_scores(scores, scores, right).threshold is not None


def test_what_cannot_be_filled_has_no_part_in_the_test():
    scores = np.concatenate([np.linspace(0.5, 1, 300), np.full(100, -np.inf)])
    right = np.isfinite(scores)
    certified = certify_scores(scores, scores, right)
    assert certified.num_filled == 300
    assert certified.num_listings == 400
    assert certified.threshold == 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"outcomes_delta": 0.05}, "outcomes_delta is 0.05; it is part of delta, 0.05"),
        ({"outcomes_delta": 0.01, "categories": "depth"}, "not each depth; leave outcomes_delta out"),
    ],
)
def test_only_a_part_of_delta_can_be_kept_for_outcomes_and_only_for_the_path(wrong, message):
    with pytest.raises(ListingVisionError, match=message):
        Guarantee(**wrong)


def test_a_perfect_model_is_filled_everywhere():
    scores = np.random.default_rng(3).random(300)
    always = certify_scores(scores, scores, np.ones(300, bool))
    assert always.num_filled == 300
    assert always.num_errors == 0
