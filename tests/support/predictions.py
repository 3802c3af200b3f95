"""Predictions made from given logits."""

import numpy as np

from tests.support.helpers import create_small_taxonomy
from training.inference.predictions import Predictions
from vision.manifest import Labels


def create_predictions(logits, leaves) -> Predictions:
    """One photo a listing on the small tree, brands not known."""
    taxonomy, count = create_small_taxonomy(), len(logits)
    return Predictions(
        category_logits=logits.astype(np.float32),
        brand_logits=np.zeros((count, 3), np.float32),
        scope_scores=np.ones(count, np.float32),
        labels=Labels(
            category_nodes=np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])[leaves],
            brands=np.full(count, -1),
        ),
        groups=np.arange(count),
        listing_ids=tuple(map(str, range(count))),
        photo_urls=tuple(f"{i}.jpg" for i in range(count)),
        unusable=(),
    )
