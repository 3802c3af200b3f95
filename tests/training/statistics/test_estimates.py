import numpy as np
import pytest
from scipy.stats import binom

from training.statistics.estimates import (
    bin_reliability,
    compute_clopper_pearson_interval,
    compute_clopper_pearson_upper,
    estimate_calibration_error,
    estimate_hierarchical,
    estimate_macro_accuracy,
    estimate_share,
)
from vision.metrics import compute_expected_calibration_error

RNG = np.random.default_rng(0)


def test_the_values_are_those_of_the_plain_metrics():
    confidences, right = RNG.random(200), RNG.random(200) < 0.5
    answers, labels = RNG.integers(0, 5, 200), RNG.integers(-1, 5, 200)
    error = estimate_calibration_error("ece", confidences, right, None)
    assert error["ece"] == pytest.approx(compute_expected_calibration_error(confidences, right))
    by_label = [(answers[labels == label] == label).mean() for label in np.unique(labels[labels >= 0])]
    assert estimate_macro_accuracy("macro", answers, labels, None)["macro"] == pytest.approx(np.mean(by_label))


def test_no_rows_say_nothing():
    nothing = np.zeros(0)
    for figures in (
        estimate_share("x", nothing.astype(bool), None),
        estimate_macro_accuracy("x", nothing.astype(int), nothing.astype(int), None),
        estimate_macro_accuracy("x", np.zeros(3, int), np.full(3, -1), np.zeros(3, int)),
        estimate_calibration_error("x", nothing, nothing.astype(bool), None),
    ):
        assert np.isnan(figures["x"])
        assert figures["x_interval"] == (0.0, 1.0)
    tree = estimate_hierarchical(
        labelled=np.zeros((2, 3), bool), predicted=np.zeros((2, 3), bool), right=np.zeros((2, 3), bool), clusters=None
    )
    assert (tree["num"], tree["f1_interval"]) == (0, (0.0, 1.0))


@pytest.mark.parametrize("figure", ["macro", "f1", "ece"])
def test_intervals_hold_the_true_value_nineteen_times_in_twenty(figure):
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(150):
        kinds = rng.choice(3, 300, p=[0.5, 0.3, 0.2])
        right = rng.random(300) < np.array([0.9, 0.7, 0.6])[kinds]
        if figure == "macro":
            truth, found = 2.2 / 3, estimate_macro_accuracy("x", np.where(right, kinds, -5), kinds, None)
        elif figure == "ece":
            confidences = np.array([0.99, 0.75, 0.4])[kinds]
            truth, found = (
                0.5 * 0.09 + 0.3 * 0.05 + 0.2 * 0.2,
                estimate_calibration_error("x", confidences, right, None),
            )
        else:
            # Right or wrong in the second of two steps, of two answered and two true.
            steps = np.stack([np.ones(300, bool), right], axis=1)
            all_known = np.ones((300, 2), bool)
            found = estimate_hierarchical(labelled=all_known, predicted=all_known, right=steps, clusters=None)
            truth, found = (1 + 0.78) / 2, {"x_interval": found["f1_interval"]}
        low, high = found["x_interval"]
        held += low <= truth <= high
    # Three standard errors about 95 %; narrower intervals would hold it less often, wide ones always.
    assert 0.95 - 3 * 0.018 <= held / 150 < 1


def test_reliability_by_hand():
    confidences = np.array([0.91, 0.93, 0.30, 0.0])
    bins = bin_reliability(confidences, np.array([True, False, True, False]), None)
    assert [(b["num"], b["confidence"], b["accuracy"]) for b in bins] == [(1, 0.30, 1.0), (2, pytest.approx(0.92), 0.5)]


def test_the_bound_is_the_share_at_which_so_few_errors_become_unlikely():
    bound = compute_clopper_pearson_upper(3, 200, alpha=0.05)
    assert binom.cdf(3, 200, bound) == pytest.approx(0.05)
    assert compute_clopper_pearson_upper(0, 59, alpha=0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert compute_clopper_pearson_upper(5, 5, alpha=0.05) == 1.0


def test_an_exact_interval_leaves_a_fortieth_at_each_end():
    low, high = compute_clopper_pearson_interval(3, 200)
    assert binom.cdf(3, 200, high) == pytest.approx(0.025)
    assert binom.sf(2, 200, low) == pytest.approx(0.025)
    assert compute_clopper_pearson_interval(0, 0) == (0, 1)
    assert compute_clopper_pearson_interval(0, 50)[0] == 0
