import dataclasses

import pytest
import torch

from training.errors import RunError
from training.recipe import Recipe, Stage
from training.trainer import autotune
from training.trainer.autotune import (
    RangePoints,
    RatePoint,
    Speed,
    batch_size_test,
    loader_test,
    range_test,
    telling_of_memory,
)
from vision.errors import ListingVisionError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

RECIPE = Recipe(stages=(Stage(photo_px=32, epochs=1),), backbone="test_efficientnet", weights="none", batch_size=16)


@pytest.fixture
def data(synthetic_dataset):
    return Manifest.load(str(synthetic_dataset / "manifest.parquet")), Taxonomy.load(
        synthetic_dataset / "taxonomy.json"
    )


def test_the_rate_is_suggested_where_the_loss_falls_fastest():
    losses = [4.0, 4.0, 3.9, 3.5, 2.5, 2.2, 2.1, 2.3, 5.0]
    points = RangePoints([RatePoint(10.0**i, loss) for i, loss in enumerate(losses)])
    assert points.suggestion() in (1e3, 1e4)


def test_a_loss_that_never_was_finite_has_no_suggestion():
    with pytest.raises(ListingVisionError, match="not finite from the start"):
        RangePoints([]).suggestion()


def test_range_test_grows_the_rate_and_ends_where_the_loss_explodes(data):
    wild = dataclasses.replace(RECIPE, head_learning_rate=1.0, backbone_learning_rate=1.0)
    points = range_test(wild, *data, num_steps=30).points
    factors = [point.factor for point in points]
    assert factors == sorted(factors)
    assert factors[0] == pytest.approx(1000**-0.5)


def test_batch_sizes_double_until_memory_ends(monkeypatch):
    real = autotune._try_size

    def small_memory(recipe, size, num_steps):
        return real(recipe, size, num_steps) if size <= 4 else autotune.SizePoint(size, None, None)

    monkeypatch.setattr(autotune, "_try_size", small_memory)
    points = batch_size_test(RECIPE, num_steps=2)
    assert [point.micro_batch for point in points] == [2, 4, 8]
    assert points[-1].outcome() == "does not fit into memory"
    assert "photos/s" in points[0].outcome()


def test_out_of_memory_is_answered_with_the_size_to_try():
    with pytest.raises(RunError, match="does not hold 64 photos at once; try --micro-batch 32"), telling_of_memory(64):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_loader_and_model_are_measured_apart(data):
    (speed,) = loader_test(RECIPE, *data, num_photos=32)
    assert speed.photo_px == RECIPE.stages[-1].photo_px
    assert speed.loader_photos_per_s > 0
    assert speed.model_photos_per_s > 0
    assert speed.verdict()


@pytest.mark.parametrize(
    ("num_workers", "loader", "model", "verdict"),
    [
        (0, 30.0, 10.0, "one after the other 8 photos/s, 25% of the time is loading"),
        (4, 1.0, 9.0, "the loader holds the model up"),
        (4, 9.0, 1.0, "the model is the limit"),
    ],
)
def test_verdict_names_what_holds_a_run_back(num_workers, loader, model, verdict):
    speed = Speed(photo_px=32, num_workers=num_workers, loader_photos_per_s=loader, model_photos_per_s=model)
    assert verdict in speed.verdict()
