"""Random changes of training photos: the crop in the data loader; all others there or in batches on the device."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from training.recipe import Recipe

__all__ = ["CHANGES", "apply_change", "create_crop", "create_distortion", "distort_batch"]

_GREY_LEVEL = 127
_ERASED_SHARE = (0.02, 0.2)


def create_crop(recipe: Recipe, photo_px: int) -> v2.Transform:
    """Random crop, resized to (photo_px, photo_px)."""
    return v2.RandomResizedCrop(
        photo_px, scale=(recipe.smallest_crop, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )


def create_distortion(recipe: Recipe) -> v2.Transform:
    """Transform of a cropped Pillow photo into a (3, H, W) uint8 tensor with random flips, colours and erasing."""
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(recipe.flip_probability)]
    if recipe.trivial_augment:
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=[_GREY_LEVEL] * 3))
    steps.append(v2.PILToTensor())
    if recipe.erasing_probability:
        steps.append(v2.RandomErasing(recipe.erasing_probability, scale=_ERASED_SHARE, value=_GREY_LEVEL))
    return v2.Compose(steps)


def distort_batch(photos_nchw: torch.Tensor, recipe: Recipe, *, seeds: Sequence[int]) -> torch.Tensor:
    """Apply the changes of `create_distortion` to a batch, on its device.

    Each photo's changes depend on its own seed alone. Photos with the same change are
    processed together: some hundred small kernels for a batch of any size.

    Args:
        photos_nchw: (N, 3, H, W) uint8.
        recipe: probabilities of flips, TrivialAugment and erasing.
        seeds: a seed for each photo.

    Returns:
        (N, 3, H, W) uint8, a new tensor.
    """
    all_changes = [
        _sample_changes(recipe, seed, height=photos_nchw.shape[2], width=photos_nchw.shape[3]) for seed in seeds
    ]
    flipped = _to_device([changes.flipped for changes in all_changes], photos_nchw.device)
    photos = torch.where(flipped.view(-1, 1, 1, 1), photos_nchw.flip(3), photos_nchw)
    together: dict[tuple[str, float], list[int]] = defaultdict(list)
    for index, changes in enumerate(all_changes):
        if changes.change != "Identity":
            together[changes.change, changes.strength].append(index)
    # One copy to the device for all groups, because every copy stalls its queue.
    grouped = _to_device([index for indices in together.values() for index in indices], photos.device)
    begin = 0
    for (change, strength), indices in together.items():
        chosen = grouped[begin : begin + len(indices)]
        begin += len(indices)
        photos[chosen] = apply_change(photos[chosen], change, strength)
    for index, changes in enumerate(all_changes):
        if changes.erased:
            top, left, bottom, right = changes.erased
            photos[index, :, top:bottom, left:right] = _GREY_LEVEL
    return photos


def _to_device(values: list[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.int64 if values and not isinstance(values[0], bool) else None)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Changes(NamedTuple):
    flipped: bool
    change: str
    strength: float
    erased: tuple[int, int, int, int] | None
    """Top, left, bottom, right in pixels."""


# Largest strength and whether its sign is random, from table 6 of the TrivialAugment paper (the wide space).
CHANGES = {
    "Identity": (0.0, False),
    "ShearX": (0.99, True),
    "ShearY": (0.99, True),
    "TranslateX": (32.0, True),
    "TranslateY": (32.0, True),
    "Rotate": (135.0, True),
    "Brightness": (0.99, True),
    "Color": (0.99, True),
    "Contrast": (0.99, True),
    "Sharpness": (0.99, True),
    "Posterize": (6.0, False),
    "Solarize": (255.0, False),
    "AutoContrast": (0.0, False),
    "Equalize": (0.0, False),
}
_NUM_STRENGTHS = 10
"""Steps from none to the largest. The paper has 31; fewer make larger groups, and so fewer kernels."""


def _sample_changes(recipe: Recipe, seed: int, *, height: int, width: int) -> _Changes:
    random = np.random.default_rng(seed)
    flipped = bool(random.random() < recipe.flip_probability)
    change, strength = "Identity", 0.0
    if recipe.trivial_augment:
        change = list(CHANGES)[int(random.integers(len(CHANGES)))]
        largest, signed = CHANGES[change]
        strength = largest * int(random.integers(_NUM_STRENGTHS + 1)) / _NUM_STRENGTHS
        strength *= -1 if signed and random.random() < 0.5 else 1
    erased = None
    if random.random() < recipe.erasing_probability:
        area = height * width * random.uniform(*_ERASED_SHARE)
        ratio = np.exp(random.uniform(np.log(0.3), np.log(3.3)))
        high, wide = min(height, round((area * ratio) ** 0.5)), min(width, round((area / ratio) ** 0.5))
        top, left = int(random.integers(height - high + 1)), int(random.integers(width - wide + 1))
        erased = (top, left, top + high, left + wide)
    return _Changes(flipped, change, strength, erased)


def apply_change(photos: torch.Tensor, change: str, strength: float) -> torch.Tensor:
    """Apply one entry of `CHANGES` to (N, 3, H, W) uint8 photos."""
    changed: torch.Tensor
    match change:
        case "ShearX":
            changed = _apply_affine(photos, shear=(float(np.degrees(np.arctan(strength))), 0.0))
        case "ShearY":
            changed = _apply_affine(photos, shear=(0.0, float(np.degrees(np.arctan(strength)))))
        case "TranslateX":
            changed = _apply_affine(photos, translate=(int(strength), 0))
        case "TranslateY":
            changed = _apply_affine(photos, translate=(0, int(strength)))
        case "Rotate":
            changed = _apply_affine(photos, angle=strength)
        case "Brightness":
            changed = functional.adjust_brightness(photos, 1 + strength)
        case "Color":
            changed = functional.adjust_saturation(photos, 1 + strength)
        case "Contrast":
            changed = functional.adjust_contrast(photos, 1 + strength)
        case "Sharpness":
            changed = functional.adjust_sharpness(photos, 1 + strength)
        case "Posterize":
            changed = functional.posterize(photos, 8 - round(strength))
        case "Solarize":
            changed = functional.solarize(photos, 255 - strength)
        case "AutoContrast":
            changed = functional.autocontrast(photos)
        case "Equalize":
            changed = functional.equalize(photos)
        case _:
            raise AssertionError(change)
    return changed


def _apply_affine(
    photos: torch.Tensor,
    *,
    angle: float = 0.0,
    translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    moved: torch.Tensor = functional.affine(
        photos,
        angle=angle,
        translate=list(translate),
        scale=1.0,
        shear=list(shear),
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=[float(_GREY_LEVEL)] * 3,
        # Shears turn about the corner, as TrivialAugment's do.
        center=[0.0, 0.0] if any(shear) else None,
    )
    return moved
