import dataclasses

import pytest

from training.recipe import Recipe, Stage
from training.trainer.autotune.range_test import RangeTest, RateLoss, run_range_test
from vision.errors import ListingVisionError

RECIPE = Recipe(stages=(Stage(photo_px=32, epochs=1),), backbone="test_efficientnet", weights="none", batch_size=16)


def create_range_test(points):
    return RangeTest(points, RECIPE.stages[0], 100, 10.0)


def test_the_rate_is_suggested_where_the_loss_falls_fastest():
    losses = [4.0, 4.0, 3.9, 3.5, 2.5, 2.2, 2.1, 2.3, 5.0]
    points = create_range_test([RateLoss(10.0**i, loss) for i, loss in enumerate(losses)])
    assert points.suggest_factor() in (1e3, 1e4)


def test_a_loss_that_never_was_finite_has_no_suggestion():
    with pytest.raises(ListingVisionError, match="not finite from the start"):
        create_range_test([]).suggest_factor()


def test_range_test_grows_the_rate_and_ends_where_the_loss_explodes(data):
    wild = dataclasses.replace(RECIPE, head_learning_rate=1.0, backbone_learning_rate=1.0)
    points = run_range_test(wild, *data, num_steps=30).points
    factors = [point.factor for point in points]
    assert factors == sorted(factors)
    assert factors[0] == pytest.approx(1000**-0.5)
