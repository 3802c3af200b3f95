"""Guarantees that grow with outcomes: valid at every look, monotone, and fair to what is not known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from training.calibration.certify import certify
from training.calibration.growing import grow_guarantee
from training.calibration.threshold_tests import FieldTests, build_grid, count_required
from training.outcomes.hidden_listings import HiddenListings
from vision.calibration import FieldGuarantee, OutcomeEvidence
from vision.manifest import UNLABELLED, Labels
from vision.prediction.listings import Brands, Paths
from vision.taxonomy import OTHER_BRAND

TAXONOMY = create_small_taxonomy()
GALA, FUJI, APPLE = (TAXONOMY.node_index[name] for name in ("gala", "fuji", "apple"))
PATH = [TAXONOMY.node_index[name] for name in ("fruit", "apple", "gala")]
GRID = (0.9, 0.8, 0.7, 0.6, 0.5)


def create_listings(scores, chosen, *, num_fillable=3, brand_labels=None, chosen_brands=None):
    """One listing a second, suggested gala with one score at each depth; `chosen` has nodes."""
    num = len(scores)
    return HiddenListings(
        first_us=np.arange(num) * 1_000_000,
        paths=Paths(np.tile(PATH, (num, 1)), np.tile(np.asarray(scores)[:, None], 3), np.full(num, num_fillable)),
        brands=Brands(
            np.ones(num, int) if brand_labels is None else np.asarray(brand_labels),
            np.asarray(scores, float),
            np.ones(num, bool),
        ),
        labels=Labels(
            category_nodes=np.asarray(chosen),
            brands=np.full(num, UNLABELLED) if chosen_brands is None else np.asarray(chosen_brands),
        ),
        num_other={},
    )


def take(listings, first, num):
    rows = slice(first, first + num)
    return replace(
        listings,
        first_us=listings.first_us[rows],
        paths=Paths(*(part[rows] for part in listings.paths)),
        brands=Brands(*(part[rows] for part in listings.brands)),
        labels=Labels(category_nodes=listings.labels.category_nodes[rows], brands=listings.labels.brands[rows]),
    )


def create_field(name="category_path", *, threshold=0.9, grid=GRID, delta=0.05):
    return FieldGuarantee(
        name=name,
        alpha=0.05,
        delta=0.02,
        threshold=threshold,
        num_listings=300,
        num_filled=0 if threshold is None else 150,
        num_errors=0,
        grid=grid,
        uncertified_reason="too few" if threshold is None else "",
        outcomes=OutcomeEvidence(delta=delta, wait_days=14),
    )


def grow(field, listings):
    return grow_guarantee(field, listings, TAXONOMY, until_us=len(listings.first_us) * 1_000_000)


def approximate(test):
    return replace(
        test,
        certifying=pytest.approx(test.certifying),
        withdrawing=pytest.approx(test.withdrawing),
        stakes=pytest.approx(test.stakes),
    )


def draw(rng, num, error_share):
    scores = rng.uniform(0.45, 1.0, num)
    return create_listings(scores, np.where(rng.random(num) < error_share, FUJI, GALA))


def test_right_outcomes_certify_looser_thresholds_and_both_evidences_are_carried():
    field = create_field()
    listings = create_listings(np.repeat([0.95, 0.65], 150), np.full(300, GALA))
    grown = grow(field, listings)
    assert grown.threshold == 0.5
    assert grown.delta == pytest.approx(0.07)
    assert (grown.num_listings, grown.num_filled, grown.num_errors, grown.bound) == (300, 300, 0, 0.05)
    assert [depth.num_filled for depth in grown.depths] == [300, 300, 300]
    assert grown.first == replace(field, outcomes=None)
    assert grown.decided_by_outcomes


def test_thresholds_are_certified_in_their_order_without_a_gap():
    """Those that fill enough right listings wait for the stricter ones, which fill too few."""
    field = create_field(threshold=None)
    grown = grow(field, create_listings(np.full(300, 0.65), np.full(300, GALA)))
    assert grown.threshold is None
    assert grown.uncertified_reason == "too few"
    assert grown.outcomes.tests[3].certifying > 20 > grown.outcomes.tests[0].certifying == 1


def test_a_share_of_alpha_is_rarely_certified_however_often_it_is_looked_at():
    rng, num_draws, wrong = np.random.default_rng(0), 1000, 0
    for _ in range(num_draws):
        field, listings = create_field(), draw(rng, 600, 0.05)
        for num in range(0, 600, 100):
            field = grow(field, take(listings, num, 100))
        wrong += field.threshold is not None and field.threshold < 0.9
    assert wrong / num_draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_draws)


def test_a_good_model_fills_more_and_never_less_with_more_outcomes():
    rng, reached = np.random.default_rng(1), 0
    for _ in range(30):
        field, listings, before = create_field(), draw(rng, 800, 0.01), 0.9
        for num in range(0, 800, 100):
            field = grow(field, take(listings, num, 100))
            assert field.threshold <= before
            before = field.threshold
        reached += before == 0.5
        # Reading all at once certifies what reading often does.
        assert grow(create_field(), listings).outcomes.tests[2] == approximate(field.outcomes.tests[2])
    assert reached >= 27


def sample_scores(rng, count):
    """Scores of an over-confident model, and whether each answer is right."""
    truth = rng.beta(8, 0.7, count)
    return truth**0.3, rng.random(count) < truth


def certify_brand(rng, num_listings, delta):
    tune_scores, _ = sample_scores(rng, 200)
    scores, right = sample_scores(rng, num_listings)
    grid = build_grid(tune_scores, num_listings=num_listings, required=count_required(0.05, delta))
    (field,) = certify(
        [FieldTests.from_scores("brand", alpha=0.05, grid=grid, scores=scores, right=right)], delta=delta
    )
    return field


def test_calibration_listings_and_outcomes_together_break_the_guarantee_at_most_delta_of_the_time():
    rng, num_draws, broken, gained = np.random.default_rng(5), 1000, 0, 0
    scores, right = sample_scores(rng, 1_000_000)
    order = np.argsort(scores)
    # Of the whole population, the share that is wrong among those that score at least as much as each.
    wrong_shares = np.cumsum(~right[order][::-1]) / np.arange(1, len(scores) + 1)

    def measure_error(threshold):
        num_filled = len(scores) - np.searchsorted(scores, threshold, sorter=order)
        return wrong_shares[num_filled - 1] if num_filled else 0.0

    for _ in range(num_draws):
        first = certify_brand(rng, 300, 0.03)
        field, thresholds = replace(first, outcomes=OutcomeEvidence(delta=0.02, wait_days=14)), [first.threshold]
        hidden, hidden_right = sample_scores(rng, 1500)
        listings = create_listings(hidden, np.full(1500, GALA), chosen_brands=np.where(hidden_right, 1, 2))
        for num in range(0, 1500, 300):
            field = grow(field, take(listings, num, 300))
            thresholds.append(field.threshold)
        broken += any(measure_error(one) > 0.05 for one in set(thresholds) - {None})
        gained += field.threshold is not None and (first.threshold is None or field.threshold < first.threshold)
    assert broken / num_draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_draws)
    assert gained / num_draws > 0.75


def test_wrong_outcomes_withdraw_a_threshold_and_all_looser_ones_for_ever():
    right = create_listings(np.repeat([0.95, 0.75], 300), np.full(600, GALA))
    grown = grow(create_field(), right)
    assert grown.threshold == 0.5
    withdrawn = grow(grown, create_listings(np.full(60, 0.75), np.full(60, FUJI)))
    assert withdrawn.threshold == 0.8
    assert withdrawn.outcomes.tests[2].withdrawing >= 20
    assert grow(withdrawn, create_listings(np.full(900, 0.75), np.full(900, GALA))).threshold == 0.8


def test_a_field_whose_strictest_threshold_is_withdrawn_is_never_filled():
    withdrawn = grow(create_field(), create_listings(np.full(60, 0.95), np.full(60, FUJI)))
    assert withdrawn.threshold is None
    assert withdrawn.uncertified_reason == (
        "withdrawn by outcomes: of 60 hidden listings the strictest threshold, 0.900, fills 60, 60 of them wrongly"
    )
    assert withdrawn.coverage == 0
    assert withdrawn.first.threshold == 0.9


@pytest.mark.parametrize("chosen", [UNLABELLED, APPLE])
def test_an_outcome_that_does_not_decide_certifies_nothing_and_withdraws_nothing(chosen):
    """A listing without outcome, and one whose seller chose a category above the deepest filled one."""
    grown = grow(create_field(), create_listings(np.full(200, 0.95), np.full(200, chosen)))
    assert grown.threshold == 0.9
    test = grown.outcomes.tests[0]
    assert (test.num_filled, test.num_errors, test.num_unknown) == (200, 200, 200)
    assert test.certifying == test.withdrawing == 1


def test_what_no_threshold_fills_is_no_evidence():
    grown = grow(create_field(), create_listings(np.full(200, 0.65), np.full(200, GALA), num_fillable=0))
    assert [test.num_filled for test in grown.outcomes.tests] == [0] * 5
    assert grown.threshold == 0.9


def test_brands_grow_by_themselves_down_to_what_is_offered():
    field = create_field("brand", grid=(0.9, 0.6, 0.4))
    right = create_listings(np.full(200, 0.95), np.full(200, FUJI), chosen_brands=np.ones(200, int))
    grown = grow(field, right)
    assert [test.threshold for test in grown.outcomes.tests] == [0.9, 0.6]
    assert grown.threshold == 0.6
    others = np.where(np.arange(200) % 2, 2, OTHER_BRAND)
    wrong = create_listings(np.full(200, 0.95), np.full(200, GALA), chosen_brands=others)
    assert grow(field, wrong).threshold is None
