import math

import numpy as np
import pytest
from scipy.stats import binom

from tests.support.helpers import create_small_taxonomy
from tests.support.predictions import create_predictions
from training.calibration.certify import Guarantee, certify
from training.calibration.field_rows import FieldRows
from training.calibration.label_planner import (
    POWER,
    FieldForecast,
    ThresholdForecast,
    choose_thresholds,
    count_required_with_power,
    draw_listings,
    forecast_fields,
    forecast_thresholds,
)
from training.calibration.splits import CalibrationListings
from training.calibration.threshold_tests import FieldTests, count_required
from vision.calibration import PATH_FIELD, Calibration
from vision.errors import ManifestError

ALPHA, DELTA = 0.05, 0.05
TAXONOMY = create_small_taxonomy()


def create_rows(num_listings, *, wrong=()):
    """Listings of a model that is surer of each than of the one before; `wrong` are those that it is wrong about."""
    leaves = np.arange(num_listings) % 2
    logits = np.zeros((num_listings, 4))
    logits[np.arange(num_listings), leaves] = np.linspace(2, 6, num_listings)
    truth = leaves.copy()
    truth[list(wrong)] = 3 - leaves[list(wrong)]
    listings = CalibrationListings.from_predictions(create_predictions(logits, truth), TAXONOMY)
    return FieldRows(listings, TAXONOMY, Calibration(certifies={}))


def forecast(threshold, num_needed, *, filled=(True,)):
    return ThresholdForecast(
        threshold=threshold, filled=np.array(filled), num_known=100, num_errors=1, num_needed=num_needed
    )


def field(name, *thresholds):
    return FieldForecast(name=name, alpha=ALPHA, num_errorless=59, thresholds=thresholds)


@pytest.mark.parametrize("error_share", [0.0, 0.01, 0.02])
def test_the_least_number_of_labels_passes_with_the_power_and_no_lower_one_does(error_share):
    def compute_power(num):
        # The probability of the numbers of errors with which a test of so many listings passes.
        num_errors = np.arange(num + 1)
        return binom.pmf(num_errors, num, error_share)[binom.cdf(num_errors, num, ALPHA) <= DELTA].sum()

    num = count_required_with_power(error_share, ALPHA, DELTA)
    assert compute_power(num) >= POWER
    assert all(compute_power(fewer) < POWER for fewer in range(1, num))


def test_without_errors_the_errorless_number_is_enough_and_beyond_alpha_none_is():
    assert count_required_with_power(0.0, ALPHA, DELTA) == count_required(ALPHA, DELTA)
    assert count_required_with_power(ALPHA, ALPHA, DELTA) is None
    assert count_required_with_power(0.0499, ALPHA, DELTA) is None


def test_a_forecast_counts_errors_above_each_threshold():
    # The least sure tenth is wrong.
    rows = create_rows(200, wrong=range(20))
    (path, *others) = forecast_fields(rows, TAXONOMY, Guarantee(), num_unlabelled=1000)
    assert path.name == PATH_FIELD
    strictest, loosest = path.thresholds[0], path.thresholds[-1]
    assert strictest.num_errors == 0
    assert strictest.num_needed is not None
    assert (loosest.num_errors, loosest.num_needed) == (20, None)
    assert [step.filled.sum() for step in path.thresholds] == [step.num_known for step in path.thresholds]
    assert all(not other.thresholds for other in others)  # no brand is labelled


def test_the_loosest_threshold_within_the_budget_is_chosen():
    strict, middle, loose = forecast(0.9, 100), forecast(0.8, 300), forecast(0.7, None)
    assert choose_thresholds([field("brand", strict, middle, loose)], num_labels=300) == {"brand": middle}
    assert choose_thresholds([field("brand", strict, middle, loose)], num_labels=299) == {"brand": strict}
    assert choose_thresholds([field("brand", strict, middle, loose)], num_labels=99) == {}


def test_fields_that_fill_the_same_listings_share_labels_and_others_do_not():
    first_half, second_half = (True, False), (False, True)
    path = field("category_path", forecast(0.9, 100, filled=first_half), forecast(0.8, 200, filled=first_half))
    same = field("brand", forecast(0.9, 100, filled=first_half), forecast(0.8, 200, filled=first_half))
    apart = field("brand", forecast(0.9, 100, filled=second_half), forecast(0.8, 200, filled=second_half))

    def choose(other, num_labels):
        return {name: step.num_needed for name, step in choose_thresholds([path, other], num_labels=num_labels).items()}

    assert choose(same, 200) == {"category_path": 200, "brand": 200}
    assert choose(apart, 200) == {"category_path": 100, "brand": 100}
    assert choose(apart, 400) == {"category_path": 200, "brand": 200}
    # Too few for both: the field that needs less keeps them.
    costly = field("brand", forecast(0.9, 150, filled=second_half))
    assert choose(costly, 200) == {"category_path": 200}


def test_listings_are_drawn_uniformly_among_those_that_the_threshold_fills():
    rows = create_rows(100)
    ids = [f"l{number}" for number in range(100)]
    scores = rows.compute_scores(PATH_FIELD)
    step = forecast(float(np.sort(scores)[60]), 10)
    fillable = {name for name, score in zip(ids, scores, strict=True) if score >= step.threshold}
    times_drawn = dict.fromkeys(fillable, 0)
    for seed in range(400):
        (planned,) = draw_listings({PATH_FIELD: step}, rows, ids, seed=seed)
        assert planned.coverage == len(fillable) / 100
        assert len(set(planned.listing_ids)) == 10
        for name in planned.listing_ids:
            times_drawn[name] += 1
    expected = 400 * 10 / len(fillable)
    assert all(abs(times - expected) < 5 * math.sqrt(expected) for times in times_drawn.values())
    with pytest.raises(ManifestError, match=r"fills 40 of 100 unlabelled listings, and 41 are to be labelled"):
        draw_listings({PATH_FIELD: forecast(step.threshold, 41)}, rows, ids, seed=0)


def test_planned_labels_break_the_guarantee_when_used_for_looser_thresholds_and_not_when_used_as_planned():
    """1,000 draws of labelled listings and of new labels from a population whose error share is known."""
    rng = np.random.default_rng(0)
    thresholds = tuple(np.linspace(0.9, 0.3, 4).tolist())

    def draw(num, *, above=0.0):
        scores = rng.uniform(above, 1, num)
        return scores, rng.random(num) >= (1 - scores) / 5

    def test(grid, scores, right):
        tests = FieldTests.from_scores("brand", alpha=ALPHA, grid=grid, scores=scores, right=right)
        return certify([tests], delta=DELTA)[0].threshold

    num_planned = num_filled = broken_as_planned = broken_naively = 0
    for _ in range(1000):
        scores, right = draw(300)
        labelled = FieldTests.from_scores("brand", alpha=ALPHA, grid=thresholds, scores=scores, right=right)
        steps = forecast_thresholds(labelled, scores, DELTA)
        chosen = choose_thresholds([field("brand", *steps)], num_labels=600).get("brand")
        if chosen is None:
            continue
        num_planned += 1
        new = draw(chosen.num_needed, above=chosen.threshold)
        as_planned, naive = test((chosen.threshold,), *new), test((chosen.threshold, thresholds[-1]), *new)
        num_filled += as_planned is not None
        # Between a score and 1, (1 - score) / 10 of the predictions are wrong.
        broken_as_planned += as_planned is not None and (1 - as_planned) / 10 > ALPHA
        broken_naively += naive is not None and (1 - naive) / 10 > ALPHA
    assert num_planned > 800
    assert num_filled > 400  # it is not kept by never filling
    assert broken_as_planned / 1000 <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / 1000)
    assert broken_naively / 1000 > 0.4
