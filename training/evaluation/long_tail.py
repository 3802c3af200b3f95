"""How well the frequent and the rare categories are known."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.statistics.estimates import estimate_macro_accuracy, estimate_share, select_clusters
from vision.errors import ManifestError
from vision.manifest import Labels, Manifest
from vision.taxonomy import Taxonomy

__all__ = ["LeafCounts", "count_leaves", "count_training_leaves", "evaluate_by_frequency"]

Ints = npt.NDArray[np.int64]


class LeafCounts(NamedTuple):
    num_photos: Ints
    """(C,) photos of each leaf."""
    counted_on: str
    """Which photos, for people."""


def count_leaves(labels: Labels, taxonomy: Taxonomy, *, counted_on: str) -> LeafCounts:
    """Count the photos labelled with each leaf; those labelled with an inner node do not count."""
    known = labels.category_nodes[labels.category_nodes >= 0]
    by_node = np.bincount(known, minlength=len(taxonomy.categories))
    return LeafCounts(by_node[[taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids]], counted_on)


def count_training_leaves(manifest: Manifest, taxonomy: Taxonomy) -> LeafCounts | None:
    """Count on the manifest's train split; None where its labels are unknown to the taxonomy, or none is a leaf."""
    try:
        labels = manifest.select_split("train").resolve_labels(taxonomy, other_brands=True, out_of_scope=True)
    # A wrong label in train must not prevent the evaluation of another split.
    except ManifestError:
        return None
    counts = count_leaves(labels, taxonomy, counted_on="the manifest's train split")
    return counts if counts.num_photos.any() else None


def evaluate_by_frequency(
    predicted: Ints, labels: Ints, counts: LeafCounts, *, clusters: Ints | None
) -> dict[str, Any]:
    """Figures of the head, the middle and the tail: thirds of the occurring labels, from frequent to rare.

    Fixed bounds (more than 100, less than 20 photos; Liu et al. 2019, ImageNet-LT) would leave most data sets without
    a head or without a tail.
    """
    classes = np.unique(labels[labels >= 0])
    ordered = classes[np.argsort(-counts.num_photos[classes], kind="stable")]
    parts: list[dict[str, Any]] = []
    for name, part in zip(("head", "middle", "tail"), np.array_split(ordered, 3), strict=True):
        rows = np.isin(labels, part)
        num_photos = counts.num_photos[part]
        parts.append(
            {
                "name": name,
                "num_categories": len(part),
                "least_photos": int(num_photos.min()) if len(part) else 0,
                "most_photos": int(num_photos.max()) if len(part) else 0,
                "num": int(rows.sum()),
                **estimate_share("top1", predicted[rows] == labels[rows], select_clusters(clusters, rows)),
                **estimate_macro_accuracy("macro", predicted[rows], labels[rows], select_clusters(clusters, rows)),
            }
        )
    return {"counted_on": counts.counted_on, "parts": parts}
