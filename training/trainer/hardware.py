"""Settings of a training run that depend on the machine: they change the speed, not what is learnt."""

import logging
import os
from dataclasses import dataclass
from typing import Literal

import torch

from training.errors import RunError
from training.field_types import find_wrong_type
from training.recipe import list_shipped_recipes, read_about
from vision.runtime.cpus import count_usable_cores

__all__ = ["Machine", "warn_without_gpu"]

_log = logging.getLogger(__name__)

MIN_WORKERS_TO_AUGMENT = 12
"""Loader processes that distort photos faster than a GPU does one by one: 1,300 photos/s against 750 with 15 beside an
H100, `tf_efficientnet_lite2` at 224 px, batch 64, not compiled (benchmarks/results/gpu.json, training)."""

Precision = Literal["auto", "bf16", "fp16", "fp32"]
AugmentOn = Literal["auto", "loader", "device"]
DecodeOn = Literal["loader", "device"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How one rank works. The defaults follow the machine."""

    micro_batch: int | None = None
    """Most photos that go through the model at once; a step's share of the rank is cut into equal parts no larger."""
    num_workers: int | None = None
    """Loader processes. Default: as many as cores on a CPU, two at most (`benchmarks.training_speed` prints what they
    give); all cores of the rank but one beside a GPU, 16 at most."""
    precision: Precision = "auto"
    """Precision of the forward pass. auto: bf16 on a GPU that has it, fp16 with loss scaling on an older one, fp32 on a
    CPU."""
    augment_on: AugmentOn = "auto"
    """Where flips, colours and erasing happen. auto: in the loader, unless a GPU has fewer than
    `MIN_WORKERS_TO_AUGMENT` loader processes beside it, or decodes."""
    decode_on: DecodeOn = "loader"
    """Where plain JPEGs are decoded and cropped. device: for GPU nodes whose CPUs are too few; other photos stay with
    the loader, and flips, colours and erasing happen on the device too."""
    compile: bool | None = None
    """torch.compile. Default: on a GPU."""
    keep_checkpoints: int = 2
    max_bad_photo_share: float = 0.01
    """Largest share of unusable training photos; above it the run stops."""

    def __post_init__(self) -> None:
        if wrong := find_wrong_type(self):
            name, way_out = wrong
            raise RunError(f"{name} = {getattr(self, name)!r}: {way_out}")
        if self.decode_on == "device" and self.augment_on == "loader":
            raise RunError(
                "augment_on = 'loader': the loader has no pixels with decode_on = 'device'; leave augment_on at 'auto'"
            )
        if self.micro_batch is not None and self.micro_batch < 2:
            raise RunError(f"micro_batch = {self.micro_batch}: batch norm needs at least 2")
        if self.keep_checkpoints < 1:
            raise RunError(f"keep_checkpoints = {self.keep_checkpoints}: use at least 1")
        if not 0 <= self.max_bad_photo_share <= 1:
            raise RunError(f"max_bad_photo_share = {self.max_bad_photo_share}: use a share in 0..1")

    def count_workers(self, device: torch.device) -> int:
        if self.num_workers is not None:
            return self.num_workers
        cores = count_usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device.type != "cuda":
            return min(2, cores)
        return min(16, max(1, cores - 1))

    def choose_amp_dtype(self, device: torch.device) -> torch.dtype | None:
        """None: no autocast."""
        if self.precision == "auto":
            if device.type != "cuda":
                return None
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.precision]

    def augments_on_device(self, device: torch.device) -> bool:
        if self.augment_on == "auto":
            few_workers = device.type == "cuda" and self.count_workers(device) < MIN_WORKERS_TO_AUGMENT
            return few_workers or self.decode_on == "device"
        return self.augment_on == "device"

    def compiles(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.compile is None else self.compile


def warn_without_gpu(recipe: str) -> None:
    """Log a warning where a recipe, by name or path, is for a GPU and PyTorch can use none; name those for a CPU."""
    about = read_about(recipe)
    if about and about.machine == "gpu" and not torch.cuda.is_available():
        shipped = {name: read_about(name) for name in list_shipped_recipes()}
        _log.warning(
            "%s is a recipe for a GPU, and this machine has none that PyTorch can use: it will take many times as long;"
            " for CPUs: %s",
            *(recipe, ", ".join(name for name, found in shipped.items() if found and found.machine == "cpu")),
        )
