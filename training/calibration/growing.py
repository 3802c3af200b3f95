"""Certificates that grow: outcomes of listings that were hidden at random certify looser thresholds, or withdraw them.

Each threshold of the grid has a wealth for it and one against it (`training.statistics.betting`). Looser thresholds are
certified in the order of the grid, each at the field's whole level, until the first whose wealth is too low: the first
one that is false ends the sequence, except with probability delta, whenever and however often outcomes are read.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.calibration.path_tests import PathRows
from training.evaluation.ground_truth import build_ground_truth
from training.outcomes.hidden_listings import HiddenListings
from training.statistics.betting import compute_certifying_wealth, compute_withdrawing_wealth
from vision.calibration import PATH_FIELD, DepthEvidence, FieldGuarantee, OutcomeEvidence, OutcomeTest
from vision.manifest import UNLABELLED
from vision.prediction.listings import compute_brand_scores
from vision.suggestion import is_brand_offered
from vision.taxonomy import Taxonomy

__all__ = ["grow_guarantee"]

_MAX_LOG_EVIDENCE = 50.0
"""More than any delta asks for, and a number that JSON holds."""

Bools = npt.NDArray[np.bool_]


class _Replay(NamedTuple):
    """What one threshold fills of N listings."""

    filled: Bools
    wrong: Bools
    """(N,) false where not filled; true where not known."""
    unknown: Bools
    """(N,) of the wrong ones, those that may be right."""


class _Rows:
    """Hidden listings as one field sees them."""

    def __init__(self, field: FieldGuarantee, listings: HiddenListings, taxonomy: Taxonomy) -> None:
        self._brand_scores = compute_brand_scores(listings.brands)
        self._brand_unknown = listings.labels.brands == UNLABELLED
        self._brand_wrong = self._brand_unknown | (listings.brands.labels != listings.labels.brands)
        self.path: PathRows | None = None
        if field.name == PATH_FIELD:
            truth = build_ground_truth(listings.labels, taxonomy)
            everyone = np.ones(len(listings.first_us), dtype=bool)
            self.path = PathRows.from_paths(listings.paths, truth, taxonomy, everyone)

    def replay(self, threshold: float) -> _Replay:
        if self.path:
            return _Replay(*self.path.find_errors(threshold), self.path.find_unknown(threshold))
        filled = self._brand_scores >= threshold
        return _Replay(filled, filled & self._brand_wrong, filled & self._brand_unknown)


def grow_guarantee(
    field: FieldGuarantee, listings: HiddenListings, taxonomy: Taxonomy, *, until_us: int
) -> FieldGuarantee:
    """Return the guarantee with more evidence, which goes on where it stood; the records of the past are not needed.

    What was certified or withdrawn stays so.

    Args:
        field: its `outcomes` say what may be tested; it may have grown before.
        listings: the hidden listings of the rule after those that are counted already, in their order.
        taxonomy: that of the model.
        until_us: listings until then are in `listings`; microseconds since 1970.
    """
    assert field.outcomes is not None
    rows, first = _Rows(field, listings, taxonomy), field.first
    tests = field.outcomes.tests or tuple(
        OutcomeTest(
            threshold=one, num_filled=0, num_errors=0, num_unknown=0, certifying=1.0, withdrawing=1.0, stakes=()
        )
        for one in _list_testable(first)
    )
    evidence = replace(
        field.outcomes,
        first=first,
        num_listings=field.outcomes.num_listings + len(listings.first_us),
        until_us=until_us,
        tests=tuple(_extend_test(test, rows, first.alpha) for test in tests),
    )
    return _apply(first, evidence)


def _list_testable(first: FieldGuarantee) -> Sequence[float]:
    """The grid, without thresholds at which a brand is filled that is not offered otherwise and so is not recorded."""
    if first.name == PATH_FIELD:
        return first.grid
    least = math.inf if first.threshold is None else first.threshold
    return [one for one in first.grid if one >= least or is_brand_offered(1, one, filled=False)]


def _extend_test(test: OutcomeTest, rows: _Rows, alpha: float) -> OutcomeTest:
    replay = rows.replay(test.threshold)
    errors, proven = replay.wrong[replay.filled], (replay.wrong & ~replay.unknown)[replay.filled]
    certifying = compute_certifying_wealth(errors, alpha=alpha, before=(test.num_filled, test.num_errors))
    withdrawing, stakes = compute_withdrawing_wealth(
        proven, alpha=alpha, num_before=test.num_filled, stakes=test.stakes
    )
    return replace(
        test,
        num_filled=test.num_filled + len(errors),
        num_errors=test.num_errors + int(errors.sum()),
        num_unknown=test.num_unknown + int(replay.unknown.sum()),
        certifying=max(test.certifying, _find_peak(certifying)),
        withdrawing=max(test.withdrawing, _find_peak(withdrawing)),
        stakes=stakes,
        depths=_add_depths(test.depths, rows.path.count_depths(test.threshold) if rows.path else ()),
    )


def _add_depths(earlier: Sequence[DepthEvidence], later: Sequence[DepthEvidence]) -> tuple[DepthEvidence, ...]:
    if not earlier:
        return tuple(later)
    return tuple(
        DepthEvidence(
            depth=a.depth,
            num_listings=a.num_listings + b.num_listings,
            num_filled=a.num_filled + b.num_filled,
            num_errors=a.num_errors + b.num_errors,
        )
        for a, b in zip(earlier, later, strict=True)
    )


def _find_peak(log_wealth: npt.NDArray[np.float64]) -> float:
    """The highest wealth at any time; it begins with 1."""
    return math.exp(min(float(log_wealth.max(initial=0.0)), _MAX_LOG_EVIDENCE))


def _apply(first: FieldGuarantee, evidence: OutcomeEvidence) -> FieldGuarantee:
    """The guarantee at the loosest threshold that is certified by either evidence, with no withdrawn one before it."""
    tests, enough = evidence.tests, 1 / evidence.delta
    num_first = 0 if first.threshold is None else first.grid.index(first.threshold) + 1
    num_certified = num_first
    while num_certified < len(tests) and tests[num_certified].certifying >= enough:
        num_certified += 1
    withdrawn = [number for number in range(num_certified) if tests[number].withdrawing >= enough]
    num_kept = withdrawn[0] if withdrawn else num_certified
    if withdrawn and num_kept == 0:
        return _withdraw(first, evidence)
    if num_kept == num_first:
        return replace(first, outcomes=evidence)
    test = tests[num_kept - 1]
    return replace(
        first,
        threshold=test.threshold,
        delta=first.delta + (evidence.delta if num_kept > num_first else 0),
        num_listings=evidence.num_listings,
        num_filled=test.num_filled,
        num_errors=test.num_errors,
        bound=first.alpha,
        depths=test.depths,
        num_below_truth=0,
        num_unlabelled=0,
        unlabelled_coverage=None,
        uncertified_reason="",
        outcomes=evidence,
    )


def _withdraw(first: FieldGuarantee, evidence: OutcomeEvidence) -> FieldGuarantee:
    """The field is never filled: even the strictest threshold is withdrawn."""
    strictest = evidence.tests[0]
    num_wrong = strictest.num_errors - strictest.num_unknown
    return replace(
        first,
        threshold=None,
        num_filled=0,
        num_errors=0,
        bound=None,
        depths=(),
        num_below_truth=0,
        num_required=None,
        outcomes=evidence,
        uncertified_reason=f"withdrawn by outcomes: of {evidence.num_listings} hidden listings the strictest "
        f"threshold, {strictest.threshold:.3f}, fills {strictest.num_filled}, {num_wrong} of them wrongly",
    )
