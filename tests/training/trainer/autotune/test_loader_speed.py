import dataclasses

import pytest

from training.errors import RunError
from training.recipe import Recipe, Stage
from training.trainer.autotune.loader_speed import LoaderSpeed, ProbeSpeed, RecipeSpeed, measure_loader
from training.trainer.train_step import TrainStep

RECIPE = Recipe(stages=(Stage(photo_px=32, epochs=1),), backbone="test_efficientnet", weights="none", batch_size=16)
PROBE = dataclasses.replace(RECIPE, stages=(Stage(photo_px=32, epochs=3, trains="heads_on_features"),))


def test_loader_and_model_are_measured_apart(data):
    measured = measure_loader(RECIPE, *data, num_photos=32)
    (speed,) = measured.loaders
    assert speed.stage.photo_px == RECIPE.stages[-1].photo_px
    assert speed.loader_photos_per_s > 0
    assert speed.model_photos_per_s > 0
    assert speed.describe_bottleneck()
    assert not measured.probes


def test_a_probe_is_measured_by_its_features_and_its_heads(data):
    measured = measure_loader(PROBE, *data, num_photos=32)
    (probe,) = measured.probes
    assert (probe.photo_px, probe.epochs) == (32, 3)
    assert probe.features_photos_per_s > 0
    assert probe.heads_photos_per_s > 0
    assert not measured.loaders
    assert measured.estimate_minutes() > 0


def test_a_recipe_takes_its_features_once_and_its_epochs_each():
    stages = (*PROBE.stages, Stage(photo_px=32, epochs=2), Stage(photo_px=64, epochs=1))
    loader = LoaderSpeed(stage=stages[-1], num_workers=1, loader_photos_per_s=10.0, model_photos_per_s=20.0)
    probe = ProbeSpeed(photo_px=32, epochs=3, features_photos_per_s=20.0, heads_photos_per_s=100.0)
    speed = RecipeSpeed(
        recipe=dataclasses.replace(RECIPE, stages=stages), num_photos=600, loaders=[loader], probes=[probe]
    )
    on_photos, on_features = 600 / 10 * (1 + 2 / 4), 600 / 20 + 3 * 600 / 100
    assert speed.estimate_minutes() == pytest.approx((on_photos + on_features) / 60)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_step_has_the_micro_batches_that_memory_holds_or_the_caller_asks_for(data, monkeypatch, micro_batch):
    sizes = set()
    run = TrainStep.run

    def run_and_note(train_step, step, stage, micro_batches, num_labelled):
        sizes.update(len(batch.rows) for batch in micro_batches)
        return run(train_step, step, stage, micro_batches, num_labelled)

    monkeypatch.setattr(TrainStep, "run", run_and_note)
    monkeypatch.setattr("training.trainer.step_memory.fit_micro_batch", lambda *_, **__: 4)
    measure_loader(RECIPE, *data, num_photos=32, micro_batch=micro_batch)
    assert sizes
    assert max(sizes) <= 4


def test_a_model_too_large_for_the_memory_is_refused_before_its_first_step(data, monkeypatch):
    monkeypatch.setattr("training.trainer.step_memory.measure_available_memory", lambda: 1)
    with pytest.raises(RunError, match="use a smaller backbone or photo_px"):
        measure_loader(RECIPE, *data, num_photos=32)


def test_a_recipe_with_a_teacher_is_measured_without_it(data):
    recipe = dataclasses.replace(RECIPE, distillation_weight=0.5)
    assert measure_loader(recipe, *data, num_photos=32).loaders


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
        num_workers=num_workers,
        loader_photos_per_s=loader,
        model_photos_per_s=model,
    )
    assert verdict in speed.describe_bottleneck()
