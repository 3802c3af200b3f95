"""Low-rank adaptation: a backbone's linear layers stay as they were pre-trained, and small products beside them learn.

Hu et al., ICLR 2022. The optimizer then keeps moments of a hundredth of the weights, and few photos change the backbone
less. The products are added to the weights when these are saved: a finished run is a network like any other.
"""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from training.errors import RecipeError

__all__ = ["add_low_rank", "merge_low_rank"]


class _LowRank(nn.Module):
    """Adds a product of rank R to a weight (out, in); zero at first."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as the reference implementation and nn.Linear do

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def add_low_rank(backbone: nn.Module, rank: int, name: str) -> None:
    """Give every linear layer a product of that rank; nothing else of the backbone learns from now on.

    Args:
        backbone: timm's.
        rank: 1 or more; a layer with a side that is no longer is left as it was pre-trained.
        name: of the backbone, for messages.

    Raises:
        RecipeError: no layer is linear, or none is larger than the rank.
    """
    linear = [m for m in backbone.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) > rank]
    if not linear:
        raise RecipeError(
            f"lora_rank = {rank}: {name} has no linear layer with more rows and columns than that; use 0 for "
            "convolutional backbones, or a smaller rank"
        )
    backbone.requires_grad_(False)
    for module in linear:
        parametrize.register_parametrization(module, "weight", _LowRank(module.weight, rank))


def merge_low_rank(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state of the same network without products beside its weights, which have them added."""
    state = {name: tensor for name, tensor in module.state_dict().items() if ".parametrizations." not in name}
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            state[f"{name}.weight"] = part.weight.detach()
    return state
