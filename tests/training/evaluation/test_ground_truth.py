import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from training.evaluation.ground_truth import (
    StepResults,
    build_ground_truth,
    evaluate_brands,
    evaluate_deepest_filled,
    evaluate_paths,
    find_labelled,
    merge_listing_labels,
)
from vision.manifest import OUT_OF_SCOPE, Labels
from vision.prediction.listings import Paths
from vision.taxonomy import OTHER_BRAND

TAXONOMY = create_small_taxonomy()


def nodes(*ids: str) -> np.ndarray:
    return np.array([TAXONOMY.node_index[i] if i else -1 for i in ids])


def create_paths(*leaves: str) -> Paths:
    columns = [TAXONOMY.leaf_ids.index(leaf) for leaf in leaves]
    nodes_ = TAXONOMY.leaf_paths[columns]
    return Paths(nodes_, np.where(nodes_ >= 0, 0.9, 0.0), np.full(len(nodes_), TAXONOMY.max_depth))


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
    truth = build_ground_truth(Labels(category_nodes=nodes(label), brands=np.array([-1])), TAXONOMY)
    verdicts = evaluate_paths(create_paths(answer), truth)
    assert verdicts.known[0].tolist() == [bool(k) for k in known]
    assert verdicts.right[0].tolist() == [bool(r) for r in right]


def test_an_inner_label_that_the_answer_leaves_makes_all_below_wrong():
    truth = build_ground_truth(Labels(category_nodes=nodes("tools"), brands=np.array([-1])), TAXONOMY)
    inner = truth._replace(leaves=np.array([-1]))  # as if 'tools' had children
    verdicts = evaluate_paths(create_paths("gala"), inner)
    assert verdicts.known[0].tolist() == [True, True, True]
    assert not verdicts.right.any()


def test_a_listing_takes_its_first_known_label():
    labels = Labels(category_nodes=nodes("", "gala", "lemon"), brands=np.array([-1, -1, 2]))
    joined = merge_listing_labels(labels, np.array([0, 0, 1]))
    assert joined.category_nodes.tolist() == nodes("gala", "lemon").tolist()
    assert joined.brands.tolist() == [-1, 2]


def test_truth_has_an_ancestor_at_each_known_depth():
    truth = build_ground_truth(
        Labels(category_nodes=nodes("fuji", "apple", "tools", ""), brands=np.zeros(4, int)), TAXONOMY
    )
    assert truth.nodes.tolist() == [
        nodes("fruit", "apple", "fuji").tolist(),
        [*nodes("fruit", "apple"), -1],
        [*nodes("tools"), -1, -1],
        [-1, -1, -1],
    ]
    assert truth.leaves.tolist() == [1, -1, 3, -1]


def test_the_deepest_filled_step_decides():
    known = np.ones((4, 2), bool)
    steps = StepResults(known, np.array([[1, 1], [1, 0], [1, 0], [1, 1]], bool))
    filled = np.array([[1, 1], [1, 1], [1, 0], [0, 0]], bool)
    assert evaluate_deepest_filled(filled, steps).tolist() == [True, False, True, False]


def test_every_step_is_wrong_where_the_taxonomy_does_not_cover_the_product():
    labels = Labels(category_nodes=np.array([OUT_OF_SCOPE, -1]), brands=np.full(2, -1))
    truth = build_ground_truth(labels, TAXONOMY)
    verdicts = evaluate_paths(create_paths("gala", "gala"), truth)
    assert verdicts.known.tolist() == [[True] * 3, [False] * 3]
    assert not verdicts.right.any()
    assert find_labelled(truth).tolist() == [True, False]


def test_no_brand_is_right_where_the_taxonomy_does_not_cover_the_product():
    labels = Labels(category_nodes=np.array([OUT_OF_SCOPE] * 3 + [0] * 3), brands=np.array([-1, 1, OTHER_BRAND] * 2))
    results = evaluate_brands(np.array([1, 1, OTHER_BRAND] * 2), build_ground_truth(labels, TAXONOMY))
    assert results.known.tolist() == [True, True, True, False, True, True]
    assert results.right.tolist() == [False, False, False, False, True, True]
