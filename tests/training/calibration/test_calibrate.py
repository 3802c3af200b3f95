import dataclasses
import math

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.predictions import create_predictions
from training.calibration.calibrate import calibrate
from training.calibration.certify import Guarantee
from training.evaluation.ground_truth import build_ground_truth
from training.inference.predictions import Predictions
from training.statistics.drift import BRAND_PROBABILITY
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration
from vision.decision import compute_prefilled, decide
from vision.manifest import OUT_OF_SCOPE, Labels
from vision.prediction.fusion import compute_leaf_probabilities, softmax
from vision.prediction.listings import ListingPredictions, predict_listings, predict_paths
from vision.taxonomy import OTHER_BRAND, Brand, Category, Taxonomy

ALPHA_CATEGORY, DELTA = Guarantee().alpha_category, Guarantee().delta
EACH_DEPTH = Guarantee(categories="depth")


def test_one_category_and_no_brand_promise_nothing():
    tree = Taxonomy(version="x", categories=(Category(id="all", names={"en": "All"}),), brands=())
    made = create_predictions(np.zeros((50, 4)), np.zeros(50, int))
    alone = dataclasses.replace(
        made, category_logits=np.zeros((50, 1)), brand_logits=np.zeros((50, 1)),
        labels=Labels(category_nodes=np.zeros(50, int), brands=np.zeros(50, int)),
    )  # fmt: skip
    for guarantee in (Guarantee(), EACH_DEPTH):
        found = calibrate(alone, tree, certifies={}, guarantee=guarantee)
        assert [(field.threshold, field.delta) for field in found.fields] == [(None, 0)]
        assert found.field(BRAND_FIELD) is None
        assert BRAND_PROBABILITY not in found.expected


def tree_predictions(rng, count):
    """An over-confident model on a tree with leaves of unequal depth, its mistakes all over the tree."""
    logits = rng.normal(0, 1, (count, 4)) * 2
    shown = softmax(logits)
    truth = softmax(logits * 0.8)
    leaves = (truth.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return create_small_taxonomy(), create_predictions(np.log(shown) * 2.5, leaves)


def test_the_guarantee_of_each_depth_holds_for_filled_paths_on_a_tree():
    """Whoever receives a filled field sees it wrong at most alpha of the time, shallow truths included."""
    rng = np.random.default_rng(7)
    taxonomy, judged = tree_predictions(rng, 200_000)
    true_nodes = build_ground_truth(judged.labels, taxonomy).nodes
    broken = np.zeros(3)
    filled_runs = np.zeros(3)
    for _ in range(60):
        calibration = calibrate(tree_predictions(rng, 3000)[1], taxonomy, certifies={}, guarantee=EACH_DEPTH)
        leaves = compute_leaf_probabilities(judged.category_logits, judged.groups, calibration, taxonomy)
        paths = predict_paths(leaves, taxonomy)
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


def test_one_threshold_for_the_whole_path_is_the_default():
    rng = np.random.default_rng(8)
    taxonomy, made = tree_predictions(rng, 3000)
    calibration = calibrate(made, taxonomy, certifies={})
    assert [field.name for field in calibration.fields] == [PATH_FIELD, BRAND_FIELD]
    path = calibration.field(PATH_FIELD)
    assert path.threshold in path.grid
    assert path.bound <= ALPHA_CATEGORY
    assert [depth.depth for depth in path.depths] == [1, 2, 3]
    assert Calibration.from_json(calibration.to_json()) == calibration
    # What serving fills is what was tested.
    judged = tree_predictions(rng, 20_000)[1]
    predictions = decide_fields(judged, calibration)
    filled = compute_prefilled(predictions, taxonomy=taxonomy, calibration=calibration)[:, :-1]
    assert (filled == (np.where(predictions.paths.nodes >= 0, predictions.paths.scores, 0) >= path.threshold)).all()
    deepest = np.maximum(filled.sum(axis=1) - 1, 0)[:, None]
    true_nodes = build_ground_truth(judged.labels, taxonomy).nodes
    wrong = (np.take_along_axis(predictions.paths.nodes, deepest, 1) != np.take_along_axis(true_nodes, deepest, 1))[
        :, 0
    ]
    assert 0.2 < filled[:, 0].mean() < 1
    assert wrong[filled[:, 0]].mean() <= ALPHA_CATEGORY


def test_a_saturated_model_is_filled_at_every_level():
    # Every answer is right and parents are surer than children: the parent's threshold must serve the child too.
    taxonomy, rng = create_small_taxonomy(), np.random.default_rng(6)
    count = 420
    leaves = rng.integers(0, 2, count)
    logits = rng.normal(0, 1, (count, 4))
    logits[np.arange(count), leaves] += 14
    for _ in range(20):  # whichever half of the listings is drawn
        ids = tuple(str(i) for i in rng.integers(0, 1 << 40, count))
        drawn = dataclasses.replace(create_predictions(logits, leaves), listing_ids=ids)
        fields = calibrate(drawn, taxonomy, certifies={}, guarantee=EACH_DEPTH).fields
        assert None not in [f.threshold for f in fields[:3]]
    assert None not in [f.threshold for f in fields[:3]]
    assert fields[3].threshold is None  # no brand label at all


def test_calibration_of_a_whole_model_keeps_thresholds_growing_with_depth():
    taxonomy, rng = create_small_taxonomy(), np.random.default_rng(5)
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
        scope_scores=np.ones(count, np.float32),
        labels=Labels(category_nodes=nodes, brands=brands),
        groups=np.arange(count),
        listing_ids=tuple(map(str, range(count))),
        photo_urls=tuple(f"{i}.jpg" for i in range(count)),
        unusable=(),
    )
    calibration = calibrate(predictions, taxonomy, certifies={"precision": "fp32"}, guarantee=EACH_DEPTH)
    categories = [f for f in calibration.fields if f.name.startswith("category")]
    assert [f.name for f in calibration.fields] == ["category_depth_1", "category_depth_2", "category_depth_3", "brand"]
    thresholds = [f.threshold for f in categories]
    assert None not in thresholds
    assert thresholds == sorted(thresholds)
    assert all(f.alpha == ALPHA_CATEGORY for f in categories)
    assert calibration.total_delta == DELTA
    # Four fifths of the listings; 'tools' is a root and a leaf, so fewer answers reach the third depth.
    assert 2300 < categories[0].num_listings < 2500
    assert categories[2].num_listings < categories[0].num_listings
    assert calibration.certifies["precision"] == "fp32"


def brand_predictions(rng, count, *, other_share):
    """Listings of two brands, of none, and of brands not listed, whose logits are all low."""
    brands = rng.integers(0, 3, count)
    logits = rng.normal(0, 1, (count, 3))
    logits[np.arange(count), brands] += 8
    is_other = rng.random(count) < other_share
    logits[is_other] = rng.normal(0, 1, (int(is_other.sum()), 3))
    made = create_predictions(rng.normal(0, 1, (count, 4)), rng.integers(0, 4, count))
    labels = Labels(
        category_nodes=made.labels.category_nodes, brands=np.where(is_other, OTHER_BRAND, brands).astype(np.int64)
    )
    return dataclasses.replace(made, brand_logits=logits.astype(np.float32), labels=labels)


def decide_fields(predictions, calibration) -> ListingPredictions:
    return predict_listings(
        predictions.category_logits,
        predictions.brand_logits,
        predictions.scope_scores,
        predictions.groups,
        taxonomy=create_small_taxonomy(),
        calibration=calibration,
    )


def test_brands_not_listed_are_answered_as_such_and_count_as_errors_when_filled():
    rng = np.random.default_rng(9)
    calibration = calibrate(brand_predictions(rng, 4000, other_share=0.2), create_small_taxonomy(), certifies={})
    judged = brand_predictions(rng, 4000, other_share=0.2)
    brands = decide_fields(judged, calibration).brands
    is_other = judged.labels.brands == OTHER_BRAND
    named = brands.labels != 0
    # Among what looks like a brand, the strange are told from the known.
    assert (brands.labels[is_other & named] == OTHER_BRAND).mean() > 0.95
    assert (brands.labels[judged.labels.brands > 0] == OTHER_BRAND).mean() < 0.05
    field_ = calibration.field(BRAND_FIELD)
    filled = compute_prefilled(
        decide_fields(judged, calibration), taxonomy=create_small_taxonomy(), calibration=calibration
    )[:, -1]
    assert field_.threshold is not None
    assert (brands.labels[filled] != judged.labels.brands[filled]).mean() <= 0.02
    one = decide(
        np.zeros((1, 4)),
        np.array([[-9.0, -8.0, -9.0]]),
        np.ones(1),
        taxonomy=create_small_taxonomy(),
        calibration=calibration,
    ).brand
    assert (one.brand_index, one.probability, one.filled) == (OTHER_BRAND, 0.0, False)
    assert one.not_prefilled.code == "OTHER_BRAND"


def test_without_strange_brands_one_in_a_hundred_right_answers_is_given_up():
    rng = np.random.default_rng(10)
    calibration = calibrate(brand_predictions(rng, 8000, other_share=0), create_small_taxonomy(), certifies={})
    judged = brand_predictions(rng, 8000, other_share=0)
    given_up = (decide_fields(judged, calibration).brands.labels == OTHER_BRAND)[judged.labels.brands > 0]
    assert 0.002 < given_up.mean() < 0.025


def test_a_catch_all_is_answered_and_never_filled():
    small = create_small_taxonomy()
    catch_all = Taxonomy(
        version="x",
        categories=tuple(dataclasses.replace(c, catch_all=c.id == "apple") for c in small.categories),
        brands=small.brands,
    )
    rng = np.random.default_rng(11)
    leaves = rng.integers(0, 4, 2000)
    logits = rng.normal(0, 1, (2000, 4))
    logits[np.arange(2000), leaves] += 14
    predictions = create_predictions(logits, leaves)
    calibration = calibrate(predictions, catch_all, certifies={})
    answers = predict_listings(
        predictions.category_logits, predictions.brand_logits, predictions.scope_scores, predictions.groups,
        taxonomy=catch_all, calibration=calibration,
    )  # fmt: skip
    filled = compute_prefilled(answers, taxonomy=catch_all, calibration=calibration)
    in_apple = answers.paths.nodes[:, 1] == catch_all.node_index["apple"]
    assert in_apple.any()
    assert not filled[in_apple, 1:3].any()
    assert filled[in_apple, 0].all()  # its parent is no catch-all
    # Elsewhere the field is filled as ever.
    assert filled[~in_apple & (answers.paths.nodes[:, 1] >= 0), 1].mean() > 0.98
    step = decide(logits[in_apple][:1], np.zeros((1, 3)), np.ones(1), taxonomy=catch_all, calibration=calibration).path[
        1
    ]
    assert step.not_prefilled.code == "CATCH_ALL_CATEGORY"


def test_a_sole_root_guarantees_nothing_of_its_own():
    tree = Taxonomy(
        version="x",
        categories=(
            Category(id="all", names={"en": "All"}),
            *(Category(id=i, names={"en": i.title()}, parent_id="all") for i in ("a", "b")),
        ),
        brands=(Brand(id="ondra", names={"en": "Ondra"}),),
    )
    rng = np.random.default_rng(12)
    leaves = rng.integers(0, 2, 1000)
    logits = rng.normal(0, 1, (1000, 2))
    logits[np.arange(1000), leaves] += 3
    made = Predictions(
        category_logits=logits.astype(np.float32),
        brand_logits=np.zeros((1000, 2), np.float32),
        scope_scores=np.ones(1000, np.float32),
        labels=Labels(category_nodes=1 + leaves, brands=np.full(1000, -1)),
        groups=np.arange(1000),
        listing_ids=tuple(map(str, range(1000))),
        photo_urls=("",) * 1000,
        unusable=(),
    )
    calibration = calibrate(made, tree, certifies={}, guarantee=EACH_DEPTH)
    root, leaf, _ = calibration.fields
    assert root.threshold is None
    assert "the only category at this depth" in root.uncertified_reason
    assert root.uncertified_code == "ONLY_CATEGORY"
    assert leaf.delta == pytest.approx(DELTA / 2)  # the root takes no share
    answers = predict_listings(
        made.category_logits, made.brand_logits, made.scope_scores, made.groups, taxonomy=tree, calibration=calibration
    )
    filled = compute_prefilled(answers, taxonomy=tree, calibration=calibration)
    assert 0.2 < filled[:, 1].mean() < 1
    assert (filled[:, 0] == filled[:, 1]).all()


def test_a_split_kept_for_calibration_is_used_for_the_tests_alone():
    rng = np.random.default_rng(13)
    taxonomy, tune = tree_predictions(rng, 1000)
    _, tested = tree_predictions(rng, 3000)
    apart = calibrate(tune, taxonomy, certifies={"split": "calibrate"}, calibration_predictions=tested)
    assert apart.fields[0].num_listings == 3000
    assert apart.certifies["split"] == "calibrate"
    other = calibrate(
        tune, taxonomy, certifies={}, calibration_predictions=tree_predictions(np.random.default_rng(14), 3000)[1]
    )
    # Temperatures and grids know nothing of the labels that the tests are made on.
    assert apart.category_temperature == other.category_temperature
    assert apart.fields[0].grid == other.fields[0].grid


def test_a_handful_of_listings_gives_temperatures_and_no_guarantee():
    made = create_predictions(np.eye(4)[[0]] * 5, np.array([0]))
    calibration = calibrate(made, create_small_taxonomy(), certifies={})
    assert all(f.threshold is None and "too few" in f.uncertified_reason for f in calibration.fields)


def test_balanced_scores_get_the_classes_frequencies_back():
    """A model trained with logit adjustment answers as if all leaves were alike frequent."""
    rng = np.random.default_rng(15)
    prior = np.array([0.7, 0.2, 0.08, 0.02])
    leaves = rng.choice(4, 6000, p=prior)
    balanced = rng.normal(0, 1, (6000, 4))
    balanced[np.arange(6000), leaves] += 1  # log-likelihood ratios of unit Gaussians, up to a constant
    made = create_predictions(balanced, leaves)
    natural = calibrate(made, create_small_taxonomy(), certifies={}, category_log_prior=np.log(prior))
    assert natural.category_temperature == pytest.approx(1, rel=0.1)
    probabilities = compute_leaf_probabilities(made.category_logits, made.groups, natural, create_small_taxonomy())
    assert probabilities.mean(axis=0) == pytest.approx(prior, abs=0.02)
    assert Calibration.from_json(natural.to_json()) == natural


def test_a_listing_that_the_taxonomy_does_not_cover_is_wrong_when_filled():
    rng, taxonomy = np.random.default_rng(21), create_small_taxonomy()
    leaves = rng.integers(0, 4, 2000)
    tune = tested = create_predictions(rng.normal(0, 1, (2000, 4)) + 6 * np.eye(4)[leaves], leaves)
    outside = rng.random(2000) < 0.3
    nodes = np.where(outside, OUT_OF_SCOPE, tested.labels.category_nodes)
    labels = Labels(category_nodes=nodes, brands=tested.labels.brands)
    scores = np.where(outside, 0.2, 0.9).astype(np.float32)
    seen = dataclasses.replace(tested, labels=labels, scope_scores=scores)
    unseen = dataclasses.replace(tested, labels=labels)
    gated = calibrate(tune, taxonomy, certifies={}, calibration_predictions=seen, scope_threshold=0.5)
    assert gated.scope_threshold == 0.5
    assert gated.field(PATH_FIELD).threshold is not None
    assert gated.field(PATH_FIELD).num_listings == 2000
    # A third of what would be filled is wrong: without the gate nothing can be certified.
    assert calibrate(tune, taxonomy, certifies={}, calibration_predictions=unseen).field(PATH_FIELD).threshold is None
    assert Calibration.from_json(gated.to_json()) == gated
    assert gated.version != dataclasses.replace(gated, scope_threshold=0.6).version
