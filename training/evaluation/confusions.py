"""The categories that are most often taken for one another."""

from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.scored_rows import ScoredRows
from training.statistics.estimates import estimate_share, select_clusters
from vision.taxonomy import Taxonomy

__all__ = ["NUM_EXAMPLES", "NUM_PAIRS", "find_confusions"]

NUM_PAIRS = 12
NUM_EXAMPLES = 3

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]


def find_confusions(view: ScoredRows, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Pairs of true and answered leaf, the most frequent mistake first.

    Returns:
        `truth` and `answer` (ids), their paths, `num`, `num_truth`, `estimate_share` of the true category's rows, and
        `photos` (the surest mistakes) beside `photos_of_answer` (what the answer truly looks like).
    """
    answers, labels, confidences = view.leaves.argmax(axis=1), view.truth.leaves, view.leaves.max(axis=1)
    wrong = (labels >= 0) & (answers != labels)
    pairs, counts = np.unique(np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True)
    found = []
    for at in np.argsort(-counts, kind="stable")[:NUM_PAIRS]:
        truth, answer = (int(leaf) for leaf in pairs[at])
        of_truth, of_answer = labels == truth, labels == answer
        confused = of_truth & (answers == answer)
        # A right answer shows the category as the model knows it; where none is right, as the label does.
        shown = of_answer & (answers == answer)
        found.append(
            {
                "truth": taxonomy.leaf_ids[truth],
                "answer": taxonomy.leaf_ids[answer],
                "truth_path": taxonomy.path_name(taxonomy.leaf_ids[truth]),
                "answer_path": taxonomy.path_name(taxonomy.leaf_ids[answer]),
                "num": int(confused.sum()),
                "num_truth": int(of_truth.sum()),
                **estimate_share("share", confused[of_truth], select_clusters(view.clusters, of_truth)),
                "photos": _surest(confused, confidences, view.photos),
                "photos_of_answer": _surest(shown if shown.any() else of_answer, confidences, view.photos),
            }
        )
    return found


def _surest(rows: Bools, confidences: Floats, photos: tuple[str, ...]) -> list[str]:
    numbers = np.flatnonzero(rows)
    best = numbers[np.argsort(-confidences[numbers], kind="stable")][:NUM_EXAMPLES]
    return [photos[row] for row in best]
