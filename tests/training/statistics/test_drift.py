import numpy as np
import pytest

from training.statistics.drift import build_histogram, compute_population_stability


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
