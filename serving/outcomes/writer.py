"""Buffer rows in memory, bounded, and write them from a thread as files that never change."""

import contextlib
import io
import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.listing_request import ListingRequest
from serving.api.suggestion_id import SuggestionClaims
from serving.observability.metrics import RECORDS
from serving.outcomes.records import SCHEMAS, build_outcome_row, build_shadow_row, build_suggestion_row
from serving.outcomes.retention import expire
from serving.storage import Store
from vision.taxonomy import Taxonomy

__all__ = ["FLUSH_INTERVAL_S", "Recorder"]

_log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 10.0
"""Interval between writes: the most that a killed process can lose."""
EXPIRY_INTERVAL_S = 86_400.0
MAX_ROWS_PER_FILE = 20_000
MAX_ROWS = 100_000
"""Rows of a table held in memory, some 60 MB, while the storage fails."""
_CLOSE_TIMEOUT_S = 10.0


class Recorder:
    """Never blocks: a row that does not fit is dropped. Files are `TABLE/DATE/TIME-PID-RANDOM.parquet`."""

    def __init__(
        self,
        url: str,
        *,
        retention_days: float | None = None,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        max_rows: int = MAX_ROWS,
    ) -> None:
        """Args:
        url: folder or fsspec URL.
        retention_days: days after which files are deleted; None: never.
        flush_interval_s: between writes.
        max_rows: of a table, held in memory.

        Raises:
            ListingVisionError, OSError: the URL cannot be used.
        """
        self._store = Store(url)
        self._retention_days = retention_days
        self._next_expiry_s = time.monotonic()
        probe = f"probe-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        if self._store.require_same_folder():
            _log.warning("outcomes: %s did not exist and is created", url)
        self._store.write(probe, b"")  # fail at the start if the URL cannot be written
        self._store.remove(probe)
        for table in SCHEMAS:
            for result in ("accepted", "dropped", "delayed"):  # a rate needs a series that begins at 0
                RECORDS.labels(table, result)
        self._flush_interval_s = flush_interval_s
        self._max_rows = max_rows
        self._rows: dict[str, list[dict[str, Any]]] = {table: [] for table in SCHEMAS}
        self._paths: dict[str, str] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._flush_until_closed, name="outcomes", daemon=True)
        self._thread.start()

    def add(self, table: str, row: dict[str, Any]) -> bool:
        """Return whether the row is held; False: the buffer is full, and the row is counted as dropped."""
        with self._changed:
            rows = self._rows[table]
            accepted = len(rows) < self._max_rows and not self._closing
            if accepted:
                rows.append(row)
                if len(rows) == MAX_ROWS_PER_FILE:
                    self._changed.notify()
        RECORDS.labels(table, "accepted" if accepted else "dropped").inc()
        return accepted

    def record_suggestion(
        self, request: ListingRequest, response: pb.ClassifyListingResponse, *, uid: str, rule_version: str
    ) -> bool:
        """Add a suggestion that was returned; see `add` and `build_suggestion_row`."""
        return self.add("suggestions", build_suggestion_row(request, response, uid=uid, rule_version=rule_version))

    def record_shadow(self, response: pb.ClassifyListingResponse, visible: pb.ClassifyListingResponse) -> bool:
        """Add a shadow's suggestion beside the one that was returned; see `add`."""
        return self.add("shadows", build_shadow_row(response, visible))

    def record_outcome(
        self,
        request: pb.ReportOutcomeRequest,
        status: pb.SuggestionIdStatus,
        claims: SuggestionClaims | None,
        taxonomies: Sequence[Taxonomy],
        *,
        caller: str,
    ) -> bool:
        """Add an outcome; see `add` and `build_outcome_row`. Raises Refusal: OUTCOME_INVALID."""
        return self.add("outcomes", build_outcome_row(request, status, claims, taxonomies, caller=caller))

    def close(self) -> None:
        """Write the held rows, for at most ten seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_TIMEOUT_S)
        for table, rows in self._rows.items():
            if rows:
                _log.error("outcomes: %d rows of %s are lost, the storage fails", len(rows), table)
                RECORDS.labels(table, "dropped").inc(len(rows))

    def _flush_until_closed(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                if not self._closing:
                    self._changed.wait(self._flush_interval_s)
                closing = self._closing
            for table in SCHEMAS:
                self._flush(table)
            if self._retention_days is not None and time.monotonic() >= self._next_expiry_s:
                self._next_expiry_s = time.monotonic() + EXPIRY_INTERVAL_S
                self._expire(self._retention_days)

    def _expire(self, days: float) -> None:
        try:
            num_deleted = expire(self._store, days=days)
        # Storage libraries raise types of their own; another gateway process may delete the same files.
        except Exception as error:
            _log.warning("outcomes: files older than %g days are not deleted: %s", days, error)
            return
        if num_deleted:
            _log.info("outcomes: %d files older than %g days are deleted", num_deleted, days)

    def _flush(self, table: str) -> None:
        while rows := self._rows[table][:MAX_ROWS_PER_FILE]:
            # Attempts have the same path: one that wrote the file and failed nevertheless leaves no second copy.
            path = self._paths.setdefault(table, _new_path(table))
            try:
                self._store.write(path, _to_parquet(rows, table))
            # Storage libraries raise types of their own; the rows stay and are retried.
            except Exception as error:
                _log.warning("outcomes: %d rows of %s are delayed, the storage fails: %s", len(rows), table, error)
                RECORDS.labels(table, "delayed").inc(len(rows))
                with contextlib.suppress(Exception):  # some file systems keep what was written of it
                    self._store.remove(path)
                return
            del self._paths[table]
            with self._changed:
                del self._rows[table][: len(rows)]


def _new_path(table: str) -> str:
    now = datetime.now(UTC)
    return f"{table}/{now:%Y-%m-%d}/{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.parquet"


def _to_parquet(rows: list[dict[str, Any]], table: str) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[table]), out, compression="zstd")
    return out.getvalue()
