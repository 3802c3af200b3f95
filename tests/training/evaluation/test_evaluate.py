import dataclasses
import json

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from training.evaluation.evaluate import evaluate, format_table, group_pseudo_listings, replace_nan
from training.evaluation.long_tail import LeafCounts
from training.inference.predictions import Predictions
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee, get_field_name
from vision.manifest import OUT_OF_SCOPE, Labels
from vision.taxonomy import OTHER_BRAND

TAXONOMY = create_small_taxonomy()


def nodes(*ids: str) -> np.ndarray:
    return np.array([TAXONOMY.node_index[i] if i else -1 for i in ids])


def one_hot(columns, width):
    return (np.eye(width)[columns] * 20).astype(np.float32)


# Three listings: two photos of a Gala (one taken for a Fuji), one lemon, one labelled only 'apple'.
PREDICTIONS = Predictions(
    category_logits=one_hot([0, 1, 2, 1], 4) * np.array([[2], [1], [1], [1]], np.float32),
    brand_logits=one_hot([1, 0, 0, 2], 3) * np.array([[2], [1], [1], [1]], np.float32),
    scope_scores=np.ones(4, np.float32),
    labels=Labels(category_nodes=nodes("gala", "gala", "lemon", "apple"), brands=np.array([1, 1, 0, -1])),
    groups=np.array([0, 0, 1, 2]),
    listing_ids=("a", "b", "c"),
    photo_urls=("0.jpg", "1.jpg", "2.jpg", "3.jpg"),
    unusable=("x.jpg: gone",),
)


def create_guarantee(name, threshold):
    return FieldGuarantee(
        name=name, alpha=0.05, delta=0.01, threshold=threshold, num_listings=9, num_filled=9, num_errors=0
    )


def test_figures_by_hand():
    calibration = Calibration(
        fields=(create_guarantee(get_field_name(1), 0.5), create_guarantee(BRAND_FIELD, None)), certifies={}
    )
    figures = evaluate(PREDICTIONS, taxonomy=TAXONOMY, calibration=calibration)
    photo, listing = figures["photo"], figures["listing"]
    assert (photo["num"], listing["num"]) == (4, 3)
    assert photo["leaf"]["top1"] == pytest.approx(2 / 3)  # of three photos with a leaf label
    assert photo["leaf"]["top5"] == 1
    assert photo["leaf"]["macro"] == pytest.approx((0.5 + 1) / 2)
    assert listing["leaf"]["top1"] == 1  # the surer photo of the Gala decides
    assert photo["depth_2"]["top1"] == 1  # a Fuji is an apple
    assert photo["depth_3"]["num"] == 2  # a lemon has no third level, 'apple' does not say it
    assert photo["brand"]["top1_branded"] == 0.5
    assert listing["brand"]["top1_branded"] == 1
    assert photo["brand"]["top1_unbranded"] == 1
    assert (photo["brand"]["top5"], photo["brand"]["top5_branded"]) == (1, 1)  # there are fewer than five brands
    assert listing["fields"]["category_depth_1"]["coverage"] == 1
    assert listing["fields"]["category_depth_1"]["precision"] == 1
    assert listing["fields"]["brand"]["num_filled"] == 0
    assert figures["num_unusable_photos"] == 1
    table = format_table(figures)
    assert table.splitlines()[1].startswith("  Leaf category ")
    assert "1 photo could not be used" in table


NO_GUARANTEES = Calibration(certifies={})


def find_figures(part, path=""):
    """Every figure of a tree that is a share or an error, with what stands beside it."""
    not_estimates = {"alpha", "threshold", "confidence"}
    if isinstance(part, dict):
        for name, value in part.items():
            if isinstance(value, float) and name not in not_estimates:
                yield f"{path}/{name}", value, part.get(f"{name}_interval")
            elif not name.endswith("_interval"):
                yield from find_figures(value, f"{path}/{name}")
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from find_figures(value, f"{path}/{number}")


def test_every_figure_has_an_interval_that_holds_it():
    calibration = Calibration(
        fields=(create_guarantee(get_field_name(1), 0.5), create_guarantee(BRAND_FIELD, None)), certifies={}
    )
    figures = evaluate(PREDICTIONS, taxonomy=TAXONOMY, calibration=calibration)
    found = list(find_figures(figures))
    assert len(found) > 150
    for path, value, interval in found:
        assert interval is not None, path
        low, high = interval
        assert 0 <= low <= high <= 1, path
        if np.isnan(value):
            assert (low, high) == (0, 1), path
        else:
            assert low <= value <= high, path
            assert low < high, path  # three listings make nothing certain
    json.dumps(replace_nan(figures), allow_nan=False)


def test_mistakes_in_the_tree_by_hand():
    tree = evaluate(PREDICTIONS, taxonomy=TAXONOMY, calibration=NO_GUARANTEES)["photo"]["hierarchy"]
    # Gala: 3 of 3 nodes. Fuji for Gala: 2 shared, 3 answered, 3 true. Lemon: 2 of 2. 'apple': 2 of 2, the Fuji below
    # it not being known to be wrong.
    assert tree["num"] == 4
    assert tree["precision"] == tree["recall"] == tree["f1"] == pytest.approx(9 / 10)
    assert [(mistake["depth"], mistake["num"]) for mistake in tree["mistakes"]] == [(None, 3), (1, 0), (2, 0), (3, 1)]
    assert tree["mistakes"][3]["share"] == 0.25


def test_recall_and_precision_differ_where_depths_do():
    answers = dataclasses.replace(
        PREDICTIONS,
        category_logits=one_hot([3, 3, 2, 0], 4),
        labels=Labels(category_nodes=nodes("gala", "gala", "lemon", ""), brands=np.array([1, 1, 0, -1])),
    )
    tree = evaluate(answers, taxonomy=TAXONOMY, calibration=NO_GUARANTEES)["photo"]["hierarchy"]
    assert tree["num"] == 3
    assert tree["precision"] == pytest.approx(2 / 4)  # tools, tools, fruit > lemon
    assert tree["recall"] == pytest.approx(2 / 8)
    assert tree["f1"] == pytest.approx(2 * 2 / 12)


def test_an_unseen_brand_is_right_only_as_none_that_i_know():
    predictions = dataclasses.replace(
        PREDICTIONS,
        brand_logits=np.array([[0, 9, 0], [0, 9, 0], [0, 1, 0], [0, 9, 0]], np.float32),
        labels=Labels(category_nodes=PREDICTIONS.labels.category_nodes, brands=np.array([1, 1, -2, -2])),
    )
    calibration = Calibration(unknown_brand_below=5.0, fields=(create_guarantee(BRAND_FIELD, 0.5),), certifies={})
    brand = evaluate(predictions, taxonomy=TAXONOMY, calibration=calibration)["listing"]["brand"]
    assert (brand["num"], brand["num_branded"], brand["num_unbranded"], brand["num_unseen"]) == (3, 1, 0, 2)
    assert brand["top1"] == pytest.approx(2 / 3)
    assert brand["top1_unseen"] == brand["none_known_unseen"] == 0.5
    assert brand["filled_unseen"] == brand["filled_wrong_unseen"] == 0.5
    assert (brand["filled_branded"], brand["filled_wrong_branded"]) == (1, 0)
    assert np.isnan(brand["top1_unbranded"])
    # What is answered 'none that I know' has no confidence to be calibrated.
    assert sum(part["num"] for part in brand["reliability"]) == 2
    assert predictions.labels.brands[2] == OTHER_BRAND


def test_a_brand_that_is_filled_in_for_a_product_out_of_scope_is_wrong():
    labels = Labels(category_nodes=np.array([*nodes("gala", "gala", "lemon"), OUT_OF_SCOPE]), brands=np.full(4, -1))
    calibration = Calibration(fields=(create_guarantee(BRAND_FIELD, 0.5),), certifies={})
    predictions = dataclasses.replace(PREDICTIONS, labels=labels)
    field = evaluate(predictions, taxonomy=TAXONOMY, calibration=calibration)["listing"]["fields"][BRAND_FIELD]
    assert (field["coverage"], field["num_judged"], field["precision"]) == (1, 1, 0)


def test_listings_that_the_gates_stop_are_counted():
    predictions = dataclasses.replace(
        PREDICTIONS,
        category_logits=one_hot([0, 3, 2, 1], 4),
        scope_scores=np.array([0.9, 0.8, 0.9, 0.2], np.float32),
    )
    gated = Calibration(scope_threshold=0.5, agreement_limit=0.1, certifies={})
    figures = evaluate(predictions, taxonomy=TAXONOMY, calibration=gated)
    gates = figures["listing"]["gates"]
    assert (gates["out_of_scope"], gates["photos_disagree"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert "out of scope  33.3, photos disagree  33.3" in format_table(figures)
    assert "gates" not in figures["photo"]


def test_a_taxonomy_without_brands_has_no_figures_of_them():
    without = dataclasses.replace(TAXONOMY, brands=())
    predictions = dataclasses.replace(PREDICTIONS, brand_logits=np.zeros((4, 1), np.float32))
    predictions = dataclasses.replace(
        predictions, labels=Labels(category_nodes=PREDICTIONS.labels.category_nodes, brands=np.full(4, -1))
    )
    # A certificate of an earlier version has a field for them.
    calibration = Calibration(
        fields=(create_guarantee(get_field_name(1), 0.5), create_guarantee(BRAND_FIELD, None)), certifies={}
    )
    figures = evaluate(predictions, taxonomy=without, calibration=calibration)
    assert "brand" not in figures["listing"]
    assert BRAND_FIELD not in {**figures["listing"]["fields"], **figures["listing"]["selective"]}
    assert "Brand" not in format_table(figures)


def test_a_temperature_changes_the_calibration_error_alone():
    rng = np.random.default_rng(0)
    leaves = rng.integers(0, 4, 400)
    logits = rng.normal(0, 1, (400, 4))
    logits[np.arange(400), leaves] += 1
    predictions = Predictions(
        category_logits=(4 * logits).astype(np.float32),  # four times too sure
        brand_logits=np.zeros((400, 3), np.float32),
        scope_scores=np.ones(400, np.float32),
        labels=Labels(category_nodes=TAXONOMY.leaf_paths.max(axis=1)[leaves], brands=np.full(400, -1)),
        groups=np.arange(400),
        listing_ids=tuple(map(str, range(400))),
        photo_urls=("x.jpg",) * 400,
        unusable=(),
    )
    calibration = Calibration(category_temperature=4.0, certifies={})
    level = evaluate(predictions, taxonomy=TAXONOMY, calibration=calibration)["listing"]["leaf"]
    as_trained = evaluate(predictions, taxonomy=TAXONOMY, calibration=NO_GUARANTEES)["listing"]["leaf"]
    assert level["ece_uncalibrated"] == as_trained["ece"] > 0.2
    assert level["ece"] < 0.08
    assert level["ece_uncalibrated_interval"][0] > level["ece_interval"][1]
    assert level["top1"] == as_trained["top1"]
    assert level["reliability_uncalibrated"] == as_trained["reliability"] != level["reliability"]


def test_photos_of_one_listing_make_the_interval_wider():
    def predictions(groups):
        right = np.repeat(np.arange(40) % 4 > 0, 5)  # the five photos of a listing are right or wrong together
        return Predictions(
            category_logits=one_hot(np.where(right, 3, 0), 4),
            brand_logits=np.zeros((200, 3), np.float32),
            scope_scores=np.ones(200, np.float32),
            labels=Labels(category_nodes=nodes(*["tools"] * 200), brands=np.full(200, -1)),
            groups=groups,
            listing_ids=tuple(map(str, range(groups.max() + 1))),
            photo_urls=("x.jpg",) * 200,
            unusable=(),
        )

    def width(groups):
        leaf = evaluate(predictions(groups), taxonomy=TAXONOMY, calibration=NO_GUARANTEES)["photo"]["leaf"]
        assert leaf["top1"] == 0.75
        return leaf["top1_interval"][1] - leaf["top1_interval"][0]

    assert width(np.repeat(np.arange(40), 5)) > 2 * width(np.arange(200))


def test_a_catch_all_is_never_filled():
    tree = dataclasses.replace(
        TAXONOMY,
        categories=tuple(dataclasses.replace(c, catch_all=c.id == "tools") for c in TAXONOMY.categories),
    )
    predictions = dataclasses.replace(
        PREDICTIONS,
        category_logits=one_hot([0, 0, 3, 3], 4),
        labels=Labels(category_nodes=nodes("gala", "gala", "tools", "tools"), brands=PREDICTIONS.labels.brands),
    )
    calibration = Calibration(fields=(create_guarantee(get_field_name(1), 0.5),), certifies={})
    listing = evaluate(predictions, taxonomy=tree, calibration=calibration)["listing"]
    assert listing["fields"]["category_depth_1"]["coverage"] == pytest.approx(1 / 3)
    curve = listing["selective"]["category_depth_1"]
    assert [point["coverage"] for point in curve["points"]] == [pytest.approx(1 / 3)]
    assert curve["certified"]["num_filled"] == 1


def test_frequency_is_that_of_training_where_it_is_known():
    counts = LeafCounts(np.array([5, 50, 500, 1]), "the train split")
    given = evaluate(PREDICTIONS, taxonomy=TAXONOMY, calibration=NO_GUARANTEES, training_counts=counts)
    assert given["listing"]["frequency"]["counted_on"] == "the train split"
    assert given["listing"]["frequency"]["parts"][0]["most_photos"] == 500
    own = evaluate(PREDICTIONS, taxonomy=TAXONOMY, calibration=NO_GUARANTEES)["listing"]["frequency"]
    assert own["counted_on"] == "the evaluated photos"
    assert own["parts"][0]["most_photos"] == 2  # two photos of a Gala


def test_nan_becomes_null():
    assert replace_nan({"a": float("nan"), "b": [(1.0, float("nan"))]}) == {"a": None, "b": [[1.0, None]]}


def test_pseudo_listings_hold_photos_of_one_category_and_brand():
    labels = Labels(category_nodes=np.repeat([3, 5, 1], [7, 3, 1]), brands=np.array([0] * 4 + [1] * 3 + [0] * 3 + [-1]))
    groups = group_pseudo_listings(labels, num_photos=3, seed=0)
    assert sorted(np.bincount(groups).tolist()) == [1, 1, 3, 3, 3]
    for group in range(groups.max() + 1):
        assert len(set(labels.category_nodes[groups == group])) == 1
        assert len(set(labels.brands[groups == group])) == 1


def test_a_path_is_evaluated_by_its_deepest_prefilled_category():
    calibration = Calibration(fields=(create_guarantee(PATH_FIELD, 0.5),), certifies={})
    listing = evaluate(PREDICTIONS, taxonomy=TAXONOMY, calibration=calibration)["listing"]
    path = listing["fields"][PATH_FIELD]
    # The Gala and the lemon are right; the third has the label 'apple', the leaf below it is a guess.
    assert (path["num"], path["num_filled"]) == (3, 3)
    assert path["precision"] in (pytest.approx(2 / 3), 1)
    assert listing["selective"]["category_depth_1"]["certified"]["threshold"] == 0.5
