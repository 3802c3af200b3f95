"""Losses for sellers' labels: any label may be missing, and a category may be an inner node."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from training.trainer.distillation import compute_distillation_losses
from training.trainer.mixup import Mix
from vision.manifest import OUT_OF_SCOPE, Labels
from vision.model import Outputs
from vision.taxonomy import Taxonomy

__all__ = [
    "ListingLoss",
    "NumLabelled",
    "compute_log_class_shares",
    "compute_node_losses",
    "compute_outlier_losses",
    "find_ancestors",
]


class NumLabelled(NamedTuple):
    """Numbers of photos with each label, by which sums of losses are divided."""

    categories: int
    brands: int
    photos: int
    """All photos: the teacher's logits need no label."""

    @classmethod
    def from_labels(cls, category_nodes: npt.NDArray[np.int64], brands: npt.NDArray[np.int64]) -> "NumLabelled":
        """Count (N,) labels, which are negative where missing."""
        return cls(int((category_nodes >= 0).sum()), int((brands >= 0).sum()), len(brands))


def compute_node_losses(
    logits: torch.Tensor,
    nodes: torch.Tensor,
    leaves_below: torch.Tensor,
    *,
    label_smoothing: float,
    log_shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative log-probability of each row's labelled node, its probability being the sum of the leaves below it.

    For a leaf this is cross-entropy with label smoothing as in Szegedy et al. 2016 (CVPR), section 7.

    Args:
        logits: (N, L) float, one column a leaf.
        nodes: (N,) int64 row of `leaves_below`; negative where the label is missing.
        leaves_below: (num_nodes, L) bool.
        label_smoothing: share of the target spread evenly over all leaves, in [0, 1].
        log_shares: (L,) added to the logits first: logit adjustment (Menon et al., ICLR 2021, eq. 10). The logits
            themselves then correspond to equally frequent leaves.

    Returns:
        (N,) float; 0, with a gradient of 0, where the label is missing.
    """
    if log_shares is not None:
        logits = logits + log_shares
    labelled = nodes >= 0
    allowed = leaves_below[nodes.clamp(min=0)]
    log_total = logits.logsumexp(dim=1)
    log_node = logits.masked_fill(~allowed, float("-inf")).logsumexp(dim=1)
    loss = log_total - log_node
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_total - logits.mean(dim=1))
    return torch.where(labelled, loss, torch.zeros_like(loss))


def compute_outlier_losses(logits: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to the uniform distribution: outlier exposure (Hendrycks et al., ICLR 2019, section 3).

    Args:
        logits: (N, L).
        nodes: (N,) int64.

    Returns:
        (N,) float; 0, with a gradient of 0, where the node is not `OUT_OF_SCOPE`.
    """
    losses = logits.logsumexp(dim=1) - logits.mean(dim=1)
    return torch.where(nodes == OUT_OF_SCOPE, losses, torch.zeros_like(losses))


def compute_log_class_shares(
    nodes: npt.NDArray[np.int64],
    leaves_below: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float32]:
    """(L,) log of each leaf's share of the sampled labels.

    A label on an inner node counts in equal parts for the leaves below it. Each leaf counts one additional photo, so
    that a leaf without photos has a finite share. `weights` are the (N,) sampling probabilities, None if all are equal.
    """
    labelled = nodes >= 0
    drawn = np.ones(len(nodes)) if weights is None else weights * len(nodes)
    per_node = np.bincount(nodes[labelled], weights=drawn[labelled], minlength=len(leaves_below))
    counts = 1 + (per_node / leaves_below.sum(axis=1)) @ leaves_below
    return np.asarray(np.log(counts / counts.sum()), dtype=np.float32)


def find_ancestors(taxonomy: Taxonomy) -> npt.NDArray[np.int64]:
    """(num_nodes, depth - 1) node indices of the categories above each, -1 where there are no more."""
    lineages = [taxonomy.get_lineage(node) for node in taxonomy.node_index]
    ancestors = np.full((len(lineages), max(map(len, lineages)) - 1), -1, dtype=np.int64)
    for row, (*above, _) in zip(ancestors, lineages, strict=True):
        row[: len(above)] = [taxonomy.node_index[category.id] for category in above]
    return ancestors


@dataclass(frozen=True, kw_only=True)
class ListingLoss:
    """Category loss plus weighted brand loss, each the mean over the photos that carry that label."""

    leaves_below: torch.Tensor
    ancestors: torch.Tensor
    """As `find_ancestors` gives them."""
    brand_weight: float
    label_smoothing: float
    inner_node_weight: float = 0.0
    """Weight of the mean loss of a labelled category's ancestors."""
    outlier_weight: float = 0.0
    """Weight of a photo that is out of scope."""
    category_log_shares: torch.Tensor | None = None
    brand_log_shares: torch.Tensor | None = None

    @classmethod
    def build(
        cls,
        taxonomy: Taxonomy,
        labels: Labels,
        device: torch.device,
        *,
        adjust_logits: bool,
        weights: npt.NDArray[np.float64] | None = None,
        **settings: float,
    ) -> "ListingLoss":
        """Create the loss for a training split.

        Args:
            labels: labels of the training split; with `adjust_logits` their class shares adjust the logits.
            weights: sampling probabilities of the photos; None if all are equal.
        """
        shares: dict[str, torch.Tensor] = {}
        if adjust_logits:
            each_brand = np.eye(len(taxonomy.brand_labels), dtype=bool)
            shares = {
                "category_log_shares": torch.from_numpy(
                    compute_log_class_shares(labels.category_nodes, taxonomy.leaves_below, weights)
                ).to(device),
                "brand_log_shares": torch.from_numpy(compute_log_class_shares(labels.brands, each_brand, weights)).to(
                    device
                ),
            }
        leaves_below = torch.from_numpy(taxonomy.leaves_below).to(device)
        ancestors = torch.from_numpy(find_ancestors(taxonomy)).to(device)
        return cls(leaves_below=leaves_below, ancestors=ancestors, **shares, **settings)  # type: ignore[arg-type]  # two kinds of keyword

    def __call__(
        self,
        outputs: Outputs,
        category_nodes: torch.Tensor,
        brands: torch.Tensor,
        *,
        num_labelled: NumLabelled | None = None,
        mix: Mix | None = None,
    ) -> torch.Tensor:
        """The loss of N photos as a scalar.

        Args:
            outputs: outputs for the N photos.
            category_nodes: (N,) int64, negative where missing; photos out of scope do not count, but add to the loss.
            brands: (N,) int64, negative where missing.
            num_labelled: counts of the whole step if this is a micro-batch; the parts then add up to the step's loss.
            mix: how the photos were mixed; each result then has the labels of both photos, weighted by their shares.
        """
        category = _mean(
            functools.partial(self._compute_category_losses, outputs.category_logits),
            category_nodes,
            mix,
            num_labelled and num_labelled.categories,
        )
        brand = _mean(
            functools.partial(self._compute_brand_losses, outputs.brand_logits),
            brands,
            mix,
            num_labelled and num_labelled.brands,
        )
        return category + self.brand_weight * brand

    def distill(
        self, outputs: Outputs, teacher: Outputs, *, temperature: float, num_labelled: NumLabelled
    ) -> torch.Tensor:
        """Distance of the outputs from the teacher's as a scalar; brands are weighted as in the loss of labels.

        Args:
            outputs: the student's for N photos; adjusted logits are compared with their class shares included.
            teacher: the teacher's outputs, class frequencies included.
            temperature: softens both distributions.
            num_labelled: counts of the whole step, of which this may be a part.
        """
        total = torch.zeros((), device=outputs.category_logits.device)
        for logits, wanted, log_shares, weight in (
            (outputs.category_logits, teacher.category_logits, self.category_log_shares, 1.0),
            (outputs.brand_logits, teacher.brand_logits, self.brand_log_shares, self.brand_weight),
        ):
            answered = logits if log_shares is None else logits + log_shares
            total = total + weight * compute_distillation_losses(answered, wanted, temperature=temperature).sum()
        return total / max(1, num_labelled.photos)

    def _compute_category_losses(self, logits: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        losses = compute_node_losses(
            logits,
            nodes,
            self.leaves_below,
            label_smoothing=self.label_smoothing,
            log_shares=self.category_log_shares,
        )
        if self.outlier_weight:
            losses = losses + self.outlier_weight * compute_outlier_losses(logits, nodes)
        if not self.inner_node_weight:
            return losses
        above = self.ancestors[nodes.clamp(min=0)].masked_fill((nodes < 0)[:, None], -1)
        of_ancestors = torch.zeros_like(losses)
        for ancestors in above.unbind(dim=1):
            of_ancestors = of_ancestors + compute_node_losses(
                logits, ancestors, self.leaves_below, label_smoothing=0.0, log_shares=self.category_log_shares
            )
        return losses + self.inner_node_weight * of_ancestors / (above >= 0).sum(dim=1).clamp(min=1)

    def _compute_brand_losses(self, logits: torch.Tensor, brands: torch.Tensor) -> torch.Tensor:
        each_brand = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        return compute_node_losses(
            logits, brands, each_brand, label_smoothing=self.label_smoothing, log_shares=self.brand_log_shares
        )


def _mean(
    compute_losses: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    mix: Mix | None,
    num_labelled: int | None,
) -> torch.Tensor:
    total = compute_losses(labels).sum()
    if mix is not None:
        total = mix.share * total + (1 - mix.share) * compute_losses(labels[mix.partners]).sum()
    # Partners are a permutation, so the shares of the labelled photos add up to their number, mixed or not.
    if num_labelled is None:
        return total / (labels >= 0).sum().clamp(min=1)
    return total / max(1, num_labelled)
