import numpy as np
import pytest

from training.calibration.threshold_tests import FieldTests, ThresholdTest, build_grid, count_required


@pytest.mark.parametrize(("alpha", "delta", "required"), [(0.05, 0.0125, 86), (0.05, 0.025, 72), (0.02, 0.05, 149)])
def test_an_errorless_test_passes_from_the_required_number_on(alpha, delta, required):
    assert count_required(alpha, delta) == required
    assert ThresholdTest(0.5, required, 0).passes(alpha, delta)
    assert not ThresholdTest(0.5, required - 1, 0).passes(alpha, delta)
    assert not ThresholdTest(0.5, required, 1).passes(alpha, delta)


def test_a_grid_falls_and_begins_where_a_test_can_pass():
    scores = np.append(np.linspace(0, 1, 1000), np.full(1000, -np.inf))
    grid = build_grid(scores, num_listings=1000, required=100)
    assert list(grid) == sorted(grid, reverse=True)
    assert (scores >= grid[0]).mean() >= 0.3
    assert grid[-1] == 0
    assert build_grid(scores, num_listings=0, required=100) == ()
    assert build_grid(np.full(9, -np.inf), num_listings=1000, required=100) == ()


def test_the_grid_of_the_level_above_is_part_of_a_grid_where_it_is_not_stricter():
    grid = build_grid(np.linspace(0, 0.5, 100), num_listings=1000, required=50, thresholds_above=(0.9, 0.123))
    assert 0.123 in grid
    assert 0.9 not in grid


def test_what_cannot_be_filled_is_counted_as_a_listing_alone():
    scores = np.array([0.9, 0.8, -np.inf])
    tests = FieldTests.from_scores(
        "x", alpha=0.05, grid=(0.85, 0.1), scores=scores, right=np.array([True, False, True])
    )
    assert [(test.num_filled, test.num_errors) for test in tests.tests] == [(1, 0), (2, 1)]
    assert tests.num_listings == 3
