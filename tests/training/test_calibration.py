import dataclasses
import math

import numpy as np
import pytest

from tests.helpers import small_taxonomy
from training.calibration import ALPHA_CATEGORY, DELTA, calibrate, certify, fit_temperature
from training.evaluation import truth_by_depth
from training.predictions import Predictions
from vision.decision import answer_paths, category_probabilities, softmax
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
    assert "of them wrongly, which does not prove 95%" in never.why_not


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


def predictions_of(logits, leaves) -> Predictions:
    """One photo a listing on the small tree, brands not known."""
    taxonomy, count = small_taxonomy(), len(logits)
    return Predictions(
        category_logits=logits.astype(np.float32),
        brand_logits=np.zeros((count, 3), np.float32),
        labels=Labels(
            category_nodes=np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])[leaves],
            brands=np.full(count, -1),
        ),
        groups=np.arange(count),
        listing_ids=tuple(map(str, range(count))),
        photo_urls=tuple(f"{i}.jpg" for i in range(count)),
        unusable=(),
    )


def tree_predictions(rng, count):
    """An over-confident model on a tree with leaves of unequal depth, its mistakes all over the tree."""
    logits = rng.normal(0, 1, (count, 4)) * 2
    shown = softmax(logits)
    truth = softmax(logits * 0.8)
    leaves = (truth.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return small_taxonomy(), predictions_of(np.log(shown) * 2.5, leaves)


def test_the_promise_holds_for_filled_paths_on_a_tree():
    """Whoever receives a filled field sees it wrong at most alpha of the time, shallow truths included."""
    rng = np.random.default_rng(7)
    taxonomy, judged = tree_predictions(rng, 200_000)
    true_nodes = truth_by_depth(judged.labels, taxonomy).nodes
    broken = np.zeros(3)
    filled_runs = np.zeros(3)
    for _ in range(60):
        calibration = calibrate(tree_predictions(rng, 3000)[1], taxonomy, certifies={})
        leaves = category_probabilities(judged.category_logits, judged.groups, calibration)
        paths = answer_paths(leaves, taxonomy)
        for depth, field_ in enumerate(calibration.fields[:3]):
            if field_.threshold is None:
                continue
            # By hand and without the module under test: filled means answered at this depth and sure enough.
            filled = (paths.nodes[:, depth] >= 0) & (paths.scores[:, depth] >= field_.threshold)
            wrong = paths.nodes[filled, depth] != true_nodes[filled, depth]
            filled_runs[depth] += 1
            broken[depth] += wrong.mean() > ALPHA_CATEGORY
    assert filled_runs[0] > 30
    # delta is shared by four fields; three standard errors above it.
    limit = DELTA / 4 + 3 * math.sqrt(DELTA / 4 * (1 - DELTA / 4) / 60)
    assert (broken / 60 <= limit).all(), (broken, filled_runs)


def test_a_saturated_model_is_filled_at_every_level():
    # Every answer is right and parents are surer than children: the parent's threshold must serve the child too.
    taxonomy, rng = small_taxonomy(), np.random.default_rng(6)
    count = 420
    leaves = rng.integers(0, 2, count)
    logits = rng.normal(0, 1, (count, 4))
    logits[np.arange(count), leaves] += 14
    for _ in range(20):  # whichever half of the listings is drawn
        ids = tuple(str(i) for i in rng.integers(0, 1 << 40, count))
        drawn = dataclasses.replace(predictions_of(logits, leaves), listing_ids=ids)
        fields = calibrate(drawn, taxonomy, certifies={}).fields
        assert None not in [f.threshold for f in fields[:3]]
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
        photo_urls=tuple(f"{i}.jpg" for i in range(count)),
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
    # Half of the listings at each depth; 'tools' is a root and a leaf, so fewer answers reach the third.
    assert 1300 < categories[0].num_listings < 1700
    assert categories[2].num_listings < categories[0].num_listings
    assert calibration.certifies["precision"] == "fp32"
