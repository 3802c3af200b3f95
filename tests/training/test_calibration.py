import math

import numpy as np
import pytest

from tests.helpers import small_taxonomy
from training.calibration import ALPHA_CATEGORY, DELTA, calibrate, certify, fit_temperature
from training.predictions import Predictions
from vision.decision import softmax
from vision.manifest import Labels


def draw(rng, count):
    """Scores of an over-confident model, and whether each answer is right."""
    truth = rng.beta(8, 0.7, count)
    return truth**0.3, rng.random(count) < truth


def field(rng, num_listings, alpha=0.05, delta=0.05):
    tune_scores, _ = draw(rng, num_listings)
    scores, right = draw(rng, num_listings)
    return certify(name="x", alpha=alpha, delta=delta, tune_scores=tune_scores, scores=scores, right=right)


@pytest.mark.parametrize("num_listings", [500, 2500])
def test_the_promise_is_broken_at_most_delta_of_the_time(num_listings):
    rng = np.random.default_rng(0)
    scores, right = draw(rng, 1_000_000)
    broken = filled = 0
    for _ in range(400):
        threshold = field(rng, num_listings).threshold
        if threshold is not None:
            filled += 1
            broken += (~right[scores >= threshold]).mean() > 0.05
    assert filled > 200  # it is not kept by never filling
    # Three standard errors above delta.
    assert broken / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_too_few_listings_say_how_many_are_needed():
    never = field(np.random.default_rng(1), 40)
    assert never.threshold is None
    assert "40 calibration listings are too few: with no error at all, 59 filled ones" in never.why_not


def test_a_model_that_is_wrong_too_often_is_never_filled():
    rng = np.random.default_rng(2)
    scores = rng.random(1000)
    never = certify(name="x", alpha=0.05, delta=0.05, tune_scores=scores, scores=scores, right=rng.random(1000) < 0.5)
    assert never.threshold is None
    assert "too many errors" in never.why_not


def test_a_perfect_model_is_filled_everywhere():
    scores = np.random.default_rng(3).random(300)
    always = certify(name="x", alpha=0.05, delta=0.05, tune_scores=scores, scores=scores, right=np.ones(300, bool))
    assert always.num_filled == 300
    assert always.num_errors == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 3, (20_000, 5))
    probabilities = softmax(logits / temperature)
    labels = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_a_saturated_model_is_filled_at_every_level():
    # Every answer is right and parents are surer than children: the parent's threshold must serve the child too.
    taxonomy, rng = small_taxonomy(), np.random.default_rng(6)
    count = 600
    leaves = rng.integers(0, 2, count)
    logits = rng.normal(0, 1, (count, 4))
    logits[np.arange(count), leaves] += 14
    nodes = np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])[leaves]
    predictions = Predictions(
        category_logits=logits.astype(np.float32),
        brand_logits=np.zeros((count, 3), np.float32),
        labels=Labels(category_nodes=nodes, brands=np.full(count, -1)),
        groups=np.arange(count),
        listing_ids=tuple(map(str, range(count))),
        unusable=(),
    )
    fields = calibrate(predictions, taxonomy, certifies={}).fields
    assert None not in [f.threshold for f in fields[:3]]
    assert fields[3].threshold is None  # no brand label at all


def test_calibration_of_a_whole_model_keeps_thresholds_growing_with_depth():
    taxonomy, rng = small_taxonomy(), np.random.default_rng(5)
    count = 3000
    leaves = rng.integers(0, 4, count)
    logits = rng.normal(0, 1, (count, 4))
    logits[np.arange(count), leaves] += 4
    brands = rng.integers(0, 3, count)
    brand_logits = rng.normal(0, 1, (count, 3))
    brand_logits[np.arange(count), brands] += 6
    nodes = np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])[leaves]
    predictions = Predictions(
        category_logits=logits.astype(np.float32),
        brand_logits=brand_logits.astype(np.float32),
        labels=Labels(category_nodes=nodes, brands=brands),
        groups=np.arange(count),
        listing_ids=tuple(map(str, range(count))),
        unusable=(),
    )
    calibration = calibrate(predictions, taxonomy, certifies={"precision": "fp32"})
    categories = [f for f in calibration.fields if f.name.startswith("category")]
    assert [f.name for f in calibration.fields] == ["category_depth_1", "category_depth_2", "category_depth_3", "brand"]
    thresholds = [f.threshold for f in categories]
    assert None not in thresholds
    assert thresholds == sorted(thresholds)
    assert all(f.alpha == ALPHA_CATEGORY for f in categories)
    assert sum(f.delta for f in calibration.fields) == pytest.approx(DELTA)
    # Half of the listings at each depth: 'tools' is a root and a leaf, so deeper fields have fewer.
    assert 1300 < categories[0].num_listings < 1700
    assert categories[2].num_listings < categories[0].num_listings
    assert calibration.certifies["precision"] == "fp32"
