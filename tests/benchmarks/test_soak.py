"""The slope of memory over time, and its interval."""

import numpy as np
import pytest
from scipy.signal import lfilter

from benchmarks.soak import compute_slope

SECONDS = np.arange(0, 7200, 5.0)


def compute(mb):
    return compute_slope(list(zip(SECONDS[: len(mb)], mb, strict=True)), after_s=300)


def test_a_line_is_found_in_percent_of_the_mean_and_an_hour():
    slope = compute(1000 + 10 * (SECONDS - SECONDS[SECONDS >= 300].mean()) / 3600)
    assert [slope.low, slope.estimate, slope.high] == pytest.approx([1.0, 1.0, 1.0])


def test_what_happens_at_the_start_does_not_count():
    assert compute(np.where(SECONDS < 300, 500.0, 1000.0)).estimate == pytest.approx(0)


@pytest.mark.parametrize("minutes", [20, 30, 120])
def test_intervals_hold_for_memory_that_moves_slowly(minutes):
    """Samples in a row are much alike: an interval that takes them as independent is several times too short."""
    num_samples = minutes * 12
    steps = np.random.default_rng(0).normal(size=(400, num_samples))
    noise = lfilter([1], [1, -0.95], steps)
    slopes = [compute(1000 + row) for row in noise]
    assert sum(slope.low <= 0 <= slope.high for slope in slopes) >= 0.9 * 400


def test_a_run_that_is_too_short_is_told():
    with pytest.raises(ValueError, match="2 samples after 300 s are too few for a slope; use more --minutes"):
        compute(np.ones(62))
