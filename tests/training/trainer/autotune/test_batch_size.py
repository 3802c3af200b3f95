import torch

from training.recipe import Recipe, Stage
from training.trainer.autotune.batch_size import measure_batch_sizes
from training.trainer.train_step import TrainStep

RECIPE = Recipe(stages=(Stage(photo_px=32, epochs=1),), backbone="test_efficientnet", weights="none", batch_size=16)


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
