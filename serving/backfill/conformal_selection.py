"""Conformal selection: the rows of a batch to fill so that on average few of them are wrong. NumPy only.

Benjamini-Hochberg on conformal p-values (Jin and Candès 2023), written as a threshold: with n labelled listings and a
batch of m rows, the loosest threshold t at which

    (1 + labelled ones that are wrong and score at least t) / (n + 1) · m / (rows that score at least t) <= α.

The expected share of wrong rows among the filled ones is then at most α if labelled listings and rows are exchangeable.
Depths are nested, and a subset of a selection may have a larger share of wrong rows. Each depth's rows therefore carry
conformal e-values, (n + 1) / (1 + wrong labelled ones at t): those that also pass all depths above are filled only if
they are at least m / (α · e-value) many, which bounds their expected share whatever the subset (Wang and Ramdas 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["FieldScores", "FieldSelection", "select_depths", "select_field"]

Floats = npt.NDArray[np.floating]


class FieldScores(NamedTuple):
    """Scores of one field; -inf where it can never be filled."""

    labelled: Floats
    """(n,) scores of the labelled listings."""
    wrong: npt.NDArray[np.bool_]
    """(n,) whether the suggestion for each is wrong."""
    rows: Floats
    """(m,) scores of the batch, whose truth is not known."""


@dataclass(frozen=True, kw_only=True)
class FieldSelection:
    """What is filled of one field: rows that score at least `threshold`, and for a depth are filled at all above."""

    threshold: float | None
    """None: no row."""
    num_labelled: int
    num_errors: int
    """Labelled listings that are wrong and score at least the threshold that the field by itself would have."""
    num_rows: int
    num_filled: int


def select_field(scores: FieldScores, *, alpha: float) -> FieldSelection:
    """Return the selection of one field; the expected share of wrong rows among its filled ones is at most `alpha`."""
    return select_depths([scores], alpha=alpha)[0]


def select_depths(depths: Sequence[FieldScores], *, alpha: float) -> list[FieldSelection]:
    """Return the selection of each depth of a path, from the roots down, for rows that the depths above fill.

    At each depth by itself, the expected share of wrong rows among those filled to it is at most `alpha`.

    Args:
        depths: of the same rows, at least one.
        alpha: highest expected share, between 0 and 1.
    """
    selections = []
    filled = np.ones(len(depths[0].rows), dtype=bool)
    for scores in depths:
        threshold = _choose_threshold(scores, alpha)
        num_errors = int((scores.wrong & (scores.labelled >= threshold)).sum())
        filled = filled & (scores.rows >= threshold)
        num_filled = int(filled.sum())
        # The same formula as that of the threshold, for the rows that the depths above have left.
        if num_filled and _estimate(num_errors, num_filled, scores) > alpha:
            filled, num_filled = np.zeros_like(filled), 0
        selections.append(
            FieldSelection(
                threshold=threshold if num_filled else None,
                num_labelled=len(scores.labelled),
                num_errors=num_errors,
                num_rows=len(scores.rows),
                num_filled=num_filled,
            )
        )
    return selections


def _choose_threshold(scores: FieldScores, alpha: float) -> float:
    """Return the loosest threshold that is allowed; inf: none."""
    candidates = np.unique(np.concatenate([scores.labelled, scores.rows]))
    candidates = candidates[np.isfinite(candidates)]
    num_filled = _count_at_least(scores.rows, candidates)
    num_errors = _count_at_least(scores.labelled[scores.wrong], candidates)
    allowed = (num_filled > 0) & (_estimate(num_errors, np.maximum(num_filled, 1), scores) <= alpha)
    return float(candidates[allowed.argmax()]) if allowed.any() else np.inf


def _count_at_least(values: Floats, thresholds: Floats) -> npt.NDArray[np.int64]:
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


def _estimate(num_errors: "npt.ArrayLike", num_filled: "npt.ArrayLike", scores: FieldScores) -> Floats:
    """Return the share of wrong rows among the filled ones that the labelled listings let expect, at most."""
    # Whole numbers divided once, so that a share that equals alpha is not rounded above it.
    share: Floats = (
        (1 + np.asarray(num_errors)) * len(scores.rows) / ((len(scores.labelled) + 1) * np.asarray(num_filled))
    )
    return share
