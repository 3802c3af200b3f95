import dataclasses

import pytest
import torch

from training.errors import RunError
from training.recipe import Recipe, Stage
from training.trainer.autotune import (
    LoaderSpeed,
    RangeTest,
    RateLoss,
    choose_heaviest_stage,
    estimate_minutes,
    measure_batch_sizes,
    measure_loader,
    run_range_test,
    suggest_smaller_batch,
)
from training.trainer.train_step import TrainStep
from vision.errors import ListingVisionError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

RECIPE = Recipe(stages=(Stage(photo_px=32, epochs=1),), backbone="test_efficientnet", weights="none", batch_size=16)


def create_range_test(points):
    return RangeTest(points, RECIPE.stages[0], 100, 10.0)


def test_a_recipe_takes_as_long_as_its_stages_are_large():
    recipe = Recipe(stages=(Stage(photo_px=64, epochs=2), Stage(photo_px=128, epochs=3)))
    minutes = estimate_minutes(recipe, 600, stage=recipe.stages[0], photos_per_s=10.0)
    assert minutes == pytest.approx(2 + 3 * 4)
    assert choose_heaviest_stage(recipe) == recipe.stages[1]


@pytest.fixture
def data(synthetic_dataset):
    return Manifest.load(str(synthetic_dataset / "manifest.parquet")), Taxonomy.load(
        synthetic_dataset / "taxonomy.json"
    )


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


def test_batch_sizes_double_until_memory_ends(monkeypatch):
    run = TrainStep.run

    def run_in_small_memory(train_step, step, stage, micro_batches, num_labelled):
        if len(micro_batches[0].rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(train_step, step, stage, micro_batches, num_labelled)

    monkeypatch.setattr(TrainStep, "run", run_in_small_memory)
    points = measure_batch_sizes(RECIPE, num_steps=2)
    assert [point.micro_batch for point in points] == [2, 4, 8]
    assert points[-1].describe() == "does not fit into memory"
    assert "photos/s" in points[0].describe()


def test_out_of_memory_is_answered_with_the_size_to_try():
    with (
        pytest.raises(RunError, match="does not hold 64 photos at once; try --micro-batch 32"),
        suggest_smaller_batch(64),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_loader_and_model_are_measured_apart(data):
    (speed,) = measure_loader(RECIPE, *data, num_photos=32)
    assert speed.stage.photo_px == RECIPE.stages[-1].photo_px
    assert speed.loader_photos_per_s > 0
    assert speed.model_photos_per_s > 0
    assert speed.describe_bottleneck()


@pytest.mark.parametrize(
    ("num_workers", "loader", "model", "verdict"),
    [
        (0, 30.0, 10.0, "one after the other 8 photos/s, 25% of the time is loading"),
        (4, 1.0, 9.0, "the loader is the limit"),
        (4, 9.0, 1.0, "the model is the limit"),
    ],
)
def test_verdict_names_what_holds_a_run_back(num_workers, loader, model, verdict):
    speed = LoaderSpeed(
        stage=RECIPE.stages[0],
        num_photos=100,
        num_workers=num_workers,
        loader_photos_per_s=loader,
        model_photos_per_s=model,
    )
    assert verdict in speed.describe_bottleneck()
