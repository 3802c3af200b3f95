"""Losses for the labels that sellers give: any of them may be missing, a category may be an inner node."""

import torch

__all__ = ["listing_loss", "node_cross_entropy"]


def node_cross_entropy(
    logits: torch.Tensor, nodes: torch.Tensor, leaves_below: torch.Tensor, *, label_smoothing: float
) -> torch.Tensor:
    """Mean negative log-probability of the labelled node, its probability being the sum of the leaves below it.

    For a leaf this is cross-entropy with label smoothing as in Szegedy et al. 2016 (CVPR), section 7.

    Args:
        logits: (N, L) float, one column a leaf.
        nodes: (N,) int64 row of `leaves_below`; negative where the label is missing.
        leaves_below: (num_nodes, L) bool.
        label_smoothing: share of the target spread evenly over all leaves, in [0, 1].

    Returns:
        A scalar; 0 (with a gradient of 0) when no row is labelled.
    """
    labelled = nodes >= 0
    allowed = leaves_below[nodes.clamp(min=0)]
    log_total = logits.logsumexp(dim=1)
    log_node = logits.masked_fill(~allowed, float("-inf")).logsumexp(dim=1)
    loss = log_total - log_node
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_total - logits.mean(dim=1))
    return torch.where(labelled, loss, torch.zeros_like(loss)).sum() / labelled.sum().clamp(min=1)


def listing_loss(
    category_logits: torch.Tensor,
    brand_logits: torch.Tensor,
    *,
    category_nodes: torch.Tensor,
    brands: torch.Tensor,
    leaves_below: torch.Tensor,
    brand_weight: float,
    label_smoothing: float,
) -> torch.Tensor:
    """Category loss plus weighted brand loss, each the mean over the photos that carry that label."""
    category = node_cross_entropy(category_logits, category_nodes, leaves_below, label_smoothing=label_smoothing)
    each_brand = torch.eye(brand_logits.shape[1], dtype=torch.bool, device=brand_logits.device)
    brand = node_cross_entropy(brand_logits, brands, each_brand, label_smoothing=label_smoothing)
    return category + brand_weight * brand
