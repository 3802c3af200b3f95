import numpy as np
import pytest

from training.evaluation.risk_coverage import NUM_POINTS, compute_risk_coverage
from vision.calibration import FieldGuarantee


def create_guarantee(threshold, uncertified_reason=""):
    return FieldGuarantee(
        name="x",
        alpha=0.1,
        delta=0.05,
        threshold=threshold,
        num_listings=9,
        num_filled=9,
        num_errors=0,
        uncertified_reason=uncertified_reason,
    )


def compute_curve(scores, right, *, field=None):
    scores = np.array(scores)
    filled = scores >= (np.inf if field is None or field.threshold is None else field.threshold)
    right = np.array(right, bool)
    return compute_risk_coverage(
        scores, right, known=np.ones_like(right), filled=filled, guarantee=field, clusters=None
    )


def test_the_curve_by_hand():
    found = compute_curve([0.9, 0.2, 0.9, 0.5], [1, 0, 1, 0], field=create_guarantee(0.4))
    points = [(p["threshold"], p["num_filled"], p["coverage"], p["precision"]) for p in found["points"]]
    assert points == [(0.9, 2, 0.5, 1.0), (0.5, 3, 0.75, pytest.approx(2 / 3)), (0.2, 4, 1.0, 0.5)]
    certified = found["certified"]
    assert (certified["threshold"], certified["num_filled"], certified["alpha"]) == (0.4, 3, 0.1)
    assert certified["precision"] == pytest.approx(2 / 3)


def test_what_is_never_filled_is_left_of_the_end_of_the_curve():
    found = compute_curve([0.9, -np.inf, -np.inf, 0.8], [1, 1, 0, 1])
    assert [point["coverage"] for point in found["points"]] == [0.25, 0.5]
    assert compute_curve([-np.inf], [1])["points"] == []
    assert compute_curve([], [])["points"] == []


def test_no_promise_says_why():
    assert compute_curve([0.5], [1])["uncertified_reason"] == "this model carries no guarantee for this field"
    never = compute_curve([0.5], [1], field=create_guarantee(None, "too few listings"))
    assert (never["certified"], never["uncertified_reason"]) == (None, "too few listings")


def test_a_long_curve_is_thinned_and_keeps_its_end():
    rng = np.random.default_rng(0)
    scores = rng.random(10_000)
    points = compute_curve(scores, rng.random(10_000) < scores)["points"]
    assert len(points) == NUM_POINTS
    assert points[-1]["coverage"] == 1
    coverages = np.array([point["coverage"] for point in points])
    assert np.allclose(np.diff(coverages), 1 / NUM_POINTS, atol=1e-3)
    # Of uniform scores s that are right with probability s, those above t are right with (1 + t) / 2.
    half = points[NUM_POINTS // 2 - 1]
    low, high = half["precision_interval"]
    assert low <= 0.75 <= high
