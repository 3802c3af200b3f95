"""Invented predictions of an imperfect model."""

import numpy as np

from tests.support.helpers import create_small_taxonomy
from training.inference.predictions import Predictions
from vision.calibration import BRAND_FIELD, Calibration, FieldGuarantee, get_field_name
from vision.manifest import Labels


def create_synthetic_predictions(*, num_listings: int, photos: tuple[str, ...] = ("x.jpg",)) -> Predictions:
    """Listings of one to five photos, on the small tree, some without labels or with an inner one."""
    taxonomy, rng = create_small_taxonomy(), np.random.default_rng(0)
    groups = np.repeat(np.arange(num_listings), rng.integers(1, 6, num_listings))
    leaves, brands = rng.integers(0, 4, num_listings), rng.integers(-2, 3, num_listings)
    nodes = taxonomy.leaf_paths.max(axis=1)[leaves]
    nodes[:5], nodes[5:8] = taxonomy.node_index["apple"], -1
    category_logits = rng.normal(0, 2, (len(groups), 4)) + rng.normal(0, 2, (num_listings, 4))[groups]
    category_logits[np.arange(len(groups)), leaves[groups]] += 4
    brand_logits = rng.normal(0, 1, (len(groups), 3))
    branded = np.flatnonzero(brands[groups] >= 0)
    brand_logits[branded, brands[groups][branded]] += 4
    return Predictions(
        category_logits=category_logits.astype(np.float32),
        brand_logits=brand_logits.astype(np.float32),
        scope_scores=np.ones(len(groups), np.float32),
        labels=Labels(category_nodes=nodes[groups], brands=brands[groups]),
        groups=groups,
        listing_ids=tuple(map(str, range(num_listings))),
        photo_urls=tuple(photos[i % len(photos)] for i in range(len(groups))),
        unusable=("gone.jpg: gone",),
        short_sides_px=rng.integers(100, 2500, len(groups)),
        brightness=rng.uniform(0, 255, len(groups)),
    )


def create_synthetic_calibration(*, uncertified_reason: str = "too few listings") -> Calibration:
    """A calibration that prefills the two upper depths, never the third and the brand."""
    thresholds = {get_field_name(1): 0.6, get_field_name(2): 0.8, get_field_name(3): None, BRAND_FIELD: None}
    fields = (
        FieldGuarantee(
            name=name,
            alpha=0.05,
            delta=0.01,
            threshold=threshold,
            num_listings=9,
            num_filled=9,
            num_errors=0,
            uncertified_reason=uncertified_reason if threshold is None else "",
        )
        for name, threshold in thresholds.items()
    )
    return Calibration(category_temperature=1.8, unknown_brand_below=1.5, fields=tuple(fields), certifies={})
