"""The network: one timm backbone, a category head and a brand head, photos in, logits out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import nn
from torch.nn import functional

from vision.bundle import BrandHead

__all__ = ["CosineHead", "ListingClassifier", "ModelSpec", "Outputs", "ScopeHead", "create_timm_backbone"]

_SCOPE_STAGE = -2
"""The stage whose channels the scope head reads, as an index into the backbone's stages or blocks."""
_MIN_DISTANCE = 1e-6


class Outputs(NamedTuple):
    """float32 tensors; N photos, C leaf categories, B brand labels (0 is 'no brand'), D features."""

    category_logits: torch.Tensor
    brand_logits: torch.Tensor
    embedding: torch.Tensor
    scope_score: torch.Tensor
    """(N,); see `ScopeHead`. 0 where it is not computed."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to rebuild the network."""

    backbone: str
    """A timm model name."""
    num_categories: int
    num_brands: int
    mean: tuple[float, float, float]
    """Mean of sRGB in [0, 1] of the backbone's pre-training."""
    std: tuple[float, float, float]
    brand_head: BrandHead = "linear"
    """Defaults to what models had before there was a choice."""


def create_timm_backbone(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Create a timm model without classifier for any photo size; vision transformers need an option for that."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **options)
    except TypeError:  # convolutional models know no such argument and need none
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)


class CosineHead(nn.Module):
    """Logits `scale * cos(weight, embedding) + bias` with one learned scale (Qi, Brown & Lowe, CVPR 2018, section 3.2).

    The embedding is standardised before its angle is taken. Pooled activations have a large common part: in plain
    embeddings any two photos are closer than a trained weight is to its own photos, so that three imprinted brands
    left 0-45 % of the other photos their right answer, standardised 74-82 % of 95 % before; the bias does the rest
    (see `training.export.add_brand`; val of Grocery Store, features of tf_efficientnet_lite0, where 'no brand' gained
    nothing from a trained bias).
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, num_labels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_labels, num_features) / math.sqrt(num_features))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        # A logarithm, as in CLIP (Radford et al., ICML 2021, section 2.5): one step changes the scale by a share of it.
        self.log_scale = nn.Parameter(torch.tensor(math.log(16.0)))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        # After the standardisation, whose variance it would falsify (Li et al., CVPR 2019).
        self.dropout = nn.Dropout(dropout)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        directions = functional.normalize(self.dropout(self.standardise(embedding)), dim=1)
        cosines = functional.linear(directions, functional.normalize(self.weight, dim=1))
        return cosines * self.log_scale.exp() + self.bias

    def standardise(self, embedding: torch.Tensor) -> torch.Tensor:
        """(N, D), each feature with the mean 0 and the variance 1 that it had over the training photos."""
        # One photo has no variance: a micro-batch of one takes the running one.
        from_batch = self.training and embedding.shape[0] > 1
        return functional.batch_norm(embedding.float(), self.running_mean, self.running_var, training=from_batch)


class ScopeHead(nn.Module):
    """How much a photo looks like the training set's: minus the log of its squared Mahalanobis distance to them.

    Per channel, of the channel means of the backbone's last stage but one (Lee et al., NeurIPS 2018, with one Gaussian
    for all categories): near 0 for photos of the training set's kind, lower for others. What the last stage tells apart
    are the categories; what kind of photo it is, the stage before still shows (`benchmarks.scope`). Its cost does not
    grow with the categories.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, mean: torch.Tensor, whitening: torch.Tensor) -> None:
        """Args: mean: (F,) of the training photos. whitening: (F, F), which makes their covariance the identity."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def forward(self, channel_means: torch.Tensor) -> torch.Tensor:
        whitened = (channel_means.float() - self.mean) @ self.whitening
        return -whitened.square().mean(dim=1).clamp_min(_MIN_DISTANCE).log()


class ListingClassifier(nn.Module):
    """Maps photos (N, H, W, 3) uint8 to `Outputs`. Normalisation is part of the graph."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: ModelSpec, backbone: nn.Module | None = None, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone if backbone is not None else create_timm_backbone(spec.backbone)
        # MobileNets keep a layer between pooling and classifier, and return its width.
        num_features = cast(int, getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        self.dropout = nn.Dropout(dropout)
        self.category_head = nn.Linear(num_features, spec.num_categories)
        self.brand_head: nn.Linear | CosineHead = (
            CosineHead(num_features, spec.num_brands, dropout=dropout)
            if spec.brand_head == "cosine"
            else nn.Linear(num_features, spec.num_brands)
        )
        self.scope_head: ScopeHead | None = None
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            self.register_buffer(name, torch.tensor(values).mul(255).view(1, 3, 1, 1), persistent=False)

    def forward(self, photos_nhwc: torch.Tensor) -> Outputs:
        photos_nchw = self.normalise(photos_nhwc)
        photos_nchw = photos_nchw.contiguous(memory_format=torch.channels_last)
        if self.scope_head is None:
            return self.apply_heads(self.backbone(photos_nchw))
        return self.apply_heads(*self.compute_features(photos_nchw))

    def compute_features(self, photos_nchw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (N, D) embedding of normalised photos, and the (N, F) channel means that a scope head reads."""
        backbone = cast(Any, self.backbone)  # a timm model, whose methods torch does not know
        last, (earlier,) = backbone.forward_intermediates(photos_nchw, indices=[_SCOPE_STAGE])
        return backbone.forward_head(last), earlier.mean(dim=(2, 3))

    def normalise(self, photos_nhwc: torch.Tensor) -> torch.Tensor:
        """Return (N, 3, S, S) float32 in the backbone's range from (N, S, S, 3) uint8."""
        return (photos_nhwc.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def apply_heads(self, embedding: torch.Tensor, channel_means: torch.Tensor | None = None) -> Outputs:
        """Return the outputs for photos whose (N, D) embedding is known.

        Args:
            embedding: (N, D).
            channel_means: (N, F), see `compute_features`; None: without a scope score.
        """
        dropped = self.dropout(embedding)
        category_logits = self.category_head(dropped)
        brand_logits = self.brand_head(embedding if isinstance(self.brand_head, CosineHead) else dropped)
        scope_score = torch.zeros_like(embedding[:, 0])
        if self.scope_head is not None and channel_means is not None:
            scope_score = self.scope_head(channel_means)
        return Outputs(category_logits.float(), brand_logits.float(), embedding.float(), scope_score.float())

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load a state with or without a scope head.

        Raises:
            RuntimeError: tensors that do not fit the network.
        """
        if "scope_head.mean" in tensors:
            mean, whitening = (torch.empty_like(tensors[f"scope_head.{name}"]) for name in ("mean", "whitening"))
            self.scope_head = ScopeHead(mean, whitening)
        self.load_state_dict(tensors)
