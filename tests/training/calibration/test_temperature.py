import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.predictions import create_predictions
from training.calibration.temperature import fit_depth_temperatures, fit_temperature
from training.evaluation.ground_truth import build_ground_truth
from vision.calibration import Calibration
from vision.manifest import Labels
from vision.prediction.fusion import compute_leaf_probabilities, softmax


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 3, (20_000, 5))
    probabilities = softmax(logits / temperature)
    labels = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperatures_by_depth_that_made_the_labels_are_found():
    taxonomy, rng = create_small_taxonomy(), np.random.default_rng(16)
    logits = rng.normal(0, 2, (20_000, 4))
    wanted = (0.5, 1.0, 2.0)
    made = Calibration(category_depth_temperatures=wanted, certifies={})
    probabilities = compute_leaf_probabilities(logits, np.arange(20_000), made, taxonomy)
    leaves = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    truth = build_ground_truth(create_predictions(logits, leaves).labels, taxonomy)
    assert fit_depth_temperatures(softmax(logits), truth, taxonomy) == pytest.approx(wanted, rel=0.1)


def test_without_labels_the_temperatures_by_depth_change_nothing():
    taxonomy = create_small_taxonomy()
    made = create_predictions(np.zeros((5, 4)), np.zeros(5, int))
    unlabelled = Labels(category_nodes=np.full(5, -1), brands=made.labels.brands)
    assert fit_depth_temperatures(softmax(np.eye(4)), build_ground_truth(unlabelled, taxonomy), taxonomy) == (1, 1, 1)
