"""Delete stored suggestions and outcomes: those of a listing, or those that are too old."""

import io
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.outcomes.records import SCHEMAS
from serving.storage import Store

__all__ = ["expire", "forget"]


def forget(store: Store, listing_ids: Collection[str]) -> dict[str, int]:
    """Delete all rows of the listings; return the number of rows by table.

    A file with such rows is replaced by one without them. Rows that a running gateway still holds in memory are written
    within seconds: run it again after that.
    """
    wanted = pa.array(sorted(set(listing_ids)), pa.string())
    deleted = dict.fromkeys(SCHEMAS, 0)
    for table in SCHEMAS:
        for path in _list_parquet_files(store, table):
            rows = pq.read_table(io.BytesIO(store.read(path)))
            kept = rows.filter(pc.invert(pc.is_in(rows["listing_id"], value_set=wanted)))
            if kept.num_rows == rows.num_rows:
                continue
            deleted[table] += rows.num_rows - kept.num_rows
            if kept.num_rows:
                out = io.BytesIO()
                pq.write_table(kept, out, compression="zstd")
                store.write(path, out.getvalue())
            else:
                store.remove(path)
    return deleted


def expire(store: Store, *, days: float, today: date | None = None) -> int:
    """Delete the files of days that are older than `days`; return their number."""
    oldest = (today or datetime.now(UTC).date()) - timedelta(days=days)
    num_deleted = 0
    for table in SCHEMAS:
        for path in _list_parquet_files(store, table):
            if date.fromisoformat(path.split("/")[1]) < oldest:
                store.remove(path)
                num_deleted += 1
    return num_deleted


def _list_parquet_files(store: Store, table: str) -> list[str]:
    return [path for path in store.list_files(table) if path.endswith(".parquet")]
