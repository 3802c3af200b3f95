"""Figures of slices: rows grouped by what is known about them."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.scored_rows import ScoredRows
from training.inference.predictions import Predictions
from training.statistics.estimates import estimate_hierarchical, estimate_share, select_clusters
from vision.manifest import UNLABELLED
from vision.taxonomy import Taxonomy

__all__ = ["Slices", "build_slices", "evaluate_slices"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Slices = Mapping[str, Mapping[str, Bools]]
"""Criterion to slice name to (N,) whether a row belongs to the slice."""

_NUM_PHOTOS = (1, 2, 4, 7, 13)
_SHORT_SIDES_PX = (0, 240, 480, 960, 1920)
_BRIGHTNESS = (0, 64, 128, 192)


def build_slices(predictions: Predictions, view: ScoredRows, taxonomy: Taxonomy) -> Slices:
    """Slices by number of photos, by labelled top-level category, and by mean size and brightness of a row's photos."""
    cut = {"photos of the listing": _split_into_ranges(view.num_photos, _NUM_PHOTOS)}
    roots = view.truth.nodes[:, 0]
    cut["top-level category"] = {
        taxonomy.categories[int(root)].name: roots == root for root in np.unique(roots[roots != UNLABELLED])
    }
    for name, facts, starts in (
        ("short side of the photo, px", predictions.short_sides_px, _SHORT_SIDES_PX),
        ("brightness of the photo, of 255", predictions.brightness, _BRIGHTNESS),
    ):
        if facts is not None:
            cut[name] = _split_into_ranges(np.bincount(view.rows_of, weights=facts) / np.bincount(view.rows_of), starts)
    return cut


def evaluate_slices(cut: Slices, view: ScoredRows) -> list[dict[str, Any]]:
    """The accuracy of each slice that has rows."""
    truth, steps, clusters = view.truth, view.steps, view.clusters
    leaf_right, brand_right = view.leaves.argmax(axis=1) == truth.leaves, view.brands.labels == truth.brands
    found = []
    for by, parts in cut.items():
        for name, rows in parts.items():
            if not rows.any():
                continue
            labelled, branded = rows & (truth.leaves >= 0), rows & (truth.brands != UNLABELLED)
            tree = estimate_hierarchical(
                labelled=truth.nodes[rows] >= 0,
                predicted=steps.known[rows],
                right=steps.right[rows],
                clusters=select_clusters(clusters, rows),
            )
            found.append(
                {
                    "by": by,
                    "name": name,
                    "num": int(rows.sum()),
                    **estimate_share("leaf_top1", leaf_right[labelled], select_clusters(clusters, labelled)),
                    "hierarchical_f1": tree["f1"],
                    "hierarchical_f1_interval": tree["f1_interval"],
                    **estimate_share("brand_top1", brand_right[branded], select_clusters(clusters, branded)),
                }
            )
    return found


def _split_into_ranges(values: Floats | Ints, starts: tuple[int, ...]) -> dict[str, Bools]:
    """One slice from each start to the next, named after its whole numbers."""
    found = {f"{starts[-1]} or more": values >= starts[-1]}
    parts = {}
    for start, end in itertools.pairwise(starts):
        name = str(start) if end == start + 1 else f"{start} to {end - 1}"
        parts[name] = (values >= start) & (values < end)
    return parts | found
