"""Fixed sequences of tests for several fields, which pass their error budget on: one false guarantee in `delta`."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.calibration.threshold_tests import FieldTests

__all__ = ["SequenceResult", "run_fixed_sequences"]


@dataclass(frozen=True)
class SequenceResult:
    """How far one field came."""

    delta: float
    """The level that its last tests were made at."""
    num_passed: int
    """Thresholds that passed, from the strictest on."""


def run_fixed_sequences(fields: Sequence[FieldTests], *, delta: float) -> list[SequenceResult]:
    """Test each field's grid in its order until the first failure; return one result a field.

    Each field begins with an equal share of `delta`. One whose whole grid has passed hands its share to the next
    unfinished field, the first after the last, which goes on at the test that had failed. The probability that any
    threshold that passes is false is at most `delta`, however the fields depend on each other (graphical procedure,
    Bretz, Maurer, Brannath & Posch 2009). A share handed on after a failure would double it.
    """
    levels = [delta / len(fields) for _ in fields]
    passed = [0] * len(fields)
    unfinished = list(range(len(fields)))
    finished_any = True
    while finished_any:
        finished_any = False
        for one in tuple(unfinished):
            field = fields[one]
            while passed[one] < len(field.tests) and field.tests[passed[one]].passes(field.alpha, levels[one]):
                passed[one] += 1
            if passed[one] == len(field.tests):
                finished_any = True
                unfinished.remove(one)
                if unfinished:
                    levels[next((other for other in unfinished if other > one), unfinished[0])] += levels[one]
    return [SequenceResult(level, num) for level, num in zip(levels, passed, strict=True)]
