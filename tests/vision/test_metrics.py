import math

import numpy as np

from vision.metrics import expected_calibration_error, macro_accuracy, top_k_accuracy, wilson_interval


def test_top_k_counts_labelled_rows_only():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]])
    assert top_k_accuracy(scores, np.array([1, 1, -1]), k=1) == 0.5
    assert top_k_accuracy(scores, np.array([1, 1, -1]), k=2) == 1.0
    assert math.isnan(top_k_accuracy(scores, np.array([-1, -1, -1]), k=1))


def test_macro_accuracy_weighs_labels_alike():
    predictions, labels = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1])
    assert macro_accuracy(predictions, labels) == (1.0 + 0.5) / 2


def test_ece_of_certain_and_of_wrongly_certain_answers():
    sure = np.ones(10)
    assert expected_calibration_error(sure, np.ones(10, bool)) == 0
    assert expected_calibration_error(sure, np.zeros(10, bool)) == 1
    assert math.isclose(expected_calibration_error(np.full(10, 0.75), np.arange(10) < 5), 0.25)


def test_wilson_interval_of_a_textbook_case():
    low, high = wilson_interval(45, 50)  # 0.9 of 50
    assert math.isclose(low, 0.7864, abs_tol=1e-3)
    assert math.isclose(high, 0.9565, abs_tol=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)
