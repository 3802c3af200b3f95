"""Learning-rate range test."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from training.recipe import Recipe, Stage
from training.trainer.autotune.estimates import choose_last_stage, create_single_rank
from training.trainer.hardware import Machine
from training.trainer.loading.dataloader import create_training_batches
from training.trainer.loading.sampler import ResumableBatchSampler
from training.trainer.losses import NumLabelled
from training.trainer.step_memory import choose_micro_batch
from training.trainer.train_step import TrainStep
from vision.errors import ListingVisionError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

__all__ = ["RangeTest", "RateLoss", "run_range_test"]

_GROWTH = 1000.0
_SMOOTHING = 0.9
"""Weight of the previous value in the running mean of the loss."""


@dataclass(frozen=True)
class RateLoss:
    factor: float
    """Multiplier of the recipe's learning rates."""
    loss: float
    """Running mean with bias correction."""


@dataclass(frozen=True)
class RangeTest:
    points: Sequence[RateLoss]
    stage: Stage
    """In which it ran."""
    num_photos: int
    """In the train split."""
    photos_per_s: float

    def thin_out(self) -> Sequence[RateLoss]:
        """About a dozen evenly spaced points, for display."""
        return self.points[:: max(1, len(self.points) // 12)]

    def suggest_factor(self) -> float:
        """The factor at which the loss falls most steeply against the log of the rate."""
        losses = np.array([point.loss for point in self.points])
        if len(losses) < 3:
            raise ListingVisionError("the loss was not finite from the start; lower the recipe's learning rates")
        slopes = np.gradient(losses[: int(losses.argmin()) + 1]) if losses.argmin() >= 2 else np.gradient(losses)
        return self.points[int(slopes.argmin())].factor


def run_range_test(
    recipe: Recipe, manifest: Manifest, taxonomy: Taxonomy, *, num_steps: int = 100, micro_batch: int | None = None
) -> RangeTest:
    """Losses while the rates grow from 1/30 to 30 times the recipe's; the test ends early if the loss diverges.

    Args:
        recipe: with the rates to vary.
        manifest: with a train split.
        taxonomy: of its labels.
        num_steps: at most.
        micro_batch: photos at once; None for what the memory holds.

    Source: Smith, WACV 2017, section 3.3.
    """
    ranks = create_single_rank()
    train = manifest.select_split("train")
    labels = train.resolve_labels(taxonomy, out_of_scope=recipe.outlier_exposure_weight > 0)
    machine = Machine(micro_batch=micro_batch)
    stage = choose_last_stage(recipe)
    epochs = -(-num_steps // max(1, len(train) // recipe.batch_size))
    recipe = dataclasses.replace(recipe, stages=(dataclasses.replace(stage, epochs=epochs),))
    train_step = TrainStep(recipe, taxonomy=taxonomy, train_labels=labels, machine=machine, ranks=ranks)
    sampler = ResumableBatchSampler(
        train, labels, recipe, micro_batch=choose_micro_batch(machine, train_step.model, recipe, ranks)
    )
    loader = create_training_batches(
        train,
        labels,
        recipe,
        sampler,
        num_workers=machine.count_workers(ranks.device),
        only_crop=machine.augments_on_device(ranks.device),
    )
    mean, best, points = 0.0, math.inf, []
    source, begun_s = iter(loader), time.perf_counter()
    for step in range(num_steps):
        micro_batches = list(islice(source, sampler.micro_batches_per_step))
        rows = sampler.get_step_rows(step)
        factor = _GROWTH ** (step / (num_steps - 1) - 0.5)
        for group in train_step.optimizer.param_groups:
            group["lr"] = recipe.backbone_learning_rate * group["lr_scale"] * factor
        num_labelled = NumLabelled.from_labels(labels.category_nodes[rows], labels.brands[rows])
        loss, _ = train_step.run(step, recipe.stages[0], micro_batches, num_labelled).read()
        if not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        corrected = mean / (1 - _SMOOTHING ** (step + 1))
        best = min(best, corrected)
        points.append(RateLoss(factor, corrected))
        if step > 10 and corrected > 4 * best:
            break
    photos_per_s = (step + 1) * recipe.batch_size / (time.perf_counter() - begun_s)
    return RangeTest(points, stage, len(train), photos_per_s)
