"""The categories that are most often confused with each other."""

from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.scored_rows import ScoredRows
from training.statistics.estimates import estimate_share, select_clusters
from vision.taxonomy import Taxonomy

__all__ = ["MAX_EXAMPLES", "MAX_PAIRS", "find_confusions"]

MAX_PAIRS = 12
MAX_EXAMPLES = 3

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]


def find_confusions(view: ScoredRows, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Pairs of labelled and predicted leaf, the most frequent mistake first.

    Returns:
        `truth` and `answer` (ids), their paths, `num`, `num_truth`, `estimate_share` of the true category's rows, and
        `photos` (the most confident mistakes) beside `photos_of_answer` (photos labelled with the predicted leaf).
    """
    predicted, labels, confidences = view.leaves.argmax(axis=1), view.truth.leaves, view.leaves.max(axis=1)
    wrong = (labels >= 0) & (predicted != labels)
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    found = []
    for at in np.argsort(-counts, kind="stable")[:MAX_PAIRS]:
        truth, answer = (int(leaf) for leaf in pairs[at])
        of_truth, of_answer = labels == truth, labels == answer
        confused = of_truth & (predicted == answer)
        # Prefer right predictions, which show the category as the model knows it.
        shown = of_answer & (predicted == answer)
        found.append(
            {
                "truth": taxonomy.leaf_ids[truth],
                "answer": taxonomy.leaf_ids[answer],
                "truth_path": taxonomy.format_path(taxonomy.leaf_ids[truth]),
                "answer_path": taxonomy.format_path(taxonomy.leaf_ids[answer]),
                "num": int(confused.sum()),
                "num_truth": int(of_truth.sum()),
                **estimate_share("share", confused[of_truth], select_clusters(view.clusters, of_truth)),
                "photos": _choose_most_confident(confused, confidences, view.photos),
                "photos_of_answer": _choose_most_confident(
                    shown if shown.any() else of_answer, confidences, view.photos
                ),
            }
        )
    return found


def _choose_most_confident(rows: Bools, confidences: Floats, photos: tuple[str, ...]) -> list[str]:
    numbers = np.flatnonzero(rows)
    best = numbers[np.argsort(-confidences[numbers], kind="stable")][:MAX_EXAMPLES]
    return [photos[row] for row in best]
