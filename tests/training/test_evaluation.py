import numpy as np
import pytest

from tests.helpers import small_taxonomy
from training.evaluation import (
    Truth,
    evaluate,
    format_table,
    judge_paths,
    listing_labels,
    pseudo_listings,
    truth_by_depth,
    without_nan,
)
from training.predictions import Predictions, predict
from vision.decision import BRAND_FIELD, Calibration, Field, Paths, field_name
from vision.engine import OnnxEngine
from vision.errors import ManifestError
from vision.manifest import Labels, Manifest

TAXONOMY = small_taxonomy()


def nodes(*ids: str) -> np.ndarray:
    return np.array([TAXONOMY.node_index[i] if i else -1 for i in ids])


def one_hot(columns, width):
    return (np.eye(width)[columns] * 20).astype(np.float32)


# Three listings: two photos of a Gala (one taken for a Fuji), one lemon, one labelled only 'apple'.
PREDICTIONS = Predictions(
    category_logits=one_hot([0, 1, 2, 1], 4) * np.array([[2], [1], [1], [1]], np.float32),
    brand_logits=one_hot([1, 0, 0, 2], 3) * np.array([[2], [1], [1], [1]], np.float32),
    labels=Labels(category_nodes=nodes("gala", "gala", "lemon", "apple"), brands=np.array([1, 1, 0, -1])),
    groups=np.array([0, 0, 1, 2]),
    listing_ids=("a", "b", "c"),
    photo_urls=("0.jpg", "1.jpg", "2.jpg", "3.jpg"),
    unusable=("x.jpg: gone",),
)


def promise(name, threshold):
    return Field(name=name, alpha=0.05, delta=0.01, threshold=threshold, num_listings=9, num_filled=9, num_errors=0)


def test_figures_by_hand():
    calibration = Calibration(fields=(promise(field_name(1), 0.5), promise(BRAND_FIELD, None)), certifies={})
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
    assert listing["fields"]["category_depth_1"]["coverage"] == 1
    assert listing["fields"]["category_depth_1"]["precision"] == 1
    assert listing["fields"]["brand"]["num_filled"] == 0
    assert figures["num_unusable_photos"] == 1
    table = format_table(figures)
    assert "brand: never filled, only suggested" in table
    assert "1 photos could not be used" in table


def paths_of(*leaves: str) -> Paths:
    columns = [TAXONOMY.leaf_ids.index(leaf) for leaf in leaves]
    nodes_ = TAXONOMY.leaf_paths[columns]
    return Paths(nodes_, np.where(nodes_ >= 0, 0.9, 0.0))


@pytest.mark.parametrize(
    ("answer", "label", "known", "right"),
    [
        ("gala", "gala", [1, 1, 1], [1, 1, 1]),
        ("fuji", "gala", [1, 1, 1], [1, 1, 0]),
        ("gala", "lemon", [1, 1, 1], [1, 0, 0]),  # deeper than the true leaf is wrong, not unknown
        ("gala", "tools", [1, 1, 1], [0, 0, 0]),
        ("tools", "gala", [1, 0, 0], [0, 0, 0]),  # what is not answered is not judged
        ("lemon", "gala", [1, 1, 0], [1, 0, 0]),
        ("gala", "apple", [1, 1, 0], [1, 1, 0]),  # an inner label says nothing of what stands below it …
        ("lemon", "apple", [1, 1, 0], [1, 0, 0]),
        ("tools", "apple", [1, 0, 0], [0, 0, 0]),
        ("gala", "fruit", [1, 0, 0], [1, 0, 0]),
        ("gala", "", [0, 0, 0], [0, 0, 0]),
    ],
)
def test_verdicts_on_each_step(answer, label, known, right):
    truth = truth_by_depth(Labels(category_nodes=nodes(label), brands=np.array([-1])), TAXONOMY)
    verdicts = judge_paths(paths_of(answer), truth)
    assert verdicts.known[0].tolist() == [bool(k) for k in known]
    assert verdicts.right[0].tolist() == [bool(r) for r in right]


def test_an_inner_label_that_the_answer_leaves_makes_all_below_wrong():
    truth = truth_by_depth(Labels(category_nodes=nodes("tools"), brands=np.array([-1])), TAXONOMY)
    inner = Truth(truth.nodes, np.array([-1]), truth.brands)  # as if 'tools' had children
    verdicts = judge_paths(paths_of("gala"), inner)
    assert verdicts.known[0].tolist() == [True, True, True]
    assert not verdicts.right.any()


def test_a_listing_takes_its_first_known_label():
    labels = Labels(category_nodes=nodes("", "gala", "lemon"), brands=np.array([-1, -1, 2]))
    joined = listing_labels(labels, np.array([0, 0, 1]))
    assert joined.category_nodes.tolist() == nodes("gala", "lemon").tolist()
    assert joined.brands.tolist() == [-1, 2]


def test_nan_becomes_null():
    assert without_nan({"a": float("nan"), "b": [(1.0, float("nan"))]}) == {"a": None, "b": [[1.0, None]]}


def test_truth_has_an_ancestor_at_each_known_depth():
    truth = truth_by_depth(
        Labels(category_nodes=nodes("fuji", "apple", "tools", ""), brands=np.zeros(4, int)), TAXONOMY
    )
    assert truth.nodes.tolist() == [
        nodes("fruit", "apple", "fuji").tolist(),
        [*nodes("fruit", "apple"), -1],
        [*nodes("tools"), -1, -1],
        [-1, -1, -1],
    ]
    assert truth.leaves.tolist() == [1, -1, 3, -1]


def test_pseudo_listings_hold_photos_of_one_category():
    labels = Labels(category_nodes=np.repeat([3, 5, 1], [7, 3, 1]), brands=np.zeros(11, int))
    groups = pseudo_listings(labels, num_photos=3, seed=0)
    assert sorted(np.bincount(groups).tolist()) == [1, 1, 3, 3, 3]
    for group in range(groups.max() + 1):
        assert len(set(labels.category_nodes[groups == group])) == 1


def test_unusable_photos_are_counted_and_the_rest_judged(bundle, drawn, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    rows = Manifest.load(str(drawn / "manifest.parquet")).where_split("test").table.to_pylist()
    rows = [{**row, "photo": f"{drawn}/{row['photo']}"} for row in rows]
    rows.insert(2, {**rows[0], "photo": str(tmp_path / "cut.jpg")})
    infer = OnnxEngine(bundle).infer
    predictions = predict(Manifest.from_rows(rows, ""), bundle.taxonomy, bundle.info.preprocessing, infer, batch_size=5)
    assert len(predictions.category_logits) == len(rows) - 1
    assert len(predictions.unusable) == 1
    assert "cut.jpg" in predictions.unusable[0]
    with pytest.raises(ManifestError, match="no photo of the manifest can be used"):
        predict(Manifest.from_rows(rows[2:3], ""), bundle.taxonomy, bundle.info.preprocessing, infer)
