"""The network: one timm backbone, a category head and a brand head, photos in, logits out."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import nn

__all__ = ["ListingClassifier", "ModelSpec", "Outputs", "new_backbone"]


class Outputs(NamedTuple):
    """float32 tensors; N photos, C leaf categories, B brand labels (0 is 'no brand'), D features."""

    category_logits: torch.Tensor
    brand_logits: torch.Tensor
    embedding: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build the same network again."""

    backbone: str
    """A timm model name."""
    num_categories: int
    num_brands: int
    mean: tuple[float, float, float]
    """Of sRGB in [0, 1], as the backbone was pre-trained."""
    std: tuple[float, float, float]


def new_backbone(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """A timm model without classifier that takes any photo size; vision transformers need to be told so."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **options)
    except TypeError:  # convolutional models know no such argument and need none
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)


class ListingClassifier(nn.Module):
    """Maps photos (N, H, W, 3) uint8 to `Outputs`. Normalisation is part of the graph."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: ModelSpec, backbone: nn.Module | None = None, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone if backbone is not None else new_backbone(spec.backbone)
        # MobileNets keep a layer between pooling and classifier, and return its width.
        num_features = cast(int, getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        self.dropout = nn.Dropout(dropout)
        self.category_head = nn.Linear(num_features, spec.num_categories)
        self.brand_head = nn.Linear(num_features, spec.num_brands)
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            self.register_buffer(name, torch.tensor(values).mul(255).view(1, 3, 1, 1), persistent=False)

    def forward(self, photos_nhwc: torch.Tensor) -> Outputs:
        photos_nchw = photos_nhwc.permute(0, 3, 1, 2).float()
        photos_nchw = (photos_nchw - self.mean) / self.std
        return self.heads(self.backbone(photos_nchw.contiguous(memory_format=torch.channels_last)))

    def heads(self, embedding: torch.Tensor) -> Outputs:
        """The answers to photos of which the (N, D) embedding is known already."""
        dropped = self.dropout(embedding)
        category_logits, brand_logits = self.category_head(dropped), self.brand_head(dropped)
        return Outputs(category_logits.float(), brand_logits.float(), embedding.float())
