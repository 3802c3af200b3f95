"""Mixup and CutMix on a batch that is already on the device, for two heads and missing labels."""

from dataclasses import dataclass

import numpy as np
import torch

from training.recipe import Recipe

__all__ = ["Mix", "mix_photos"]


@dataclass(frozen=True)
class Mix:
    partners: torch.Tensor
    """(N,) int64, a permutation: the photo that each one was mixed with."""
    share: float
    """Share of the photo itself in the mix, in [0, 1]."""


def mix_photos(photos_nhwc: torch.Tensor, recipe: Recipe, *, seed: int) -> tuple[torch.Tensor, Mix | None]:
    """The photos mixed in pairs by the recipe's mixup or CutMix, or as they are where it has neither.

    Args:
        photos_nhwc: (N, H, W, 3) uint8.
        recipe: its `mixup_alpha` and `cutmix_alpha`.
        seed: decides everything that is drawn.

    Returns:
        (N, H, W, 3), float32 after mixup, else uint8; and what was done.
    """
    alphas = [("mixup", recipe.mixup_alpha), ("cutmix", recipe.cutmix_alpha)]
    wanted = [(kind, alpha) for kind, alpha in alphas if alpha > 0]
    if not wanted:
        return photos_nhwc, None
    random = np.random.default_rng(seed)
    kind, alpha = wanted[int(random.integers(len(wanted)))]
    share = float(random.beta(alpha, alpha))
    partners = torch.from_numpy(random.permutation(len(photos_nhwc))).to(photos_nhwc.device)
    if kind == "mixup":
        photos = photos_nhwc.float()
        return photos.lerp(photos[partners], 1 - share), Mix(partners, share)
    height, width = photos_nhwc.shape[1:3]
    top, bottom = _choose_span(random, height, share)
    left, right = _choose_span(random, width, share)
    mixed = photos_nhwc.clone()
    mixed[:, top:bottom, left:right] = photos_nhwc[partners, top:bottom, left:right]
    return mixed, Mix(partners, 1 - (bottom - top) * (right - left) / (height * width))


def _choose_span(random: np.random.Generator, length: int, share: float) -> tuple[int, int]:
    """Where the cut of one side lies, cropped at the borders (Yun et al. 2019, eq. 2)."""
    half = int(length * (1 - share) ** 0.5) // 2
    centre = int(random.integers(length))
    return max(0, centre - half), min(length, centre + half)
