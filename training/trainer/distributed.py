"""The ranks that torchrun started, or a single one: their collective operations and stop signals."""

import ctypes
import os
import platform
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist

__all__ = ["Ranks", "join_ranks"]

T = TypeVar("T")

# Linux prctl.h.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Ranks:
    rank: int = 0
    world_size: int = 1
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over the ranks, in float64 by gloo, without waiting for a GPU's queue."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return cast(list[float], tensor.tolist())

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return cast(list[T], values)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors with those of the first rank."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        if self.world_size > 1:
            self.sum([0.0])


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the process group that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK in the environment).

    Without torchrun the result is a single rank. NCCL carries tensors on a GPU, gloo those on a CPU.
    """
    on_gpu = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Ranks(device=device)
        return
    _exit_with_launcher()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    yield Ranks(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)
    # Skipped after an error: closing NCCL would wait for ranks that wait for this one.
    dist.destroy_process_group()


def _exit_with_launcher() -> None:
    """Make the kernel kill this rank with torchrun; it would otherwise write to the folder of the restarted job."""
    if platform.system() == "Linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
