import numpy as np
import pytest

from training.calibration.fixed_sequences import run_fixed_sequences
from training.calibration.threshold_tests import FieldTests

ALPHA, DELTA = 0.05, 0.05


def create_field(counts):
    """A field whose tests have the given numbers of filled listings and errors, in their order."""
    return FieldTests("x", ALPHA, tuple(range(len(counts))), lambda threshold: counts[threshold], 500)


def test_a_budget_is_passed_on_only_after_a_whole_grid():
    easy, unfinished = create_field([(100, 0), (200, 0)]), create_field([(100, 0), (200, 20)])
    hard = create_field([(60, 0)])  # without error 72 are needed at half of the budget, 59 at all of it
    assert [(r.delta, r.num_passed) for r in run_fixed_sequences([easy, hard], delta=DELTA)] == [
        (DELTA / 2, 2),
        (DELTA, 1),
    ]
    assert [(r.delta, r.num_passed) for r in run_fixed_sequences([hard, easy], delta=DELTA)] == [
        (DELTA, 1),
        (DELTA / 2, 2),
    ]
    assert [(r.delta, r.num_passed) for r in run_fixed_sequences([unfinished, hard], delta=DELTA)] == [
        (DELTA / 2, 1),
        (DELTA / 2, 0),
    ]


def test_a_field_goes_on_at_the_test_that_had_failed():
    stopped = create_field([(100, 0), (60, 0), (100, 0)])
    assert [r.num_passed for r in run_fixed_sequences([stopped, create_field([(100, 0)])], delta=DELTA)] == [3, 1]


def simulate_two_fields(rng, *, always_pass_on):
    """How often a false threshold is certified, where each field's first threshold is true and its second false.

    The hypotheses lie at the border: 5.0 % of the filled are wrong, which is allowed and cannot be proven.
    """
    broken = 0
    for _ in range(4000):
        counts = [(200, int(rng.binomial(200, 0.0))), (400, int(rng.binomial(400, 0.0500001)))]
        others = [(400, int(rng.binomial(400, 0.0500001)))]
        fields = [create_field(counts), create_field(others)]
        passed = [result.num_passed for result in run_fixed_sequences(fields, delta=DELTA)]
        if always_pass_on:
            passed = [run_fixed_sequences([field], delta=DELTA)[0].num_passed for field in fields]
        broken += passed[0] > 1 or passed[1] > 0
    return broken / 4000


def test_any_false_guarantee_is_as_rare_as_promised_and_passing_on_after_a_failure_is_not():
    limit = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 4000)
    assert simulate_two_fields(np.random.default_rng(0), always_pass_on=False) <= limit
    assert simulate_two_fields(np.random.default_rng(0), always_pass_on=True) > limit


def test_a_field_without_thresholds_leaves_its_share_to_the_others():
    results = run_fixed_sequences([create_field([]), create_field([(60, 0)])], delta=DELTA)
    assert [(r.delta, r.num_passed) for r in results] == [(pytest.approx(DELTA / 2), 0), (DELTA, 1)]
