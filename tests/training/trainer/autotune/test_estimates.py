import pytest

from training.recipe import Recipe, Stage
from training.trainer.autotune.estimates import choose_heaviest_stage, choose_last_stage, estimate_minutes
from vision.errors import ListingVisionError


def test_a_recipe_takes_as_long_as_its_stages_are_large():
    recipe = Recipe(stages=(Stage(photo_px=64, epochs=2), Stage(photo_px=128, epochs=3)))
    minutes = estimate_minutes(recipe, 600, stage=recipe.stages[0], photos_per_s=10.0)
    assert minutes == pytest.approx(2 + 3 * 4)
    assert choose_heaviest_stage(recipe) == recipe.stages[1]


def test_features_of_a_probe_take_a_forward_pass():
    probe = Stage(photo_px=64, epochs=100, trains="heads_on_features")
    recipe = Recipe(stages=(probe, Stage(photo_px=64, epochs=1)))
    minutes = estimate_minutes(recipe, 600, stage=recipe.stages[1], photos_per_s=10.0)
    assert minutes == pytest.approx(1 + 1 / 3 + 100 * 0.01 / 3)


def test_a_recipe_without_photos_in_its_steps_has_no_stage_to_measure():
    recipe = Recipe(stages=(Stage(photo_px=64, epochs=1, trains="heads_on_features"),))
    with pytest.raises(ListingVisionError, match="only trains heads_on_features"):
        choose_last_stage(recipe)
