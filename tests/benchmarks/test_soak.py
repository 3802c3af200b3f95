"""The slope of memory over time, and its interval."""

import numpy as np
import pytest

from benchmarks.soak import compute_slope

SECONDS = np.arange(0, 7200, 5.0)


def compute(mb):
    return compute_slope(list(zip(SECONDS, mb, strict=True)), after_s=300)


def test_a_line_is_found_in_percent_of_the_mean_and_an_hour():
    slope = compute(1000 + 10 * (SECONDS - SECONDS[SECONDS >= 300].mean()) / 3600)
    assert [slope.low, slope.estimate, slope.high] == pytest.approx([1.0, 1.0, 1.0])


def test_what_happens_at_the_start_does_not_count():
    assert compute(np.where(SECONDS < 300, 500.0, 1000.0)).estimate == pytest.approx(0)


def test_intervals_hold_for_memory_that_moves_slowly():
    """Samples in a row are much alike: an interval that takes them as independent is several times too short."""
    num_held = 0
    for seed in range(200):
        steps = np.random.default_rng(seed).normal(size=len(SECONDS))
        noise = np.zeros(len(SECONDS))
        for i in range(1, len(SECONDS)):
            noise[i] = 0.95 * noise[i - 1] + steps[i]
        slope = compute(1000 + noise)
        num_held += slope.low <= 0 <= slope.high
    assert num_held >= 0.85 * 200
