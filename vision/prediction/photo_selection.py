"""Which photos of listings decide: those that show what the taxonomy covers, each once. NumPy only."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vision.calibration import Calibration

__all__ = ["PhotoSelection", "compute_listing_scope_scores", "select_photos"]

_MAX_LOGIT_NOISE = 1e-4
"""Logits of one photo computed twice differ by less."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


class PhotoSelection(NamedTuple):
    """The photos that decide about N listings, out of their P photos."""

    in_scope: Bools
    """(P,) whether the photo shows what the taxonomy covers."""
    used: Bools
    """(P,) whether it takes part in the suggestion: those in scope, or all of a listing that has none, without copies
    of an earlier photo of the listing."""
    listings_in_scope: Bools
    """(N,) whether any photo is in scope. Nothing is filled for the others."""


def select_photos(
    category_logits: Floats, brand_logits: Floats, scope_scores: Floats, groups: Ints, calibration: Calibration
) -> PhotoSelection:
    """Select the photos by the calibration's threshold; without one, all are in scope.

    Args:
        category_logits: (P, C).
        brand_logits: (P, B).
        scope_scores: (P,); NaN, where the model computed none, is out of scope.
        groups: (P,) listing numbers 0…N-1, each at least once.
    """
    if calibration.scope_threshold is None:
        in_scope = np.ones(len(groups), bool)
    else:
        in_scope = scope_scores >= calibration.scope_threshold
    if len(groups) == 1:
        return PhotoSelection(in_scope, np.ones(1, bool), in_scope)
    listings_in_scope = np.bincount(groups, weights=in_scope) > 0
    used = in_scope | ~listings_in_scope[groups]
    # Scores of copies differ by noise as well: a copy is one of a photo that is used.
    used &= ~_find_copies(category_logits, brand_logits, groups, np.flatnonzero(used))
    return PhotoSelection(in_scope, used, listings_in_scope)


def compute_listing_scope_scores(scope_scores: Floats, groups: Ints) -> Floats:
    """Return the (N,) best score of each listing's photos, which decides whether the listing is in scope.

    Args:
        scope_scores: (P,).
        groups: (P,) listing numbers 0…N-1, each at least once.
    """
    scores = np.full(int(groups.max()) + 1, -np.inf, scope_scores.dtype)
    np.fmax.at(scores, groups, scope_scores)  # NaN, where the model computed none, is less than any
    return scores


def _find_copies(category_logits: Floats, brand_logits: Floats, groups: Ints, rows: Ints) -> Bools:
    """(P,) whether the photo is among the rows, as is an earlier one of its listing that has the same logits."""
    copies = np.zeros(len(groups), bool)
    firsts = np.sort(category_logits[rows, 0])
    if (firsts[1:] - firsts[:-1] >= _MAX_LOGIT_NOISE).all():
        return copies
    order = rows[np.argsort(groups[rows], kind="stable")]
    for distance in range(1, int(np.bincount(groups[rows]).max())):
        earlier, later = order[:-distance], order[distance:]
        # Most pairs differ in the first logit already, often all.
        close = np.abs(category_logits[earlier, 0] - category_logits[later, 0]) < _MAX_LOGIT_NOISE
        pairs = np.flatnonzero((groups[earlier] == groups[later]) & close)
        for logits in (category_logits, brand_logits):
            if len(pairs):
                differences = np.abs(logits[earlier[pairs]] - logits[later[pairs]]).max(axis=1)
                pairs = pairs[differences < _MAX_LOGIT_NOISE]
        copies[later[pairs]] = True
    return copies
