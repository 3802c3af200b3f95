"""The backbone's layers in order, for what treats early and late ones differently: freezing and learning rates."""

from collections.abc import Mapping
from typing import Any, cast

from timm.models import group_parameters
from torch import nn

from training.errors import RecipeError
from vision.model import ListingClassifier

__all__ = ["freeze_groups", "frozen_modules", "layer_groups", "parameter_groups"]


def layer_groups(backbone: nn.Module) -> list[list[str]]:
    """Parameter names by layer group, from the photo to the features (timm's coarse `group_matcher`)."""
    matcher = cast(Any, backbone).group_matcher(coarse=True)
    groups: Mapping[int, list[str]] = group_parameters(backbone, matcher)
    return [groups[index] for index in sorted(groups)]


def freeze_groups(backbone: nn.Module, num_groups: int) -> None:
    """Take the first groups out of training.

    Raises:
        RecipeError: there are not so many.
    """
    groups = layer_groups(backbone)
    if num_groups > len(groups):
        raise RecipeError(f"frozen_groups = {num_groups}: this backbone has {len(groups)} layer groups; use fewer")
    for group in groups[:num_groups]:
        for name in group:
            backbone.get_parameter(name).requires_grad_(False)


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Modules whose parameters are all frozen. They belong in evaluation mode: a batch norm that goes on counting, or a
    stochastic depth that goes on dropping, would change what is meant to stay."""
    found = []
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            found.append(module)
    return found


def parameter_groups(
    model: ListingClassifier,
    *,
    head_learning_rate: float,
    backbone_learning_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """AdamW's groups: `lr` is `backbone_learning_rate` in all, `lr_scale` (timm's schedulers heed it) differs.

    The backbone's last layer group learns at `backbone_learning_rate`, each one before it at `layer_decay` times that
    of the next (Clark et al., ICLR 2020, section 3.2). Biases and norms are not decayed, frozen parameters left out.
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

    by_depth = layer_groups(model.backbone)
    for index, names in enumerate(by_depth):
        peak_lr = backbone_learning_rate * layer_decay ** (len(by_depth) - 1 - index)
        add([model.backbone.get_parameter(name) for name in names], peak_lr)
    add([p for name, p in model.named_parameters() if not name.startswith("backbone.")], head_learning_rate)
    return groups
