"""Predictions as rows to evaluate: each photo alone, or the photos of a listing fused."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from training.evaluation.ground_truth import (
    GroundTruth,
    StepResults,
    build_ground_truth,
    evaluate_paths,
    merge_listing_labels,
)
from training.inference.predictions import Predictions
from vision.calibration import Calibration
from vision.decision import compute_prefilled
from vision.metrics import compute_top_k_hits
from vision.prediction.fusion import compute_leaf_probabilities, compute_node_probabilities
from vision.prediction.listings import Brands, Paths, predict_brands, predict_fused
from vision.taxonomy import Taxonomy

__all__ = ["ScoredRows", "score_rows"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Predictions for N rows beside their ground truth; C leaves, D depths."""

    leaves: Floats
    """(N, C) probabilities."""
    paths: Paths
    brands: Brands
    brand_top5: Bools
    """(N,) whether the labelled brand, or 'no brand', is among the five likeliest; False where none is labelled."""
    in_scope: Bools
    """(N,) whether the taxonomy covers what is shown; if not, nothing is prefilled."""
    photos_disagree: Bools
    """(N,) whether the photos contradict one another, so that not every depth is prefilled."""
    filled: Bools
    """(N, D + 1) whether each depth, then the brand, is prefilled."""
    uncalibrated_leaf_scores: Floats
    """(N,) probability of the predicted leaf at temperature 1."""
    uncalibrated_path_scores: Floats
    """(N, D) the same for each step of the path."""
    uncalibrated_brand_scores: Floats
    """(N,)."""
    truth: GroundTruth
    steps: StepResults
    rows_of: Ints
    """(P,) row of each photo."""
    clusters: Ints | None
    """(N,) the listing of each row, whose photos are right or wrong together. None where rows are independent."""
    num_photos: Ints
    """(N,) photos of the listing that a row is, or is part of."""
    photos: tuple[str, ...]
    """N URLs, the first photo of each row."""


def score_rows(
    predictions: Predictions, rows_of: Ints, *, taxonomy: Taxonomy, calibration: Calibration, clusters: Ints | None
) -> ScoredRows:
    """Predict the rows 0…N-1, as serving does; `rows_of`, (P,), is the row of each photo."""
    truth = build_ground_truth(merge_listing_labels(predictions.labels, rows_of), taxonomy)
    as_trained = replace(calibration, category_temperature=1.0, category_depth_temperatures=(), brand_temperature=1.0)
    fused, predicted = predict_fused(
        predictions.category_logits,
        predictions.brand_logits,
        predictions.scope_scores,
        rows_of,
        taxonomy=taxonomy,
        calibration=calibration,
    )
    leaves, paths, brands = fused.leaves, predicted.paths, predicted.brands
    used = np.flatnonzero(predicted.photos_used)
    raw_leaves = compute_leaf_probabilities(predictions.category_logits[used], rows_of[used], as_trained, taxonomy)
    brand_top5 = np.zeros(len(leaves), dtype=bool)
    brand_top5[truth.brands >= 0] = compute_top_k_hits(fused.brand_probabilities, truth.brands, k=5)
    firsts = np.unique(rows_of, return_index=True)[1]
    num_photos = np.bincount(rows_of if clusters is None else clusters)
    return ScoredRows(
        leaves=leaves,
        paths=paths,
        brands=brands,
        brand_top5=brand_top5,
        in_scope=predicted.in_scope,
        photos_disagree=predicted.in_scope & (paths.num_fillable < taxonomy.max_depth),
        filled=compute_prefilled(predicted, taxonomy=taxonomy, calibration=calibration),
        # For the same predictions: temperatures by depth may prefer another leaf.
        uncalibrated_leaf_scores=raw_leaves[np.arange(len(leaves)), leaves.argmax(axis=1)],
        uncalibrated_path_scores=np.where(
            paths.nodes >= 0,
            np.take_along_axis(compute_node_probabilities(raw_leaves, taxonomy), paths.nodes, axis=1),
            0.0,
        ),
        uncalibrated_brand_scores=predict_brands(fused.brand_logits, as_trained).scores,
        truth=truth,
        steps=evaluate_paths(paths, truth),
        rows_of=rows_of,
        clusters=clusters,
        num_photos=num_photos if clusters is None else num_photos[clusters],
        photos=tuple(predictions.photo_urls[first] for first in firsts),
    )
