"""The sequential statistics against simulations and references."""

import numpy as np
from scipy import stats

from training.statistics.sequential import (
    SAMPLE_RATIO_ALPHA,
    bound_difference,
    bound_mean,
    bound_paired_difference,
    compute_sample_ratio_p_value,
    is_guarantee_plausible,
)


def test_a_mean_leaves_its_confidence_sequence_in_fewer_than_one_of_twenty_experiments():
    random, missed = np.random.default_rng(0), 0
    for _ in range(300):
        low, high = bound_mean(random.random(2000) < 0.8)
        missed += bool(((low > 0.8) | (high < 0.8)).any())  # looked at after every value
    assert missed <= 0.05 * 300


def test_daily_looks_at_two_equal_versions_give_a_false_alarm_in_fewer_than_one_of_twenty_experiments():
    random, alarms = np.random.default_rng(1), 0
    for _ in range(200):
        a, b = random.random((2, 3000)) < 0.7
        looks = [bound_difference(a[:n], b[:n]) for n in range(100, 3001, 100)]
        alarms += any(low > 0 or high < 0 for low, high in looks)
    assert alarms <= 0.05 * 200


def test_a_real_difference_is_found_and_its_bounds_hold_it():
    random = np.random.default_rng(2)
    found = bound_difference(random.random(6000) < 0.70, random.random(6000) < 0.80)
    assert 0 < found.low < 0.10 < found.high
    assert bound_difference([], [1.0]).low < 0 < bound_difference([], [1.0]).high


def test_more_outcomes_never_widen_a_sequence():
    low, high = bound_mean(np.random.default_rng(3).random(500) < 0.5)
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()


def test_a_broken_split_is_found_and_a_fair_one_is_not():
    random = np.random.default_rng(4)
    shares = {"a": 0.95, "b": 0.05}
    fair = [random.binomial(20_000, 0.05) for _ in range(300)]
    values = [compute_sample_ratio_p_value({"a": 20_000 - n, "b": n}, shares) for n in fair]
    assert sum(value < SAMPLE_RATIO_ALPHA for value in values) <= 2
    assert compute_sample_ratio_p_value({"a": 19_200, "b": 800}, shares) < SAMPLE_RATIO_ALPHA
    assert compute_sample_ratio_p_value({}, shares) == 1.0


def test_a_guarantee_is_broken_only_beyond_doubt():
    assert is_guarantee_plausible(0, 0, precision=0.95) is None
    assert is_guarantee_plausible(45, 50, precision=0.95)  # 90 %, and 95 % is still possible
    assert not is_guarantee_plausible(450, 500, precision=0.95)
    assert is_guarantee_plausible(500, 500, precision=0.99)
    for right, num in ((450, 500), (95, 100)):
        upper = stats.binomtest(right, num, alternative="less").proportion_ci(0.95, method="exact").high
        assert is_guarantee_plausible(right, num, precision=upper - 1e-9)
        assert not is_guarantee_plausible(right, num, precision=upper + 1e-9)


def test_pairs_are_compared_with_each_other():
    random = np.random.default_rng(7)
    a = random.random(4000) < 0.7
    b = a | (random.random(4000) < 0.2)  # right wherever a is
    found = bound_paired_difference(a, b)
    assert 0 < found.low < float(b.mean() - a.mean()) < found.high
    apart = bound_difference(a, b)
    assert found.high - found.low < apart.high - apart.low
    assert bound_paired_difference([], []) == (-1, 1)
