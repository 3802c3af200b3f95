"""Settings that suit a machine and a data set, found by measuring: learning rates, batch sizes, data loader."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from training.errors import RunError
from training.recipe import Recipe, Stage
from training.trainer.distributed import Ranks
from training.trainer.hardware import Machine
from training.trainer.loading.dataloader import Batch, create_training_batches
from training.trainer.loading.sampler import ResumableBatchSampler
from training.trainer.losses import NumLabelled
from training.trainer.progress import compute_work
from training.trainer.step_memory import choose_micro_batch
from training.trainer.train_step import TrainStep
from vision.errors import ListingVisionError
from vision.manifest import Labels, Manifest
from vision.taxonomy import Brand, Category, Taxonomy

__all__ = [
    "BatchSizeSpeed",
    "LoaderSpeed",
    "RangeTest",
    "RateLoss",
    "choose_heaviest_stage",
    "estimate_minutes",
    "measure_batch_sizes",
    "measure_loader",
    "run_range_test",
    "suggest_smaller_batch",
]

_GROWTH = 1000.0
_SMOOTHING = 0.9
"""Weight of the previous value in the running mean of the loss."""


def estimate_minutes(recipe: Recipe, num_photos: int, *, stage: Stage, photos_per_s: float) -> float:
    """How long the recipe takes for so many training photos where one of its stages has this speed; val is left out."""
    work = sum(compute_work(each) * each.epochs for each in recipe.stages)
    return work / compute_work(stage) * num_photos / photos_per_s / 60


@contextmanager
def suggest_smaller_batch(micro_batch: int) -> Iterator[None]:
    """Turn an out-of-memory error of the GPU into a RunError that suggests a smaller micro-batch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = max(2, micro_batch // 2)
        raise RunError(
            f"the GPU's memory does not hold {micro_batch} photos at once; try --micro-batch {smaller} (the step "
            "keeps its size), or activation_checkpointing = true; `listing-vision tune batch-size` finds the best one "
            f"({str(error).splitlines()[0]})"
        ) from error


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
    ranks = _single_rank()
    train = manifest.select_split("train")
    labels = train.resolve_labels(taxonomy)
    machine = Machine(micro_batch=micro_batch)
    stage = _last_stage_on_photos(recipe)
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


@dataclass(frozen=True)
class BatchSizeSpeed:
    micro_batch: int
    photos_per_s: float | None
    """None: does not fit into memory."""
    memory_gib: float | None
    """Peak allocation; None on a CPU."""

    def describe(self) -> str:
        if self.photos_per_s is None:
            return "does not fit into memory"
        used = f", {self.memory_gib:.1f} GiB" if self.memory_gib is not None else ""
        return f"{self.photos_per_s:.0f} photos/s{used}"


def measure_batch_sizes(recipe: Recipe, *, largest: int = 1024, num_steps: int = 4) -> list[BatchSizeSpeed]:
    """Training speed at 2, 4, 8, … photos at once, until memory ends, `largest` is reached or speed has fallen by a
    tenth.

    On a CPU sizes that its free memory would not hold are not tried.
    """
    points: list[BatchSizeSpeed] = []
    size = 2
    while size <= largest:
        point = _measure_batch_size(recipe, size, num_steps)
        points.append(point)
        best = max((p.photos_per_s or 0.0) for p in points)
        if point.photos_per_s is None or (size >= 16 and point.photos_per_s < 0.9 * best):
            break
        size *= 2
    if points[0].photos_per_s is None:
        raise RunError(f"not even 2 photos of {recipe.backbone} fit into memory; use a smaller backbone or photo_px")
    return points


def _measure_batch_size(recipe: Recipe, size: int, num_steps: int) -> BatchSizeSpeed:
    ranks = _single_rank()
    on_gpu = ranks.device.type == "cuda"
    recipe = dataclasses.replace(recipe, batch_size=size, weights="none", distillation_weight=0.0)
    stage = choose_heaviest_stage(recipe)
    batch = _create_random_batch(size, stage.photo_px)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        train_step = TrainStep(
            recipe,
            taxonomy=_create_random_taxonomy(),
            train_labels=Labels(category_nodes=np.zeros(size, np.int64), brands=np.zeros(size, np.int64)),
            machine=Machine(augment_on="loader"),
            ranks=ranks,
        )
        if choose_micro_batch(Machine(), train_step.model, recipe, ranks):
            return BatchSizeSpeed(size, None, None)
        speed = _measure_photos_per_s(train_step, stage, batch, num_steps)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return BatchSizeSpeed(size, None, None)
    return BatchSizeSpeed(size, speed, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None)


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    stage: Stage
    """With the speed of the model."""
    num_photos: int
    """In the train split."""
    num_workers: int
    loader_photos_per_s: float
    model_photos_per_s: float

    @property
    def photos_per_s(self) -> float:
        """Speed of both together; with loader processes the slower one decides."""
        if self.num_workers == 0:
            return 1 / (1 / self.loader_photos_per_s + 1 / self.model_photos_per_s)
        return min(self.loader_photos_per_s, self.model_photos_per_s)

    def describe_bottleneck(self) -> str:
        if self.num_workers == 0:
            share = self.photos_per_s / self.loader_photos_per_s
            return f"one after the other {self.photos_per_s:.0f} photos/s, {share:.0%} of the time is loading"
        if self.loader_photos_per_s < self.model_photos_per_s:
            return "the loader is the limit; give more --workers or smaller files"
        return "the model is the limit"


def measure_loader(recipe: Recipe, manifest: Manifest, taxonomy: Taxonomy, *, num_photos: int) -> list[LoaderSpeed]:
    """Speed of the data loader alone and of the model alone, at every photo size of the recipe."""
    ranks = _single_rank()
    train = manifest.select_split("train")
    labels = train.resolve_labels(taxonomy)
    machine = Machine()
    num_workers = machine.count_workers(ranks.device)
    speeds = []
    for photo_px in dict.fromkeys(stage.photo_px for stage in recipe.stages):
        stage = next(s for s in reversed(recipe.stages) if s.photo_px == photo_px)
        if stage.trains == "heads_on_features":
            continue
        epochs = 1 + num_photos // len(train)
        one = dataclasses.replace(recipe, stages=(dataclasses.replace(stage, epochs=epochs),))
        loader = create_training_batches(
            train,
            labels,
            one,
            ResumableBatchSampler(train, labels, one),
            num_workers=num_workers,
            only_crop=machine.augments_on_device(ranks.device),
        )
        batches = iter(loader)
        first = next(batches)
        begun_s, loaded = time.perf_counter(), 0
        for batch in batches:
            loaded += len(batch.rows)
            if loaded >= num_photos:
                break
        loader_speed = loaded / max(1e-9, time.perf_counter() - begun_s)
        train_step = TrainStep(one, taxonomy=taxonomy, train_labels=labels, machine=machine, ranks=ranks)
        num_steps = max(2, num_photos // recipe.batch_size // 4)
        speeds.append(
            LoaderSpeed(
                stage=stage,
                num_photos=len(train),
                num_workers=num_workers,
                loader_photos_per_s=loader_speed,
                model_photos_per_s=_measure_photos_per_s(train_step, stage, first, num_steps),
            )
        )
    return speeds


def _measure_photos_per_s(train_step: TrainStep, stage: Stage, batch: Batch, num_steps: int) -> float:
    num_labelled = NumLabelled.from_labels(batch.category_nodes.numpy(), batch.brands.numpy())
    seconds = []
    for step in range(num_steps + 1):
        begun_s = time.perf_counter()
        # Reading the loss waits until the device is done.
        train_step.run(step, stage, [batch], num_labelled).read()
        seconds.append(time.perf_counter() - begun_s)
    # The first step allocates and, on a GPU, compiles.
    return len(batch.rows) / float(np.median(seconds[1:]))


def choose_heaviest_stage(recipe: Recipe) -> Stage:
    """The stage whose steps take the most memory and time.

    Raises:
        ListingVisionError: no step runs photos through the model.
    """
    _last_stage_on_photos(recipe)
    return max(recipe.stages, key=compute_work)


def _last_stage_on_photos(recipe: Recipe) -> Stage:
    stages = [stage for stage in recipe.stages if stage.trains != "heads_on_features"]
    if not stages:
        raise ListingVisionError("this recipe only trains heads_on_features, so no step runs photos through the model")
    return stages[-1]


def _single_rank() -> Ranks:
    return Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _create_random_batch(size: int, photo_px: int) -> Batch:
    photos = torch.randint(0, 256, (size, photo_px, photo_px, 3), dtype=torch.uint8)
    return Batch(photos, torch.ones(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64),
                 torch.arange(size), torch.arange(size), [""] * size)  # fmt: skip


def _create_random_taxonomy() -> Taxonomy:
    tree = [Category(id="all", names={"en": "All"}, parent_id=None)]
    tree += [Category(id=f"c{i}", names={"en": f"C{i}"}, parent_id="all") for i in range(100)]
    brands = tuple(Brand(id=f"b{i}", names={"en": f"B{i}"}) for i in range(10))
    return Taxonomy(version="invented", categories=tuple(tree), brands=brands)
