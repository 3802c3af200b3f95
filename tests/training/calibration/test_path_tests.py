import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from training.calibration.certify import certify
from training.calibration.path_tests import PathRows
from training.calibration.threshold_tests import count_required
from training.evaluation.ground_truth import build_ground_truth
from vision.manifest import Labels
from vision.prediction.listings import predict_paths

ALPHA, DELTA = 0.05, 0.025


def create_rows(scores, right, known=None):
    scores, right = np.asarray(scores, float), np.asarray(right, bool)
    known = np.isfinite(scores) if known is None else np.asarray(known, bool)
    return PathRows(scores, known, right, tuple(range(1, scores.shape[1] + 1)), 0)


def test_a_path_is_wrong_where_its_deepest_filled_category_is():
    rows = create_rows([[0.9, 0.8], [0.9, 0.3], [0.9, -np.inf]], [[1, 0], [1, 0], [1, 0]])
    (strict, loose) = rows.build_tests(ALPHA, (0.5, 0.2)).tests
    assert (strict.num_filled, strict.num_errors) == (3, 1)
    assert (loose.num_filled, loose.num_errors) == (3, 2)
    assert [(d.depth, d.num_listings, d.num_filled, d.num_errors) for d in rows.count_depths(0.5)] == [
        (1, 3, 3, 0),
        (2, 2, 1, 1),
    ]


def test_a_truth_that_is_an_inner_node_makes_a_fill_below_it_an_error_and_its_number_is_known():
    taxonomy = create_small_taxonomy()
    leaves = np.array([[0.9, 0.1, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0]])
    labels = Labels(category_nodes=np.array([taxonomy.node_index["apple"]] * 2 + [-1]), brands=np.full(3, -1))
    rows = PathRows.from_paths(predict_paths(leaves, taxonomy), build_ground_truth(labels, taxonomy), taxonomy)
    assert rows.num_unlabelled == 1
    (test,) = rows.build_tests(ALPHA, (0.8,)).tests
    assert (test.num_filled, test.num_errors) == (2, 1)
    assert rows.count_below_truth(0.8) == 1
    assert rows.count_below_truth(0.95) == 0


def sample_population(rng, count):
    """Paths of three depths of an over-confident model: scores, and whether each step is right."""
    steps = rng.beta(10, 0.25, (count, 3))
    right = np.logical_and.accumulate(rng.random((count, 3)) < steps, axis=1)
    scores = np.minimum.accumulate(np.cumprod(steps, axis=1) ** 0.6, axis=1)
    return create_rows(scores, right)


def compute_true_risk(population, threshold):
    test = population.build_tests(ALPHA, (threshold,)).tests[0]
    return test.num_errors / max(1, test.num_filled)


@pytest.mark.parametrize("num_listings", [296, 1500])
def test_the_path_guarantee_is_broken_at_most_delta_of_the_time(num_listings):
    rng = np.random.default_rng(0)
    population = sample_population(rng, 50_000)
    broken = filled = 0
    num_tune = num_listings // 5
    for _ in range(1000):
        tune, tested = (sample_population(rng, n) for n in (num_tune, num_listings - num_tune))
        grid = tune.build_grid(num_listings=len(tested.scores), required=count_required(ALPHA, DELTA))
        (field,) = certify([tested.build_tests(ALPHA, grid)], delta=DELTA)
        if field.threshold is not None:
            filled += 1
            broken += compute_true_risk(population, field.threshold) > ALPHA
    assert filled > 600  # it is not kept by never filling
    assert broken / 1000 <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 1000)


def test_the_threshold_at_which_the_calibration_paths_reach_the_precision_breaks_it_often():
    """Why the exact test is there: what everyone does instead."""
    rng = np.random.default_rng(1)
    population = sample_population(rng, 50_000)
    broken = 0
    for _ in range(300):
        tested = sample_population(rng, 296)
        thresholds = np.quantile(tested.scores, np.linspace(1, 0, 60))
        tests = tested.build_tests(ALPHA, tuple(thresholds)).tests
        reached = [t.threshold for t in tests if t.num_filled and t.num_errors / t.num_filled <= ALPHA]
        broken += compute_true_risk(population, reached[-1]) > ALPHA
    assert broken / 300 > 0.3


def test_a_grid_begins_where_the_first_depth_can_pass_and_ends_where_everything_is_filled():
    rows = sample_population(np.random.default_rng(2), 500)
    grid = rows.build_grid(num_listings=400, required=72)
    assert list(grid) == sorted(grid, reverse=True)
    assert 30 < len(grid) <= 41
    assert (rows.scores[:, 0] >= grid[0]).mean() >= 0.3
    assert grid[-1] == rows.scores.min()
    nothing = create_rows(np.full((5, 2), -np.inf), np.zeros((5, 2)))
    assert nothing.build_grid(num_listings=400, required=72) == ()
