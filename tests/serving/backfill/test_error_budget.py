"""The share of failed photos over the last thousand."""

import pyarrow as pa
import pytest

from serving.backfill.error_budget import ErrorBudget
from serving.backfill.output import ShardTables
from serving.errors import BackfillError


def fail(num_photos: int) -> ShardTables:
    letters = [{"photo": f"{n}.jpg", "reason": "PHOTO_NOT_FOUND", "message": "gone"} for n in range(num_photos)]
    schema = pa.schema([(name, pa.string()) for name in ("photo", "reason", "message")])
    return ShardTables(
        suggestions=pa.table({"result": pa.array([], pa.string())}),
        dead_letters=pa.Table.from_pylist(letters, schema=schema),
    )


def test_few_photos_are_a_share_of_the_window():
    budget = ErrorBudget(0.1, num_photos=1_000_000)
    budget.check(fail(100), num_photos=100)
    with pytest.raises(BackfillError, match=r"(?s)101 of the last 200 .*PHOTO_NOT_FOUND 101.*such as 0\.jpg: gone"):
        budget.check(fail(1), num_photos=100)


def test_a_job_of_few_photos_is_a_window_of_its_own():
    with pytest.raises(BackfillError, match="2 of the last 10 photos"):
        ErrorBudget(0.1, num_photos=10).check(fail(2), num_photos=10)


def test_an_outage_late_in_a_long_job_is_noticed():
    budget = ErrorBudget(0.1, num_photos=100_000)
    for _ in range(900):
        budget.check(fail(0), num_photos=100)
    budget.check(fail(100), num_photos=100)
    with pytest.raises(BackfillError, match="200 of the last 1000 photos"):
        budget.check(fail(100), num_photos=100)


def test_failures_leave_the_window():
    budget = ErrorBudget(0.1, num_photos=100_000)
    for _ in range(20):
        budget.check(fail(100), num_photos=100)
        for _ in range(10):
            budget.check(fail(0), num_photos=100)
