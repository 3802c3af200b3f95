"""Evidence by betting: valid at every look, strong enough to be useful, and the formula of ten lines of Python."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from training.calibration.threshold_tests import count_required
from training.statistics.betting import compute_certifying_wealth, compute_withdrawing_wealth

ALPHA, DELTA = 0.05, 0.05
ENOUGH = math.log(1 / DELTA)
DRAWS, LOOKS = 2000, 1500


def compute_withdrawing(errors, *, alpha):
    return compute_withdrawing_wealth(errors, alpha=alpha)[0]


def draw_errors(share, seed, num=LOOKS):
    return np.random.default_rng(seed).random((DRAWS, num)) < share


def count_reached(wealth, draws):
    return sum(wealth(errors, alpha=ALPHA).max() >= ENOUGH for errors in draws)


def test_a_share_of_exactly_alpha_is_rarely_certified_or_withdrawn_at_any_of_1500_looks():
    """3 standard errors of the share over the draws are 0.015."""
    draws = draw_errors(ALPHA, 0)
    for wealth in (compute_certifying_wealth, compute_withdrawing):
        assert count_reached(wealth, draws) / DRAWS <= DELTA + 0.015
    # The exact test, made at every look.
    passed = [(binom.cdf(np.cumsum(errors), np.arange(1, LOOKS + 1), ALPHA) <= DELTA).any() for errors in draws[:300]]
    assert np.mean(passed) > 2 * DELTA


def test_a_share_just_above_alpha_is_certified_more_rarely_still():
    assert count_reached(compute_certifying_wealth, draw_errors(0.07, 1)) / DRAWS <= DELTA / 2


def test_good_shares_are_certified_and_bad_ones_withdrawn():
    assert count_reached(compute_certifying_wealth, draw_errors(0.01, 2, 400)) / DRAWS >= 0.95
    assert count_reached(compute_withdrawing, draw_errors(0.15, 3, 400)) / DRAWS >= 0.95


def test_outcomes_without_errors_need_up_to_half_as_many_more_as_an_exact_test():
    wealth = compute_certifying_wealth(np.zeros(400), alpha=ALPHA)
    assert 1 <= (int((wealth < ENOUGH).sum()) + 1) / count_required(ALPHA, DELTA) <= 1.5


def test_a_single_error_does_not_end_the_evidence():
    errors = np.zeros(200)
    errors[0] = 1
    assert compute_certifying_wealth(errors, alpha=ALPHA)[-1] >= ENOUGH


def test_a_change_for_the_worse_is_seen_after_a_long_time_without_errors():
    errors = np.zeros(5300)
    errors[5000:] = np.random.default_rng(4).random(300) < 0.2
    reached = np.flatnonzero(compute_withdrawing(errors, alpha=ALPHA) >= ENOUGH)
    assert 5000 < reached[0] < 5300


@pytest.mark.parametrize("wealth", [compute_certifying_wealth, compute_withdrawing])
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.sampled_from([0.02, 0.05, 0.3]))
def test_wealth_is_fair_and_predictable(wealth, errors, alpha):
    """The next outcome, wrong with probability alpha, leaves the expected wealth as it is, whatever came before."""
    before = wealth(errors, alpha=alpha)
    right, wrong = (wealth([*errors, error], alpha=alpha) for error in (False, True))
    assert np.allclose(right[:-1], before)
    assert np.exp(np.logaddexp(right[-1] + math.log(1 - alpha), wrong[-1] + math.log(alpha)) - before[-1]) == (
        pytest.approx(1)
    )


def test_the_withdrawing_wealth_is_that_of_its_formula():
    errors, bets = [0, 1, 0, 1, 1], [0.02 / ALPHA, 0.05 / ALPHA, 0.1 / ALPHA, 0.2 / ALPHA, 0.4 / ALPHA]
    expected = 1 / 6  # the stakes for later starts
    for bet in bets:
        for start in range(1, 6):
            factors = [1 + bet * (error - ALPHA) for error in errors[start - 1 :]]
            expected += math.prod(factors) / (start * (start + 1)) / len(bets)
    assert math.exp(compute_withdrawing(errors, alpha=ALPHA)[-1]) == pytest.approx(expected)


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 60))
def test_wealth_goes_on_where_it_stood(errors, cut):
    early, late = np.array(errors[:cut], bool), np.array(errors[cut:], bool)
    certifying = compute_certifying_wealth(errors, alpha=ALPHA)
    continued = compute_certifying_wealth(late, alpha=ALPHA, before=(len(early), int(early.sum())))
    assert np.allclose(continued, certifying[len(early) :])
    withdrawing, stakes = compute_withdrawing_wealth(errors, alpha=ALPHA)
    _, kept = compute_withdrawing_wealth(early, alpha=ALPHA)
    continued, later = compute_withdrawing_wealth(late, alpha=ALPHA, num_before=len(early), stakes=kept)
    assert np.allclose(continued, withdrawing[len(early) :])
    assert np.allclose(later, stakes)
