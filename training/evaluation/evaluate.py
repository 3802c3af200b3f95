"""Evaluation of a model, per photo and per listing, through the decisions that serving makes."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.evaluation.categories import count_confusions, evaluate_categories
from training.evaluation.confusions import find_confusions
from training.evaluation.ground_truth import evaluate_brands, evaluate_deepest_filled, find_labelled
from training.evaluation.long_tail import LeafCounts, count_leaves, evaluate_by_frequency
from training.evaluation.risk_coverage import compute_risk_coverage
from training.evaluation.scored_rows import ScoredRows, score_rows
from training.evaluation.slices import build_slices, evaluate_slices
from training.evaluation.uncertified import explain_uncertified
from training.inference.predictions import Predictions
from training.reporting.field_titles import format_field_title
from training.statistics.estimates import (
    bin_reliability,
    estimate_calibration_error,
    estimate_hierarchical,
    estimate_macro_accuracy,
    estimate_share,
    select_clusters,
)
from vision.calibration import BRAND_FIELD, PATH_FIELD, Calibration, FieldGuarantee, get_field_name
from vision.manifest import UNLABELLED, Labels
from vision.metrics import compute_top_k_hits
from vision.prediction.fusion import compute_node_probabilities
from vision.prediction.listings import compute_brand_scores, compute_path_scores
from vision.runtime.wording import format_count
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = ["evaluate", "explore_thresholds", "format_table", "group_pseudo_listings", "replace_nan"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def evaluate(
    predictions: Predictions,
    *,
    taxonomy: Taxonomy,
    calibration: Calibration,
    groups: Ints | None = None,
    training_counts: LeafCounts | None = None,
) -> dict[str, Any]:
    """Figures per photo and per listing, each with its 95 % interval beside it (`top1`, `top1_interval`).

    Args:
        groups: (P,) listing number of each photo, instead of the manifest's own listings.
        training_counts: decides which categories are frequent or rare; default: the evaluated photos.

    Returns:
        `photo` and `listing`; of the listings alone `gates` (out of scope, photos that disagree), `fields` (what is
        filled) and `selective` (precision against coverage); of both `num`, `leaf` and `depth_1`… (top1, top5, macro,
        ece, reliability), `brand` (all, branded, unbranded and unseen) where the taxonomy has brands, `hierarchy`,
        `frequency`, `confusions`, `categories`, `confusion_matrix` and `slices`.
    """
    counts = training_counts or count_leaves(predictions.labels, taxonomy, counted_on="the evaluated photos")
    each_alone = np.arange(len(predictions.groups))
    by_view = {}
    for name, rows_of, clusters in (
        ("photo", each_alone, predictions.groups),
        ("listing", predictions.groups if groups is None else groups, None),
    ):
        view = score_rows(predictions, rows_of, taxonomy=taxonomy, calibration=calibration, clusters=clusters)
        by_view[name] = {
            **_evaluate_rows(view, taxonomy, calibration),
            "frequency": evaluate_by_frequency(
                view.leaves.argmax(axis=1), view.truth.leaves, counts, clusters=clusters
            ),
            "confusions": find_confusions(view, taxonomy),
            "categories": evaluate_categories(view, taxonomy, calibration),
            "confusion_matrix": count_confusions(view, taxonomy),
            "slices": evaluate_slices(build_slices(predictions, view, taxonomy), view),
        }
    return {**by_view, "num_unusable_photos": len(predictions.unusable)}


def explore_thresholds(predictions: Predictions, *, taxonomy: Taxonomy, calibration: Calibration) -> dict[str, Any]:
    """Precision against coverage of each field, as `selective` of `evaluate`, on listings that may be tuned on."""
    view = score_rows(predictions, predictions.groups, taxonomy=taxonomy, calibration=calibration, clusters=None)
    curves: dict[str, Any] = _evaluate_filling(view, taxonomy, calibration)["selective"]
    return curves


def group_pseudo_listings(labels: Labels, *, num_photos: int, seed: int) -> Ints:
    """(P,) random groups of `num_photos` photos of one category and brand, for data without listings.

    The last group of a category and brand may be smaller.
    """
    rng = np.random.default_rng(seed)
    groups = np.empty(len(labels.category_nodes), dtype=np.int64)
    next_group = 0
    kinds, kind_of = np.unique(np.column_stack([labels.category_nodes, labels.brands]), axis=0, return_inverse=True)
    for kind in range(len(kinds)):
        rows = rng.permutation(np.flatnonzero(kind_of == kind))
        groups[rows] = next_group + np.arange(len(rows)) // num_photos
        next_group = int(groups[rows].max()) + 1
    return groups


def _evaluate_rows(view: ScoredRows, taxonomy: Taxonomy, calibration: Calibration) -> dict[str, Any]:
    return {
        "num": len(view.leaves),
        **_evaluate_levels(view, taxonomy),
        **({"brand": _evaluate_brand(view)} if taxonomy.brands else {}),
        # A guarantee holds for listings, so photos have no figures of it.
        **(_evaluate_filling(view, taxonomy, calibration) if view.clusters is None else {}),
        "hierarchy": {
            **estimate_hierarchical(
                labelled=view.truth.nodes >= 0,
                predicted=view.steps.known,
                right=view.steps.right,
                clusters=view.clusters,
            ),
            "mistakes": _count_first_mistakes(view),
        },
    }


def _evaluate_filling(view: ScoredRows, taxonomy: Taxonomy, calibration: Calibration) -> dict[str, Any]:
    fields = _build_field_rows(view, taxonomy)
    rows_by_guarantee = {**fields, PATH_FIELD: _build_path_rows(view)}
    return {
        "gates": {
            **estimate_share("out_of_scope", ~view.in_scope, None),
            **estimate_share("photos_disagree", view.photos_disagree, None),
        },
        "fields": {
            field.name: _evaluate_field(rows_by_guarantee[field.name], field)
            for field in calibration.fields
            if field.name in rows_by_guarantee  # earlier versions had one for the brands of a taxonomy without any
        },
        "selective": {
            name: compute_risk_coverage(
                field.scores,
                field.right,
                known=field.known,
                filled=field.filled,
                guarantee=calibration.field(name) or (calibration.field(PATH_FIELD) if name != BRAND_FIELD else None),
                clusters=None,
            )
            for name, field in fields.items()
        },
    }


def _evaluate_levels(view: ScoredRows, taxonomy: Taxonomy) -> dict[str, Any]:
    truth, paths = view.truth, view.paths
    levels = {
        "leaf": _evaluate_level(
            view.leaves,
            truth.leaves,
            predicted=view.leaves.argmax(axis=1),
            confidences=view.leaves.max(axis=1),
            uncalibrated=view.uncalibrated_leaf_scores,
            clusters=view.clusters,
        )
    }
    nodes = compute_node_probabilities(view.leaves, taxonomy)
    depth_of = np.array([len(taxonomy.get_lineage(category.id)) for category in taxonomy.categories])
    for depth in range(1, taxonomy.max_depth + 1):
        columns = np.flatnonzero(depth_of == depth)
        column_of = np.full(len(depth_of) + 1, UNLABELLED)
        column_of[columns] = np.arange(len(columns))
        levels[f"depth_{depth}"] = _evaluate_level(
            nodes[:, columns],
            column_of[truth.nodes[:, depth - 1]],
            predicted=column_of[paths.nodes[:, depth - 1]],
            confidences=paths.scores[:, depth - 1],
            uncalibrated=view.uncalibrated_path_scores[:, depth - 1],
            clusters=view.clusters,
        )
    return levels


def _evaluate_level(
    scores: Floats, labels: Ints, *, predicted: Ints, confidences: Floats, uncalibrated: Floats, clusters: Ints | None
) -> dict[str, Any]:
    """Figures of one level; `predicted` is what was decided, `scores` rank all nodes of the level for top-5."""
    labelled = labels >= 0
    right, kept = predicted[labelled] == labels[labelled], select_clusters(clusters, labelled)
    return {
        "num": int(labelled.sum()),
        **estimate_share("top1", right, kept),
        **estimate_share("top5", compute_top_k_hits(scores, labels, k=5), kept),
        **estimate_macro_accuracy("macro", predicted, labels, clusters),
        **_evaluate_calibration(confidences[labelled], uncalibrated[labelled], right, kept),
    }


def _evaluate_calibration(
    confidences: Floats, uncalibrated: Floats, right: Bools, clusters: Ints | None
) -> dict[str, Any]:
    return {
        **estimate_calibration_error("ece", confidences, right, clusters),
        **estimate_calibration_error("ece_uncalibrated", uncalibrated, right, clusters),
        "reliability": bin_reliability(confidences, right, clusters),
        "reliability_uncalibrated": bin_reliability(uncalibrated, right, clusters),
    }


def _evaluate_brand(view: ScoredRows) -> dict[str, Any]:
    """Figures of brands; for a brand outside the taxonomy only 'unknown brand' is right."""
    truth, predicted = view.truth.brands, view.brands.labels
    known, right = truth != UNLABELLED, predicted == truth
    # 'Unknown brand' has no probability that could be calibrated.
    scored = known & (predicted != OTHER_BRAND)
    parts: dict[str, Any] = {}
    for name, rows in (("branded", truth > 0), ("unbranded", truth == 0), ("unseen", truth == OTHER_BRAND)):
        kept = select_clusters(view.clusters, rows)
        parts |= {
            f"num_{name}": int(rows.sum()),
            **estimate_share(f"top1_{name}", right[rows], kept),
            **estimate_share(f"top5_{name}", view.brand_top5[rows], kept),
            **estimate_share(f"none_known_{name}", predicted[rows] == OTHER_BRAND, kept),
            **estimate_share(f"filled_{name}", view.filled[rows, -1], kept),
            **estimate_share(f"filled_wrong_{name}", view.filled[rows, -1] & ~right[rows], kept),
        }
    return {
        "num": int(known.sum()),
        **estimate_share("top1", right[known], select_clusters(view.clusters, known)),
        **estimate_share("top5", view.brand_top5[truth >= 0], select_clusters(view.clusters, truth >= 0)),
        **parts,
        **_evaluate_calibration(
            view.brands.scores[scored],
            view.uncalibrated_brand_scores[scored],
            right[scored],
            select_clusters(view.clusters, scored),
        ),
    }


class _FieldRows(NamedTuple):
    """One field of the seller's form, (N,) each."""

    scores: Floats
    """What a threshold is compared with; -inf where nothing is ever prefilled."""
    known: Bools
    right: Bools
    filled: Bools


def _build_field_rows(view: ScoredRows, taxonomy: Taxonomy) -> dict[str, _FieldRows]:
    """The rows of each field by its name."""
    scores = compute_path_scores(view.paths, taxonomy)
    fields = {
        get_field_name(depth + 1): _FieldRows(
            scores[:, depth], view.steps.known[:, depth], view.steps.right[:, depth], view.filled[:, depth]
        )
        for depth in range(taxonomy.max_depth)
    }
    if taxonomy.brands:
        brands = evaluate_brands(view.brands.labels, view.truth)
        scores = compute_brand_scores(view.brands)
        fields[BRAND_FIELD] = _FieldRows(scores, brands.known, brands.right, view.filled[:, -1])
    return fields


def _build_path_rows(view: ScoredRows) -> _FieldRows:
    """The rows of the path of categories; right where the deepest prefilled one is."""
    filled = view.filled[:, :-1]
    labelled = find_labelled(view.truth)
    right = evaluate_deepest_filled(filled, view.steps)
    return _FieldRows(view.paths.scores[:, 0], labelled, right, filled[:, 0])


def _evaluate_field(rows: _FieldRows, guarantee: FieldGuarantee) -> dict[str, Any]:
    """What is filled of all rows, and what is right of the filled ones whose label decides it."""
    judged = rows.filled & rows.known
    return {
        "alpha": guarantee.alpha,
        "threshold": guarantee.threshold,
        "uncertified_sentence": "" if guarantee.threshold is not None else explain_uncertified(guarantee),
        "num": len(rows.filled),
        "num_filled": int(rows.filled.sum()),
        **estimate_share("coverage", rows.filled, None),
        "num_judged": int(judged.sum()),
        **estimate_share("precision", rows.right[judged], None),
    }


def _count_first_mistakes(view: ScoredRows) -> list[dict[str, Any]]:
    """How many predicted paths first leave the label at each depth, those that never do first (`depth` null)."""
    known, right = view.steps
    has_known = np.logical_or.reduce(known, axis=1)
    wrong = known & ~right
    first = np.where(wrong.any(axis=1), wrong.argmax(axis=1), -1)[has_known]
    return [
        {
            "depth": None if depth < 0 else depth + 1,
            "num": int((first == depth).sum()),
            **estimate_share("share", first == depth, select_clusters(view.clusters, has_known)),
        }
        for depth in range(-1, known.shape[1])
    ]


def replace_nan(figures: Any) -> Any:
    """Replace every NaN, which JSON does not have, by None."""
    if isinstance(figures, dict):
        return {name: replace_nan(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [replace_nan(value) for value in figures]
    return None if isinstance(figures, float) and math.isnan(figures) else figures


def format_table(figures: dict[str, Any]) -> str:
    """The figures of `evaluate` as a text table, shares in percent."""

    def percent(value: float) -> str:
        return "    -" if value != value else f"{100 * value:5.1f}"

    lines = []
    views = ("listing",) if figures["listing"]["num"] == figures["photo"]["num"] else ("photo", "listing")
    for view in views:
        part = figures[view]
        lines.append(f"per {view} ({part['num']})      num   top-1  top-5  macro    ECE   95 % interval of top-1")
        for level in ("leaf", *sorted(key for key in part if key.startswith("depth_"))):
            f = part[level]
            low, high = f["top1_interval"]
            lines.append(
                f"  {format_field_title(level):<17}{f['num']:8d}   {percent(f['top1'])}  {percent(f['top5'])}  "
                f"{percent(f['macro'])}  {percent(f['ece'])}   {percent(low)} – {percent(high).strip()}"
            )
        if b := part.get("brand"):
            lines.append(
                f"  {'Brand':<17}{b['num']:8d}   {percent(b['top1'])}  {percent(b['top5'])}   branded "
                f"{percent(b['top1_branded'])} of {b['num_branded']}, unbranded {percent(b['top1_unbranded'])} of "
                f"{b['num_unbranded']}, not in our list {percent(b['top1_unseen'])} of {b['num_unseen']}"
            )
        if gates := part.get("gates"):
            lines.append(
                f"  {'Never filled in':<17}{part['num']:8d}   out of scope {percent(gates['out_of_scope'])}, "
                f"photos disagree {percent(gates['photos_disagree'])}"
            )
        h = part["hierarchy"]
        lines.append(
            f"  {'Category tree':<17}{h['num']:8d}   precision {percent(h['precision'])}, "
            f"recall {percent(h['recall'])}, F1 {percent(h['f1'])}"
        )
    if figures["num_unusable_photos"]:
        lines.append(f"  {format_count(figures['num_unusable_photos'], 'photo')} could not be used")
    return "\n".join(lines)
