"""A stored marketplace, and what a backfill of it wrote."""

import csv
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest

from serving.backfill.job import LOCK_PATH
from serving.backfill.ledger import Ledger
from serving.backfill.local_engine import EngineOptions, create_local_engine
from serving.backfill.run import BackfillRequest, open_or_create_job, run
from serving.backfill.shutdown import GracefulShutdown
from serving.storage import Store
from training.data.renditions import create_rendition
from vision.manifest import Manifest


def create_market(folder: Path, dataset: Path) -> Path:
    """Copy a data set's photos to a folder with a manifest.csv that has every other row first."""
    manifest = Manifest.load(str(dataset / "manifest.parquet"))
    columns = [manifest.column(name).to_pylist() for name in ("listing_id", "photo")]
    rows = [{"listing_id": listing_id, "photo": photo} for listing_id, photo in zip(*columns, strict=True)]
    for row in rows:
        target = folder / row["photo"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dataset / row["photo"], target)
    # So that the photos of a listing lie apart.
    write_manifest(folder / "manifest.csv", rows[::2] + rows[1::2])
    return folder


def shrink_photos(market: Path, *, max_px: int) -> None:
    """Replace every photo by its rendition."""
    for row in read_manifest(market / "manifest.csv"):
        path = market / row["photo"]
        path.write_bytes(create_rendition(path.read_bytes(), max_px=max_px))


def write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["listing_id", "photo"])
        writer.writeheader()
        writer.writerows(rows)


def read_manifest(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def create_request(market: Path, **changed) -> BackfillRequest:
    defaults = {"listings_per_shard": 10, "top_k": 0, "embedding": False, "overwrite": False}
    return BackfillRequest(manifest=str(market / "manifest.csv"), **{**defaults, **changed})


def run_backfill(
    bundle,
    market: Path,
    output: Path,
    *,
    max_error_share=1.0,
    isolate=False,
    rendition_px=None,
    shutdown=None,
    **changed,
):
    """Run a job to its end in this process; return its store."""
    store, shutdown = Store(str(output)), shutdown or GracefulShutdown()
    engine = create_local_engine(
        bundle, EngineOptions(stop=shutdown.abort, isolate=isolate, rendition_px=rendition_px), num_cores=1
    )
    try:
        with store.lock(LOCK_PATH):
            job = open_or_create_job(store, create_request(market, **changed), engine, lambda _: None)
            run(store, job, engine, max_error_share=max_error_share, shutdown=shutdown)
    finally:
        engine.close()
    return store


def read_suggestions(store: Store) -> dict[str, dict]:
    rows = [
        row
        for entry in Ledger(store).entries()
        for row in pyarrow.parquet.read_table(store.full_path(entry.suggestions.path)).to_pylist()
    ]
    assert len({row["listing_id"] for row in rows}) == len(rows)
    return {row["listing_id"]: row for row in rows}


def read_dead_letters(store: Store) -> list[dict]:
    files = [entry.dead_letters.path for entry in Ledger(store).entries() if entry.dead_letters]
    return [row for path in files for row in pyarrow.parquet.read_table(store.full_path(path)).to_pylist()]


def group_photos_by_listing(market: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for row in read_manifest(market / "manifest.csv"):
        found.setdefault(row["listing_id"], []).append(market / row["photo"])
    return found


def assert_same_suggestion(row: dict, other: dict) -> None:
    # Gateway and process round their numbers in another order.
    assert row["result"] == other["result"]
    assert row["category_id"] == other["category_id"]
    assert (row["brand"] or {}).get("id") == (other["brand"] or {}).get("id")
    assert row["num_photos"] == other["num_photos"]
    assert row["filled_category_id"] == other["filled_category_id"]
    assert [e["reason"] for e in row["photo_errors"]] == [e["reason"] for e in other["photo_errors"]]
    for step, wanted in zip(row["category_path"] or [], other["category_path"] or [], strict=True):
        assert step["probability"] == pytest.approx(wanted["probability"], abs=1e-4)
        assert (step["id"], step["filled"]) == (wanted["id"], wanted["filled"])
