"""How good a model is, per photo and per listing, through the decisions that serving makes."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.predictions import Predictions
from vision.decision import (
    BRAND_FIELD,
    Calibration,
    Paths,
    answer_paths,
    brand_probabilities,
    category_probabilities,
    field_name,
    node_probabilities,
)
from vision.manifest import UNLABELLED, Labels
from vision.metrics import expected_calibration_error, macro_accuracy, top_k_accuracy, wilson_interval
from vision.taxonomy import Taxonomy

__all__ = [
    "Truth",
    "Verdicts",
    "evaluate",
    "format_table",
    "judge_paths",
    "listing_labels",
    "pseudo_listings",
    "truth_by_depth",
    "without_nan",
]

Ints = npt.NDArray[np.int64]


class Verdicts(NamedTuple):
    """On each step of answered paths."""

    known: npt.NDArray[np.bool_]
    """(N, D) whether the step is answered and the truth decides on it."""
    right: npt.NDArray[np.bool_]
    """(N, D); false where not known."""


class Truth(NamedTuple):
    """The known answer of each row."""

    nodes: Ints
    """(N, D) the labelled node's ancestor at each depth, -1 where not known or not that deep."""
    leaves: Ints
    """(N,) column of the category logits; -1 where the label is missing or an inner node."""
    brands: Ints
    """(N,) column of the brand logits; -1 where missing."""


def evaluate(
    predictions: Predictions, *, taxonomy: Taxonomy, calibration: Calibration, groups: Ints | None = None
) -> dict[str, Any]:
    """Figures per photo and per listing.

    Args:
        groups: (P,) listing number of each photo, instead of the manifest's own listings.

    Returns:
        `photo` and `listing`, each with `num`, `leaf` (top1, top5, macro, ece, interval), `depth_1`…, `brand`
        (top1, of branded, of unbranded, ece) and `fields` (coverage and precision of what would be filled).
    """
    each_alone = np.arange(len(predictions.groups))
    fused = predictions.groups if groups is None else groups
    by_view = {}
    for view, view_groups in (("photo", each_alone), ("listing", fused)):
        labels = listing_labels(predictions.labels, view_groups)
        leaves = category_probabilities(predictions.category_logits, view_groups, calibration)
        brands = brand_probabilities(predictions.brand_logits, view_groups, calibration)
        by_view[view] = _figures(leaves, brands, truth_by_depth(labels, taxonomy), taxonomy, calibration)
    return {**by_view, "num_unusable_photos": len(predictions.unusable)}


def judge_paths(paths: Paths, truth: Truth) -> Verdicts:
    """Which steps of the answered paths are known to be right or wrong.

    A step deeper than the true leaf is wrong, and so is every step below one that is wrong. Not known is a step only
    where the label is missing, or is an inner node that the answer agrees with and goes below.
    """
    given = truth.nodes >= 0
    labelled = given.any(axis=1, keepdims=True)
    last_given = np.maximum(given.sum(axis=1, keepdims=True) - 1, 0)
    agrees = np.take_along_axis(paths.nodes, last_given, 1) == np.take_along_axis(truth.nodes, last_given, 1)
    to_the_leaf = truth.leaves[:, None] >= 0
    known = (paths.nodes >= 0) & labelled & (given | to_the_leaf | ~agrees)
    return Verdicts(known, known & given & (paths.nodes == truth.nodes))


def listing_labels(labels: Labels, groups: Ints) -> Labels:
    """The labels of each listing: for category and for brand, that of its first photo that carries one."""
    return Labels(
        category_nodes=_first_known(labels.category_nodes, groups), brands=_first_known(labels.brands, groups)
    )


def _first_known(values: Ints, groups: Ints) -> Ints:
    firsts = np.full(int(groups.max()) + 1, UNLABELLED, dtype=np.int64)
    known = values >= 0
    chosen, rows = np.unique(groups[known], return_index=True)
    firsts[chosen] = values[known][rows]
    return firsts


def pseudo_listings(labels: Labels, *, num_photos: int, seed: int) -> Ints:
    """(P,) groups of `num_photos` photos drawn at random from one category, for data without listings.

    The last group of a category is smaller where its photos do not divide.
    """
    rng = np.random.default_rng(seed)
    groups = np.empty(len(labels.category_nodes), dtype=np.int64)
    next_group = 0
    for node in np.unique(labels.category_nodes):
        rows = rng.permutation(np.flatnonzero(labels.category_nodes == node))
        groups[rows] = next_group + np.arange(len(rows)) // num_photos
        next_group = int(groups[rows].max()) + 1
    return groups


def truth_by_depth(labels: Labels, taxonomy: Taxonomy) -> Truth:
    paths = np.full((len(taxonomy.categories) + 1, taxonomy.max_depth), UNLABELLED, dtype=np.int64)
    leaf_of = np.full(len(taxonomy.categories) + 1, UNLABELLED, dtype=np.int64)
    for category in taxonomy.categories:
        node = taxonomy.node_index[category.id]
        for depth, ancestor in enumerate(taxonomy.ancestry(category.id)):
            paths[node, depth] = taxonomy.node_index[ancestor.id]
    for column, leaf_id in enumerate(taxonomy.leaf_ids):
        leaf_of[taxonomy.node_index[leaf_id]] = column
    # Index -1, 'not labelled', finds the last row, which is all -1.
    return Truth(paths[labels.category_nodes], leaf_of[labels.category_nodes], labels.brands)


def _figures(
    leaves: npt.NDArray[np.floating],
    brands: npt.NDArray[np.floating],
    truth: Truth,
    taxonomy: Taxonomy,
    calibration: Calibration,
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "num": len(leaves),
        "leaf": _level(leaves, truth.leaves, answers=leaves.argmax(axis=1), confidences=leaves.max(axis=1)),
    }
    nodes = node_probabilities(leaves, taxonomy)
    depth_of = np.array([len(taxonomy.ancestry(category.id)) for category in taxonomy.categories])
    paths = answer_paths(leaves, taxonomy)
    for depth in range(1, taxonomy.max_depth + 1):
        columns = np.flatnonzero(depth_of == depth)
        column_of = np.full(len(depth_of) + 1, UNLABELLED)
        column_of[columns] = np.arange(len(columns))
        figures[f"depth_{depth}"] = _level(
            nodes[:, columns],
            column_of[truth.nodes[:, depth - 1]],
            answers=column_of[paths.nodes[:, depth - 1]],
            confidences=paths.scores[:, depth - 1],
        )
    branded, unbranded = truth.brands > 0, truth.brands == 0
    right = brands.argmax(axis=1) == truth.brands
    known = branded | unbranded
    figures["brand"] = {
        "top1": _share(right[known]),
        "top1_branded": _share(right[branded]),
        "top1_unbranded": _share(right[unbranded]),
        "num_branded": int(branded.sum()),
        "num_unbranded": int(unbranded.sum()),
        "ece": expected_calibration_error(brands.max(axis=1)[known], right[known]),
    }
    figures["fields"] = _fields(leaves, brands, truth, taxonomy, calibration)
    return figures


def _level(
    scores: npt.NDArray[np.floating], labels: Ints, *, answers: Ints, confidences: npt.NDArray[np.floating]
) -> dict[str, Any]:
    """Figures of one level; `answers` are those of the decision, `scores` rank all nodes of the level for top-5."""
    labelled = labels >= 0
    right = answers[labelled] == labels[labelled]
    return {
        "num": int(labelled.sum()),
        "top1": _share(right),
        "top1_interval": wilson_interval(int(right.sum()), int(labelled.sum())),
        "top5": top_k_accuracy(scores, labels, k=5),
        "macro": macro_accuracy(answers, labels),
        "ece": expected_calibration_error(confidences[labelled], right),
    }


def _fields(
    leaves: npt.NDArray[np.floating],
    brands: npt.NDArray[np.floating],
    truth: Truth,
    taxonomy: Taxonomy,
    calibration: Calibration,
) -> dict[str, Any]:
    paths = answer_paths(leaves, taxonomy)
    verdicts = judge_paths(paths, truth)
    judged = {
        field_name(depth + 1): (paths.scores[:, depth], verdicts.known[:, depth], verdicts.right[:, depth])
        for depth in range(taxonomy.max_depth)
    }
    judged[BRAND_FIELD] = (brands.max(axis=1), truth.brands >= 0, brands.argmax(axis=1) == truth.brands)
    figures = {}
    for field in calibration.fields:
        score, known, right = judged[field.name]
        filled = known & (score >= (np.inf if field.threshold is None else field.threshold))
        figures[field.name] = {
            "alpha": field.alpha,
            "threshold": field.threshold,
            "coverage": _share(filled[known]),
            "precision": _share(right[filled]),
            "num_filled": int(filled.sum()),
            "num": int(known.sum()),
        }
    return figures


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if hits.size else float("nan")


def without_nan(figures: Any) -> Any:
    """The same with None for every NaN, which JSON does not have."""
    if isinstance(figures, dict):
        return {name: without_nan(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [without_nan(value) for value in figures]
    return None if isinstance(figures, float) and math.isnan(figures) else figures


def format_table(figures: dict[str, Any]) -> str:
    """The figures of `evaluate` as a table for people, shares in percent."""

    def percent(value: float) -> str:
        return "    -" if value != value else f"{100 * value:5.1f}"

    lines = []
    for view in ("photo", "listing"):
        part = figures[view]
        lines.append(f"per {view} ({part['num']})      num   top-1  top-5  macro    ECE   95 % interval of top-1")
        for level in ("leaf", *sorted(key for key in part if key.startswith("depth_"))):
            f = part[level]
            low, high = f["top1_interval"]
            lines.append(
                f"  {level:<16} {f['num']:8d}   {percent(f['top1'])}  {percent(f['top5'])}  {percent(f['macro'])}  "
                f"{percent(f['ece'])}   {percent(low)} – {percent(high).strip()}"
            )
        b = part["brand"]
        lines.append(
            f"  brand            {b['num_branded'] + b['num_unbranded']:8d}   {percent(b['top1'])}   branded "
            f"{percent(b['top1_branded'])} of {b['num_branded']}, unbranded {percent(b['top1_unbranded'])} of "
            f"{b['num_unbranded']}"
        )
    for name, f in figures["listing"]["fields"].items():
        if f["threshold"] is None:
            lines.append(f"  {name}: never filled, only suggested")
        else:
            lines.append(
                f"  {name}: filled for {percent(f['coverage'])} % of listings, right in {percent(f['precision'])} % "
                f"(promised {100 * (1 - f['alpha']):g} %)"
            )
    if figures["num_unusable_photos"]:
        lines.append(f"  {figures['num_unusable_photos']} photos could not be used")
    return "\n".join(lines)
