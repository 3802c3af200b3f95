import io
from datetime import UTC, date, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from serving.outcomes.records import SCHEMAS
from serving.outcomes.retention import expire, forget
from serving.outcomes.writer import Recorder
from serving.storage import Store
from tests.support.outcome_tables import create_outcome, create_shadow, create_suggestion, write_tables
from tests.support.outcomes import read_table
from tests.support.waiting import wait_until


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path):
    """Three listings in each table, in the folder or copied to an fsspec URL."""
    names = ("a", "b", "c")
    write_tables(
        tmp_path,
        [create_suggestion(name, 1) for name in names],
        [create_outcome(name, 2) for name in names],
        [create_shadow(name, 1) for name in names],
    )
    if request.param == "folder":
        return str(tmp_path)
    store = Store(f"memory://{tmp_path.name}")
    local = Store(str(tmp_path))
    for table in SCHEMAS:
        for path in local.list_files(table):
            store.write(path, local.read(path))
    return store.url


def read_ids(url, table):
    store = Store(url)
    tables = [pq.read_table(io.BytesIO(store.read(path))) for path in store.list_files(table)]
    return sorted(name for rows in tables for name in rows["listing_id"].to_pylist())


def test_all_rows_of_a_listing_are_deleted_and_no_other(url):
    assert forget(Store(url), ["b", "nobody"]) == {"suggestions": 1, "shadows": 1, "outcomes": 1}
    for table in SCHEMAS:
        assert read_ids(url, table) == ["a", "c"]
    assert forget(Store(url), ["b"]) == dict.fromkeys(SCHEMAS, 0)


def test_a_file_without_any_row_left_is_removed(url):
    forget(Store(url), ["a", "b", "c"])
    assert [Store(url).list_files(table) for table in SCHEMAS] == [[], [], []]


def test_files_of_days_before_the_limit_are_deleted(url):
    store = Store(url)  # the files are of 2026-01-01
    assert expire(store, days=10, today=date(2026, 1, 11)) == 0
    assert expire(store, days=10, today=date(2026, 1, 12)) == 6
    assert [store.list_files(table) for table in SCHEMAS] == [[], [], []]


def test_a_running_gateway_deletes_what_is_too_old(tmp_path):
    days = {f"{datetime.now(UTC).date() - timedelta(days=age):%Y-%m-%d}" for age in (2, 30)}
    for day in days:
        write_tables(tmp_path / day, [create_suggestion("a", 1)], [])
        (tmp_path / "suggestions").mkdir(exist_ok=True)
        (tmp_path / day / "suggestions" / "2026-01-01").rename(tmp_path / "suggestions" / day)
    recorder = Recorder(str(tmp_path), retention_days=10, flush_interval_s=0.02)
    wait_until(lambda: not list((tmp_path / "suggestions" / min(days)).glob("*.parquet")))
    recorder.close()
    assert len(read_table(tmp_path, "suggestions")) == 1
