"""How good a model is, per photo and per listing, through the decisions that serving makes."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.predictions import Predictions
from vision.decision import (
    BRAND_FIELD,
    Calibration,
    answer_paths,
    brand_probabilities,
    category_probabilities,
    field_name,
    node_probabilities,
)
from vision.manifest import UNLABELLED, Labels
from vision.metrics import expected_calibration_error, macro_accuracy, top_k_accuracy, wilson_interval
from vision.taxonomy import Taxonomy

__all__ = ["Truth", "evaluate", "format_table", "listing_labels", "pseudo_listings", "truth_by_depth"]

Ints = npt.NDArray[np.int64]


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


def listing_labels(labels: Labels, groups: Ints) -> Labels:
    """The label of each listing: that of its first photo."""
    firsts = np.unique(groups, return_index=True)[1]
    return Labels(category_nodes=labels.category_nodes[firsts], brands=labels.brands[firsts])


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
    figures: dict[str, Any] = {"num": len(leaves), "leaf": _level(leaves, truth.leaves)}
    nodes = node_probabilities(leaves, taxonomy)
    depth_of = np.array([len(taxonomy.ancestry(category.id)) for category in taxonomy.categories])
    for depth in range(1, taxonomy.max_depth + 1):
        columns = np.flatnonzero(depth_of == depth)
        column_of = np.full(len(depth_of) + 1, UNLABELLED)
        column_of[columns] = np.arange(len(columns))
        figures[f"depth_{depth}"] = _level(nodes[:, columns], column_of[truth.nodes[:, depth - 1]])
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


def _level(scores: npt.NDArray[np.floating], labels: Ints) -> dict[str, Any]:
    labelled = labels >= 0
    best = scores.argmax(axis=1)
    right = best[labelled] == labels[labelled]
    return {
        "num": int(labelled.sum()),
        "top1": top_k_accuracy(scores, labels, k=1),
        "top1_interval": wilson_interval(int(right.sum()), int(labelled.sum())),
        "top5": top_k_accuracy(scores, labels, k=5),
        "macro": macro_accuracy(best, labels),
        "ece": expected_calibration_error(scores.max(axis=1)[labelled], right),
    }


def _fields(
    leaves: npt.NDArray[np.floating],
    brands: npt.NDArray[np.floating],
    truth: Truth,
    taxonomy: Taxonomy,
    calibration: Calibration,
) -> dict[str, Any]:
    paths = answer_paths(leaves, taxonomy)
    answers = {
        field_name(depth): (paths.nodes[:, depth - 1], paths.scores[:, depth - 1], truth.nodes[:, depth - 1])
        for depth in range(1, taxonomy.max_depth + 1)
    }
    answers[BRAND_FIELD] = (brands.argmax(axis=1), brands.max(axis=1), truth.brands)
    figures = {}
    for field in calibration.fields:
        answer, score, wanted = answers[field.name]
        known = (wanted >= 0) & (answer >= 0)
        filled = known & (score >= (np.inf if field.threshold is None else field.threshold))
        figures[field.name] = {
            "alpha": field.alpha,
            "threshold": field.threshold,
            "coverage": _share(filled[known]),
            "precision": _share((answer == wanted)[filled]),
            "num_filled": int(filled.sum()),
            "num": int(known.sum()),
        }
    return figures


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if hits.size else float("nan")


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
