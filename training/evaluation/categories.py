"""Figures by leaf category, and the confusion matrix between them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.ground_truth import evaluate_deepest_filled
from training.evaluation.scored_rows import ScoredRows
from training.statistics.estimates import estimate_share, select_clusters
from vision.calibration import Calibration
from vision.taxonomy import Taxonomy

__all__ = ["MAX_ERRORS", "count_confusions", "evaluate_categories"]

MAX_ERRORS = 3
"""Sample errors of each category."""

Bools = npt.NDArray[np.bool_]


def evaluate_categories(view: ScoredRows, taxonomy: Taxonomy, calibration: Calibration) -> list[dict[str, Any]]:
    """Figures of each leaf category that is a label or a prediction, in the taxonomy's order.

    Returns:
        `category` (id), `path`, `parent` (path, empty for roots), `num` (labelled rows), `recall`, `precision` (of rows
        with a known leaf), `filled` (of the labelled rows, any category level), `filled_right` (of the filled, the
        deepest filled level), `threshold` and `errors`, the most confident mistakes: `photo`, `answer_path` and
        `confidence`.
    """
    predicted, labels = view.leaves.argmax(axis=1), view.truth.leaves
    filled = view.filled[:, :-1]
    is_filled, filled_right = np.logical_or.reduce(filled, axis=1), evaluate_deepest_filled(filled, view.steps)
    known = labels >= 0
    found = []
    for leaf in np.union1d(labels[known], predicted[known]).tolist():
        leaf_id = taxonomy.leaf_ids[leaf]
        lineage = taxonomy.get_lineage(leaf_id)
        of_label, of_answer = labels == leaf, known & (predicted == leaf)
        shown = of_label & is_filled
        guarantee = calibration.get_category_guarantee(len(lineage))
        found.append(
            {
                "category": leaf_id,
                "path": taxonomy.format_path(leaf_id),
                "parent": taxonomy.format_path(lineage[-2].id) if len(lineage) > 1 else "",
                "num": int(of_label.sum()),
                **_share(view, "recall", predicted == labels, of_label),
                **_share(view, "precision", predicted == labels, of_answer),
                "num_filled": int(shown.sum()),
                **_share(view, "filled", is_filled, of_label),
                **_share(view, "filled_right", filled_right, shown),
                "threshold": guarantee.threshold if guarantee else None,
                "errors": _choose_errors(view, of_label & (predicted != leaf), taxonomy),
            }
        )
    return found


def count_confusions(view: ScoredRows, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """The cells of the confusion matrix that are not empty, the diagonal included: `truth`, `answer` (ids), `num`."""
    known = view.truth.leaves >= 0
    pairs = np.stack([view.truth.leaves[known], view.leaves.argmax(axis=1)[known]], axis=1)
    cells, counts = np.unique(pairs, axis=0, return_counts=True)
    return [
        {"truth": taxonomy.leaf_ids[truth], "answer": taxonomy.leaf_ids[answer], "num": num}
        for (truth, answer), num in zip(cells.tolist(), counts.tolist(), strict=True)
    ]


def _share(view: ScoredRows, name: str, hits: Bools, rows: Bools) -> dict[str, Any]:
    return estimate_share(name, hits[rows], select_clusters(view.clusters, rows))


def _choose_errors(view: ScoredRows, wrong: Bools, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    rows = np.flatnonzero(wrong)
    confidences = view.leaves[rows].max(axis=1)
    chosen = np.argsort(-confidences, kind="stable")[:MAX_ERRORS]
    return [
        {
            "photo": view.photos[row],
            "answer_path": taxonomy.format_path(taxonomy.leaf_ids[int(view.leaves[row].argmax())]),
            "confidence": float(view.leaves[row].max()),
        }
        for row in rows[chosen].tolist()
    ]
