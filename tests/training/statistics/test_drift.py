import numpy as np
import pytest

from training.statistics.drift import build_histogram, compute_chance_level, compute_population_stability


def test_stability_is_zero_for_alike_and_large_for_shifted_values():
    random = np.random.default_rng(5)
    reference = random.normal(size=5000)
    histogram = build_histogram(reference)
    assert sum(histogram.shares) == pytest.approx(1)
    assert np.allclose(histogram.shares, 0.1, atol=0.001)
    assert compute_population_stability(histogram, random.normal(size=5000)) < 0.02
    assert compute_population_stability(histogram, random.normal(1.0, 1.0, 5000)) > 0.25
    assert compute_population_stability(histogram, np.array([])) == 0.0
    assert compute_population_stability(build_histogram([]), reference) == 0.0
    # One value for nearly all: its bins fall together.
    alike = build_histogram([1.0] * 95 + [2.0] * 5)
    assert alike.shares == (0.0, 1.0)
    assert compute_population_stability(alike, np.array([1.0] * 100)) < 0.01
    assert compute_population_stability(alike, np.array([0.0] * 100)) > 0.25


def test_without_drift_the_chance_level_is_seldom_exceeded_and_with_it_is():
    rng = np.random.default_rng(0)
    histogram = build_histogram(rng.normal(size=2000))
    level = compute_chance_level(histogram, 60)
    assert level > 0.25  # the customary mark of large drift is chance for 60 listings
    same = [compute_population_stability(histogram, rng.normal(size=60)) > level for _ in range(400)]
    moved = [compute_population_stability(histogram, rng.normal(1, size=60)) > level for _ in range(50)]
    assert np.mean(same) <= 0.04
    assert all(moved)
    assert compute_chance_level(histogram, 0) == 0
