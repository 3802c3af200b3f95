import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.statistics.paired import (
    Difference,
    adjust_holm,
    bootstrap_difference,
    bound_small_sample,
    compute_mcnemar_p,
    count_differences,
)

EVERY = 1024  # 2 ** 10


@pytest.mark.parametrize(
    ("num_lost", "num_won", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / EVERY),
        (9, 1, 2 * (1 + 10) / EVERY),
        (2, 8, 2 * (1 + 10 + 45) / EVERY),
        (5, 5, 1),
        (4, 6, 2 * (1 + 10 + 45 + 120 + 210) / EVERY),
    ],
)
def test_mcnemar_by_hand(num_lost, num_won, p):
    assert compute_mcnemar_p(num_lost=num_lost, num_won=num_won) == pytest.approx(p)


def test_listings_that_both_predict_alike_do_not_count():
    right_a = np.array([True] * 90 + [True] + [False] * 9)
    right_b = np.array([True] * 90 + [False] + [True] * 9)
    counts = count_differences(right_a, right_b)
    assert (counts.num_listings, counts.num_right_a, counts.num_right_b) == (100, 91, 99)
    assert (counts.num_lost, counts.num_won) == (1, 9)
    assert counts.change == pytest.approx(0.08)
    assert counts.p_value == pytest.approx(22 / EVERY)


def test_no_listings_have_no_figures():
    counts = count_differences(np.zeros(0, bool), np.zeros(0, bool))
    assert np.isnan([counts.accuracy_a, counts.accuracy_b, counts.change, *bootstrap_difference(counts, seed=0)]).all()
    assert counts.p_value == 1


def sample_pairs(rng, *, num, lost, won):
    """StepResults of two models on listings that are lost and won with these probabilities."""
    drawn = rng.choice(3, size=num, p=[lost, won, 1 - lost - won])
    agreed = rng.random(num) < 0.8
    return np.where(drawn == 2, agreed, drawn == 0), np.where(drawn == 2, agreed, drawn == 1)


def measure_interval_coverage(interval, *, num, lost, won, simulations):
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(simulations):
        low, high = interval(count_differences(*sample_pairs(rng, num=num, lost=lost, won=won)))
        covered += low <= won - lost <= high
    return covered / simulations


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.05), (0.03, 0.10), (0.2, 0.1)])
def test_the_bootstrap_interval_covers_the_true_difference(lost, won):
    covered = measure_interval_coverage(
        lambda counts: bootstrap_difference(counts, seed=0), num=400, lost=lost, won=won, simulations=600
    )
    assert 0.92 <= covered <= 0.98  # three standard errors about 95 %


@pytest.mark.parametrize(("num", "lost", "won"), [(5, 0.1, 0.1), (10, 0.05, 0.2), (30, 0.0, 0.02)])
def test_the_interval_for_few_listings_covers_the_true_difference(num, lost, won):
    assert measure_interval_coverage(bound_small_sample, num=num, lost=lost, won=won, simulations=2000) >= 0.935


def test_an_interval_of_few_listings_by_hand():
    same = Difference(num_listings=5, num_right_a=5, num_right_b=5, num_lost=0, num_won=0)
    half = 1.959964 * np.sqrt((2 / 7) / 7)
    assert bound_small_sample(same) == pytest.approx((-half, half))
    assert bootstrap_difference(same, seed=0) == (0, 0)  # which is why there are two


def test_drawing_counts_is_drawing_listings():
    right_a, right_b = sample_pairs(np.random.default_rng(3), num=200, lost=0.1, won=0.2)
    rows = np.random.default_rng(0).integers(200, size=(10_000, 200))
    changes = (right_b[rows].astype(int) - right_a[rows]).mean(axis=1)
    expected = np.quantile(changes, [0.025, 0.975])
    assert bootstrap_difference(count_differences(right_a, right_b), seed=1) == pytest.approx(expected, abs=0.006)


def test_the_seed_decides_the_interval():
    counts = count_differences(*sample_pairs(np.random.default_rng(3), num=997, lost=0.1, won=0.2))
    assert bootstrap_difference(counts, seed=1) == bootstrap_difference(counts, seed=1)


def test_holm_by_hand():
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert adjust_holm([0.9, 0.8]) == (1, 1)
    assert adjust_holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_never_makes_a_value_smaller(p_values):
    adjusted = np.array(adjust_holm(p_values))
    assert (adjusted >= np.array(p_values)).all()
    assert (adjusted <= np.minimum(1, np.array(p_values) * len(p_values))).all()
    assert (np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0).all()
