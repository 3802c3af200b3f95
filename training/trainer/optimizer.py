"""AdamW with a learning rate per layer group, its learning-rate schedule, and frozen layer groups."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.models import group_parameters
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from training.errors import RecipeError
from training.recipe import Recipe
from vision.model import ListingClassifier

__all__ = [
    "build_parameter_groups",
    "create_optimizer",
    "create_scheduler",
    "find_frozen_modules",
    "freeze_groups",
    "list_layer_groups",
]


def create_optimizer(model: ListingClassifier, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the parameters that are not frozen, with the recipe's learning rates and weight decay."""
    groups = build_parameter_groups(
        model,
        head_learning_rate=recipe.head_learning_rate,
        backbone_learning_rate=recipe.backbone_learning_rate,
        layer_decay=recipe.layer_decay,
        weight_decay=recipe.weight_decay,
    )
    return torch.optim.AdamW(groups, fused=True)


def create_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, *, num_steps: int) -> Scheduler:
    """The recipe's learning-rate schedule over `num_steps` optimizer steps, warm-up included."""
    warmup = max(1, round(recipe.warmup_share * num_steps)) if recipe.warmup_share else 0
    scheduler: Scheduler | None = create_scheduler_v2(
        optimizer,
        sched=recipe.schedule,
        num_epochs=max(1, num_steps - warmup),
        warmup_epochs=warmup,
        warmup_prefix=True,
        warmup_lr=recipe.backbone_learning_rate * 1e-2,
        step_on_epochs=False,
        updates_per_epoch=1,
    )[0]
    assert scheduler is not None
    return scheduler


def list_layer_groups(backbone: nn.Module) -> list[list[str]]:
    """Parameter names by layer group, from the input to the features (timm's coarse `group_matcher`)."""
    matcher = cast(Any, backbone).group_matcher(coarse=True)
    groups: Mapping[int, list[str]] = group_parameters(backbone, matcher)
    return [groups[index] for index in sorted(groups)]


def freeze_groups(backbone: nn.Module, num_groups: int) -> None:
    """Exclude the first `num_groups` layer groups from training.

    Raises:
        RecipeError: the backbone has fewer groups.
    """
    groups = list_layer_groups(backbone)
    if num_groups > len(groups):
        raise RecipeError(f"frozen_groups = {num_groups}: this backbone has {len(groups)} layer groups; use fewer")
    for group in groups[:num_groups]:
        for name in group:
            backbone.get_parameter(name).requires_grad_(False)


def find_frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Modules whose parameters are all frozen.

    They belong in evaluation mode: running statistics of a batch norm and stochastic depth would still change a module
    whose weights are constant.
    """
    found = []
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            found.append(module)
    return found


def build_parameter_groups(
    model: ListingClassifier,
    *,
    head_learning_rate: float,
    backbone_learning_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """AdamW's groups: `lr` is `backbone_learning_rate` in all, `lr_scale`, which timm's schedulers apply, differs.

    The backbone's last layer group learns at `backbone_learning_rate`, each one before it at `layer_decay` times that
    of the next (Clark et al., ICLR 2020, section 3.2). Biases and norms are not decayed, frozen parameters are left
    out.
    """
    groups: list[dict[str, Any]] = []

    def add(parameters: list[nn.Parameter], peak_lr: float) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for chosen, decay in (
            ([p for p in trained if p.ndim > 1], weight_decay),
            ([p for p in trained if p.ndim <= 1], 0.0),
        ):
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "weight_decay": decay,
                        "lr": backbone_learning_rate,
                        "lr_scale": peak_lr / backbone_learning_rate,
                    }
                )

    by_depth = list_layer_groups(model.backbone)
    for index, names in enumerate(by_depth):
        peak_lr = backbone_learning_rate * layer_decay ** (len(by_depth) - 1 - index)
        add([model.backbone.get_parameter(name) for name in names], peak_lr)
    add([p for name, p in model.named_parameters() if not name.startswith("backbone.")], head_learning_rate)
    return groups
