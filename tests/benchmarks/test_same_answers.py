"""What counts as another answer."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.same_answers import Answer, compare_answers

ANSWER = Answer(
    path=("fashion", "shoes"),
    brand=("brand", "ringo"),
    filled=("shoes", True),
    path_probabilities=(0.9, 0.6),
    brand_probability=0.8,
    leaves={"shoes": 0.6, "bags": 0.3, "mugs": 0.1},
    embedding=np.zeros(4, np.float32),
)


def compare(now, before=ANSWER):
    return compare_answers({"1": ANSWER, "2": now}, {"1": ANSWER, "2": before}, temperature=2.0)


def test_the_same_answer_differs_in_nothing():
    assert not any(compare(ANSWER).values())


@pytest.mark.parametrize("filled", [("fashion", True), ("", True), ("shoes", False)])
def test_another_field_that_is_filled_is_another_action(filled):
    assert compare(replace(ANSWER, filled=filled))["changed_actions"] == 1


def test_differences_are_the_largest_of_all_listings():
    found = compare(
        replace(
            ANSWER,
            path_probabilities=(0.9, 0.61),
            brand_probability=0.78,
            embedding=np.array([0, 0, -0.5, 0.25], np.float32),
        )
    )
    assert found["max_category_probability_difference"] == pytest.approx(0.01)
    assert found["max_brand_probability_difference"] == pytest.approx(0.02)
    assert found["max_embedding_difference"] == 0.5
    assert found["changed_actions"] == found["changed_categories"] == found["changed_brands"] == 0


def test_logits_are_compared_up_to_a_constant():
    """A logit that is larger by 0.3, at a temperature of 2."""
    weights = {"shoes": 0.6 * math.exp(0.3 / 2), "bags": 0.3, "mugs": 0.1}
    leaves = {leaf: weight / sum(weights.values()) for leaf, weight in weights.items()}
    assert compare(replace(ANSWER, leaves=leaves))["max_logit_difference"] == pytest.approx(0.3 * 2 / 3)


def test_a_brand_that_one_answer_leaves_undetermined_is_compared_no_further():
    undetermined = replace(ANSWER, brand=("undetermined", ""), brand_probability=0.0)
    assert not any(compare(undetermined).values())
    assert not any(compare(ANSWER, undetermined).values())
    assert compare(replace(ANSWER, brand=("no_brand", "")))["changed_brands"] == 1


def test_a_listing_without_answer_is_told():
    with pytest.raises(SystemExit, match="not every listing was answered by both"):
        compare_answers({"1": ANSWER}, {"1": ANSWER, "2": ANSWER}, temperature=1.0)
