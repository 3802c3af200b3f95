import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from training.evaluation.long_tail import LeafCounts, count_leaves, count_training_leaves, evaluate_by_frequency
from vision.manifest import Labels, Manifest

TAXONOMY = create_small_taxonomy()  # leaves gala, fuji, lemon, tools


def test_thirds_by_hand():
    counts = LeafCounts(np.array([10, 1000, 10, 5]), "somewhere")
    answers = np.array([1, 1, 0, 0, 0, 3, 3])
    labels = np.array([1, 1, 1, 0, 2, 3, -1])
    found = evaluate_by_frequency(answers, labels, counts, clusters=None)
    head, middle, tail = found["parts"]
    # Four categories in three parts: the first takes two, equal counts in the order of the taxonomy.
    assert [part["num_categories"] for part in found["parts"]] == [2, 1, 1]
    assert (head["least_photos"], head["most_photos"], head["num"]) == (10, 1000, 4)
    assert head["top1"] == 0.75
    assert head["macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert (middle["macro"], tail["macro"]) == (0, 1)
    assert (tail["least_photos"], tail["most_photos"], tail["num"]) == (5, 5, 1)


def test_fewer_categories_than_thirds():
    found = evaluate_by_frequency(np.array([1]), np.array([1]), LeafCounts(np.ones(4, int), "here"), clusters=None)
    assert [part["num_categories"] for part in found["parts"]] == [1, 0, 0]
    assert np.isnan(found["parts"][2]["macro"])
    assert found["parts"][2]["macro_interval"] == (0.0, 1.0)


def test_inner_labels_do_not_count():
    nodes = np.array([TAXONOMY.node_index[i] for i in ("gala", "gala", "apple", "tools")] + [-1])
    counts = count_leaves(Labels(category_nodes=nodes, brands=nodes), TAXONOMY, counted_on="here")
    assert counts.num_photos.tolist() == [2, 0, 0, 1]


def manifest(*rows) -> Manifest:
    return Manifest.from_rows(
        [{"listing_id": str(i), "photo": "x", "category": c, "split": s} for i, (c, s) in enumerate(rows)], ""
    )


def test_only_the_train_split_counts():
    counts = count_training_leaves(manifest(("gala", "train"), ("gala", "test"), ("lemon", "train")), TAXONOMY)
    assert counts.num_photos.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("rows", [[("gala", "test")], [("apple", "train")], [("spaceship", "train")]])
def test_a_train_split_that_says_nothing_is_none(rows):
    assert count_training_leaves(manifest(*rows), TAXONOMY) is None
