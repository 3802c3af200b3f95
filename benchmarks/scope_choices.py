"""Parts of `benchmarks.scope`: ways to fuse the photos of a listing, and a category that the seller has chosen."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.inference.predictions import Predictions
from vision.bundle import Bundle
from vision.prediction.fusion import softmax
from vision.prediction.listings import predict_fused
from vision.taxonomy import Taxonomy

__all__ = ["compare_fusions", "encode_jpeg", "measure_hint"]

NUM_LISTINGS = 1000
FLOOR = 0.01
"""Probability that a photo shows anything at all, for the product of experts."""

Floats = npt.NDArray[np.floating]
Fuse = Callable[[Floats], Floats]


def encode_jpeg(photo: npt.NDArray[np.uint8]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(photo).save(encoded, "JPEG", quality=88)
    return encoded.getvalue()


def fuse_by_mean(logits: Floats) -> Floats:
    fused: Floats = logits.mean(axis=0)
    return fused


def fuse_by_trimmed_mean(logits: Floats) -> Floats:
    """Without the photo that is farthest from the median, where there are three or more."""
    if len(logits) < 3:
        return fuse_by_mean(logits)
    distances = np.abs(logits - np.median(logits, axis=0)).sum(axis=1)
    return fuse_by_mean(np.delete(logits, distances.argmax(), axis=0))


def fuse_by_product(logits: Floats) -> Floats:
    """The product of the photos' probabilities, none of which is below a floor."""
    probabilities = softmax(logits)
    fused: Floats = np.log((1 - FLOOR) * probabilities + FLOOR / logits.shape[1]).sum(axis=0)
    return fused


FUSIONS: dict[str, Fuse] = {
    "mean of logits": fuse_by_mean,
    "mean without the farthest photo": fuse_by_trimmed_mean,
    "product of experts with a floor": fuse_by_product,
}


def compare_fusions(predictions: Predictions, taxonomy: Taxonomy) -> dict[str, dict[str, float]]:
    """Return the leaf accuracy of each fusion for listings of two to five photos of one leaf.

    `clean`: all are of that leaf; `one bad`: one more is of another.
    """
    leaf_nodes = [taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids]
    nodes, rng = predictions.labels.category_nodes, np.random.default_rng(3)
    by_leaf = [(leaf, np.flatnonzero(nodes == node)) for leaf, node in enumerate(leaf_nodes)]
    usable = [(leaf, photos) for leaf, photos in by_leaf if len(photos) > 1]
    right = {name: {"clean": 0, "one bad": 0} for name in FUSIONS}
    for number in range(NUM_LISTINGS):
        leaf, photos = usable[number % len(usable)]
        own = rng.permutation(photos)[: int(rng.integers(2, 6))]
        others = np.flatnonzero(nodes != leaf_nodes[leaf])
        listings = {"clean": own, "one bad": np.append(own, rng.choice(others))}
        for name, fuse in FUSIONS.items():
            for kind, rows in listings.items():
                right[name][kind] += int(fuse(predictions.category_logits[rows].astype(float)).argmax() == leaf)
    return {name: {kind: count / NUM_LISTINGS for kind, count in counts.items()} for name, counts in right.items()}


def measure_hint(predictions: Predictions, bundle: Bundle) -> dict[str, float]:
    """Return the leaf accuracy of photos, each a listing, without a hint and with their true top category as one."""
    taxonomy = bundle.taxonomy
    leaf_index = {taxonomy.node_index[leaf]: i for i, leaf in enumerate(taxonomy.leaf_ids)}
    labelled = np.flatnonzero([node in leaf_index for node in predictions.labels.category_nodes.tolist()])
    leaves = np.array([leaf_index[node] for node in predictions.labels.category_nodes[labelled].tolist()])

    def count_right(chosen: npt.NDArray[np.bool_], ancestor: int | None) -> int:
        rows = labelled[chosen]
        fused, _ = predict_fused(
            predictions.category_logits[rows],
            predictions.brand_logits[rows],
            predictions.scope_scores[rows],
            np.arange(len(rows)),
            taxonomy=taxonomy,
            calibration=bundle.calibration,
            ancestor=ancestor,
        )
        return int((fused.leaves.argmax(axis=1) == leaves[chosen]).sum())

    roots = taxonomy.leaf_paths[leaves, 0]
    num_right = [
        sum(count_right(roots == root, root if hinted else None) for root in np.unique(roots).tolist())
        for hinted in (False, True)
    ]
    without, hinted = (num / len(leaves) for num in num_right)
    return {"without": without, "with": hinted, "gain": hinted - without}
