"""How many photos the memory holds at once in a training step."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.errors import RunError
from training.recipe import Recipe
from training.trainer.distributed import Ranks
from training.trainer.hardware import Machine
from vision.model import ListingClassifier
from vision.runtime.memory import measure_available_memory

__all__ = ["choose_micro_batch", "fit_micro_batch", "measure_bytes_per_photo", "suggest_smaller_batch"]

_log = logging.getLogger(__name__)

_PEAK_TO_SAVED = 1.4
"""Memory of a step against the activations saved for its backward pass: 0.6 to 1.2 measured on `tf_efficientnet_lite0`
(8 and 32 photos of 160 px), `convnext_tiny` (4) and `vit_small_patch16_224` (8 of 224 px)."""
_COPIES_OF_WEIGHTS = 5
"""Gradients, two moments of AdamW, the best epoch's weights, and those of a checkpoint being written."""


def choose_micro_batch(machine: Machine, model: ListingClassifier, recipe: Recipe, ranks: Ranks) -> int | None:
    """What the machine is told, else on a CPU what its free memory holds; None for whole batches."""
    if machine.micro_batch or ranks.device.type != "cpu":
        return machine.micro_batch
    available = measure_available_memory()
    if available is None:
        return None
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = -(-recipe.batch_size // ranks.world_size)
    fitting = fit_micro_batch(model, recipe, share=share, available=available // num_local)
    return None if fitting == share else fitting


def fit_micro_batch(model: ListingClassifier, recipe: Recipe, *, share: int, available: int) -> int:
    """The most photos at once that fit, `share` or a half, a quarter, … of it.

    Args:
        model: on a CPU.
        recipe: of the run.
        share: photos of a step of this rank.
        available: bytes.

    Raises:
        RunError: not even two fit.
    """
    sizes_px = [stage.photo_px for stage in recipe.stages if stage.trains == "all"]
    if not sizes_px:
        return share
    fixed = _COPIES_OF_WEIGHTS * sum(p.numel() * p.element_size() for p in model.parameters())
    per_photo = _PEAK_TO_SAVED * measure_bytes_per_photo(model, max(sizes_px))
    fitting = share
    while fitting > 2 and fixed + fitting * per_photo > available:
        fitting = -(-fitting // 2)
    what = f"{recipe.backbone} at {max(sizes_px)} px"
    if fixed + fitting * per_photo > available:
        raise RunError(
            f"{what} needs about {(fixed + 2 * per_photo) / 2**30:.1f} GiB for two photos, and "
            f"{available / 2**30:.1f} GiB are free; use a smaller backbone or photo_px, activation_checkpointing = "
            "true, or --micro-batch 2 to try all the same"
        )
    if fitting < share:
        _log.warning(
            "%s: a step of %d photos needs about %.1f GiB, and %.1f GiB are free: %d photos at once (--micro-batch %d)",
            *(what, share, (fixed + share * per_photo) / 2**30, available / 2**30, fitting, fitting),
        )
    return fitting


def measure_bytes_per_photo(model: ListingClassifier, photo_px: int) -> float:
    """Activations that a forward pass saves for the backward pass; the model is not changed."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    photos = torch.zeros(2, photo_px, photo_px, 3, dtype=torch.uint8)
    # Batch norm would count these photos in its running statistics.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = torch.func.functional_call(model, buffers, (photos,))
    del kept
    return sum(saved.values()) / len(photos)


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
