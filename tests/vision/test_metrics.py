import math

import numpy as np

from vision.metrics import (
    compute_bootstrap_interval,
    compute_expected_calibration_error,
    compute_share_interval,
    compute_top_k_hits,
    compute_wilson_interval,
    resample_sums,
)


def test_top_k_counts_labelled_rows_only():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]])
    assert compute_top_k_hits(scores, np.array([1, 1, -1]), k=1).mean() == 0.5
    assert compute_top_k_hits(scores, np.array([1, 1, -1]), k=2).mean() == 1.0
    assert compute_top_k_hits(scores, np.array([-1, -1, -1]), k=1).size == 0


def test_ece_of_certain_and_of_wrongly_certain_answers():
    sure = np.ones(10)
    assert compute_expected_calibration_error(sure, np.ones(10, bool)) == 0
    assert compute_expected_calibration_error(sure, np.zeros(10, bool)) == 1
    assert math.isclose(compute_expected_calibration_error(np.full(10, 0.75), np.arange(10) < 5), 0.25)


def test_wilson_interval_of_a_textbook_case():
    low, high = compute_wilson_interval(45, 50)  # 0.9 of 50
    assert math.isclose(low, 0.7864, abs_tol=1e-3)
    assert math.isclose(high, 0.9565, abs_tol=1e-3)
    assert compute_wilson_interval(0, 0) == (0.0, 1.0)
    assert np.allclose(compute_wilson_interval(8, 10), (0.490, 0.943), atol=2e-3)


def test_top_k_hits_are_of_labelled_rows_in_order():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]])
    assert compute_top_k_hits(scores, np.array([2, -1, 2]), k=1).tolist() == [False, True]


def test_the_interval_of_independent_rows_is_wilsons():
    hits = np.arange(50) < 45
    assert (
        compute_share_interval(hits)
        == compute_share_interval(hits, np.arange(50) * 7)
        == compute_wilson_interval(45, 50)
    )
    assert compute_share_interval(np.zeros(0, bool), np.zeros(0, int)) == (0.0, 1.0)


def test_rows_that_repeat_their_cluster_count_once():
    # With ten copies of each the variance between clusters is that of the 50 listings alone, but for n / (n - 1).
    low, high = compute_share_interval(np.repeat(np.arange(50) < 45, 10), np.repeat(np.arange(50), 10))
    alone = compute_wilson_interval(45 * 49 / 50, 49)
    assert math.isclose(low, alone[0])
    assert math.isclose(high, alone[1])


def test_where_nothing_varies_a_cluster_is_one_row():
    faultless = compute_share_interval(np.ones(60, bool), np.repeat(np.arange(20), 3))
    assert faultless == compute_wilson_interval(20, 20)
    assert compute_share_interval(np.arange(8) < 4, np.zeros(8, int)) == compute_wilson_interval(0.5, 1)


def test_clustered_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(80), rng.integers(1, 12, 80))
    held = held_by_wilson = 0
    for _ in range(400):
        chances = rng.beta(2, 0.5, 80)  # 0.8 on average
        hits = rng.random(len(clusters)) < chances[clusters]
        low, high = compute_share_interval(hits, clusters)
        held += low <= 0.8 <= high
        low, high = compute_wilson_interval(int(hits.sum()), len(hits))
        held_by_wilson += low <= 0.8 <= high
    assert held / 400 > 0.95 - 3 * 0.011
    assert held_by_wilson / 400 < 0.85


def test_resampled_sums_begin_with_the_data():
    cells, values = np.array([0, 2, 0, 2]), np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]])
    sums = resample_sums(cells, values, num_cells=3)
    assert sums.shape == (1001, 3, 2)
    assert sums[0].tolist() == [[4, 12], [0, 0], [6, 14]]
    assert (sums == resample_sums(cells, values, num_cells=3)).all()
    assert len(np.unique(sums[1:], axis=0)) > 20


def test_clusters_are_drawn_whole():
    values = np.array([[1.0], [1.0], [10.0], [10.0], [10.0]])
    sums = resample_sums(np.zeros(5, int), values, num_cells=1, clusters=np.array([4, 4, 9, 9, 9]))[1:, 0, 0]
    assert set(sums.tolist()) == {4, 32, 60}


def test_many_cells_are_summed_like_few():
    rng = np.random.default_rng(0)
    cells, clusters, values = rng.integers(0, 3, 500), rng.integers(0, 100, 500), rng.random((500, 2))
    few = resample_sums(cells, values, num_cells=3, clusters=clusters)
    many = resample_sums(cells, values, num_cells=200, clusters=clusters)
    assert np.allclose(few, many[:, :3])
    assert not many[:, 3:].any()


def test_a_bootstrap_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(0).random(400)
    sums = resample_sums(np.zeros(400, int), np.stack([values, np.ones(400)], axis=1), num_cells=1)[:, 0]
    low, high = compute_bootstrap_interval(sums[:, 0] / sums[:, 1], num_clusters=400)
    half = 1.96 * values.std() / 20
    assert math.isclose(low, values.mean() - half, abs_tol=0.003)
    assert math.isclose(high, values.mean() + half, abs_tol=0.003)


def test_a_bootstrap_that_knows_nothing_says_so():
    assert compute_bootstrap_interval(np.array([np.nan]), num_clusters=0) == (0.0, 1.0)
    assert compute_bootstrap_interval(np.ones(1001), num_clusters=12) == compute_wilson_interval(12, 12)
