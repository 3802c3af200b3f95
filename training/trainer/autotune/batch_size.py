"""Training speed of batch sizes, on synthetic photos."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from training.errors import RunError
from training.recipe import Recipe
from training.trainer.autotune.estimates import choose_heaviest_stage, create_single_rank
from training.trainer.autotune.loader_speed import measure_photos_per_s
from training.trainer.hardware import Machine
from training.trainer.loading.dataloader import Batch
from training.trainer.step_memory import choose_micro_batch
from training.trainer.train_step import TrainStep
from vision.manifest import Labels
from vision.taxonomy import Brand, Category, Taxonomy

__all__ = ["BatchSizeSpeed", "measure_batch_sizes"]


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
    ranks = create_single_rank()
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
        speed = measure_photos_per_s(train_step, stage, [batch], num_steps)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return BatchSizeSpeed(size, None, None)
    return BatchSizeSpeed(size, speed, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None)


def _create_random_batch(size: int, photo_px: int) -> Batch:
    photos = torch.randint(0, 256, (size, photo_px, photo_px, 3), dtype=torch.uint8)
    return Batch(photos, torch.ones(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64),
                 torch.arange(size), torch.arange(size), [""] * size)  # fmt: skip


def _create_random_taxonomy() -> Taxonomy:
    tree = [Category(id="all", names={"en": "All"}, parent_id=None)]
    tree += [Category(id=f"c{i}", names={"en": f"C{i}"}, parent_id="all") for i in range(100)]
    brands = tuple(Brand(id=f"b{i}", names={"en": f"B{i}"}) for i in range(10))
    return Taxonomy(version="invented", categories=tuple(tree), brands=brands)
