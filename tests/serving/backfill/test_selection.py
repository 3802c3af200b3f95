"""The second pass of a backfill: what it fills, what it refuses, and that a kill changes nothing."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from serving.backfill.ledger import Ledger
from serving.backfill.selection import NATURE, SELECTION_PATH, SelectionRequest, select
from serving.backfill.shutdown import GracefulShutdown, Interrupted
from serving.cli.backfill import backfill_app
from serving.errors import BackfillError
from serving.storage import Store
from tests.conftest import ROOT
from tests.support.backfill import read_suggestions
from vision.calibration import BRAND_FIELD, get_field_name

KILL = """
import os, signal, sys
from serving.storage import Store

path, number, after = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1) == "after"
write, seen = Store.write, []

def write_or_die(store, at, data):
    seen.extend([at] * at.startswith(path))
    dies = at.startswith(path) and len(seen) == number
    if dies and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    write(store, at, data)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)

Store.write = write_or_die
from listing_vision.cli import main
main()
"""


def write_labels(path: Path, rows: list[dict]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["listing_id", "photo", "category", "brand"])
        writer.writeheader()
        writer.writerows({"photo": "1.jpg", **row} for row in rows)
    return str(path)


@pytest.fixture(scope="module")
def rows(finished_backfill):
    return list(read_suggestions(finished_backfill).values())


@pytest.fixture(scope="module")
def labels(rows, certified_bundle, tmp_path_factory):
    """Fifty listings as they were classified; the ten with the lowest leaf score have the category above as label."""
    chosen = [row for number, row in enumerate(rows) if number % 8 < 5]
    chosen.sort(key=lambda row: row["category_path"][-1]["probability"])
    brands = {brand.id for brand in certified_bundle.taxonomy.brands}
    labelled = [
        {
            "listing_id": row["listing_id"],
            "category": row["category_path"][-2 if number < 10 else -1]["id"],
            "brand": row["brand"]["id"] if row["brand"]["id"] in brands else certified_bundle.taxonomy.no_brand,
        }
        for number, row in enumerate(chosen)
    ]
    return write_labels(tmp_path_factory.mktemp("labels") / "labels.csv", labelled)


def run_select(source, output, bundle, labels, **changed):
    request = {"labels": labels, "alpha_category": 0.1, "alpha_brand": 0.1, **changed}
    store = Store(str(output))
    return store, select(source, store, bundle, SelectionRequest(**request), shutdown=GracefulShutdown())


def read_files(store: Store) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.list_files("") if path != "_job/lock"}


@pytest.fixture(scope="module")
def selected(finished_backfill, certified_bundle, labels, tmp_path_factory):
    return run_select(finished_backfill, tmp_path_factory.mktemp("selected"), certified_bundle, labels)


def test_every_row_is_written_again_with_what_the_expected_guarantee_fills(selected, rows, certified_bundle, labels):
    store, summary = selected
    found = read_suggestions(store)
    with Path(labels).open() as file:
        labelled = {row["listing_id"] for row in csv.DictReader(file)}
    assert list(found) == [row["listing_id"] for row in rows]
    depths = [summary.fields[get_field_name(depth)] for depth in range(1, certified_bundle.taxonomy.max_depth + 1)]
    num_filled = np.zeros(len(depths), dtype=int)
    for before in rows:
        after = found[before["listing_id"]]
        category, brand = after.pop("expected_category_id"), after.pop("expected_brand_filled")
        assert after == before
        if before["listing_id"] in labelled:
            assert category is None
            assert not brand
        ids = [step["id"] for step in before["category_path"]]
        num_steps = ids.index(category) + 1 if category else 0
        num_filled[:num_steps] += 1
        for step, field in zip(before["category_path"][:num_steps], depths, strict=False):
            assert step["probability"] >= field.threshold
    assert num_filled.tolist() == [field.num_filled for field in depths]
    assert 0 < num_filled[-1] < num_filled[0] == depths[0].num_rows
    assert depths[0].num_labelled == len(labelled)
    assert depths[0].num_rows == len(rows) - len(labelled)


def test_its_nature_is_said_in_the_summary_the_tables_and_the_success_file(selected, finished_backfill):
    store, summary = selected
    success = json.loads(store.read("_SUCCESS.json"))
    schema = pyarrow.parquet.read_schema(store.full_path(success["files"][0]["path"]))
    assert "expected, not certified" in NATURE
    assert schema.metadata[b"listing_vision.expected_guarantee"].decode() == NATURE
    assert schema.metadata[b"listing_vision.expected_alpha.brand"] == b"0.1"
    assert schema.metadata[b"listing_vision.schema_version"] == b"1"
    assert str(summary).startswith(NATURE)
    assert "random sample" in str(summary)
    identity = store.read_json(SELECTION_PATH)
    assert identity["guarantee"] == NATURE
    assert identity["fields"][BRAND_FIELD]["num_filled"] == summary.fields[BRAND_FIELD].num_filled
    assert (
        sum(file["num_rows"] for file in success["files"])
        == json.loads(finished_backfill.read("_SUCCESS.json"))["num_listings"]
    )


def test_a_killed_selection_resumes_and_nothing_is_missing_or_twice(
    selected, finished_backfill, certified_bundle, labels, tmp_path
):
    output = tmp_path / "out"
    command = ["backfill", "select", finished_backfill.url, "--model", str(certified_bundle.folder)]
    command += ["--labels", labels, "--output", str(output), "--alpha-category", "0.1", "--alpha-brand", "0.1"]
    # Between a shard's table and its entry in the ledger, and after an entry.
    for path, number, when, num_done in (("_job/ledger", 3, "before", 2), ("_job/ledger", 2, "after", 4)):
        script = [sys.executable, "-c", KILL, path, str(number), when, *command]
        done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=250)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list(Ledger(Store(str(output))).entries())) == num_done
        assert not (output / "_SUCCESS.json").exists()
    done = CliRunner().invoke(backfill_app, command[1:])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("resuming: 4 of 10 shards are done\n")
    assert str(selected[1]) in done.output
    assert read_files(Store(str(output))) == read_files(selected[0])


def test_a_selection_that_is_stopped_can_be_resumed(selected, finished_backfill, certified_bundle, labels, tmp_path):
    shutdown = GracefulShutdown(grace_period_s=60, exit_deadline_s=120)
    shutdown.stop_requested.set()
    request = SelectionRequest(labels=labels, alpha_category=0.1, alpha_brand=0.1)
    store = Store(str(tmp_path / "out"))
    with pytest.raises(Interrupted, match="to resume"):
        select(finished_backfill, store, certified_bundle, request, shutdown=shutdown)
    assert not store.exists("_SUCCESS.json")
    run_select(finished_backfill, tmp_path / "out", certified_bundle, labels)
    assert read_files(store) == read_files(selected[0])


def test_few_labels_fill_nothing_and_the_number_needed_is_said(finished_backfill, certified_bundle, rows, tmp_path):
    few = [{"listing_id": row["listing_id"], "category": row["category_id"]} for row in rows[:5]]
    labels = write_labels(tmp_path / "labels.csv", few)
    store, summary = run_select(finished_backfill, tmp_path / "out", certified_bundle, labels, alpha_brand=None)
    assert BRAND_FIELD not in summary.fields
    assert "5 labelled listings allow no more, at least 9 are needed" in str(summary)
    found = read_suggestions(store).values()
    assert not any(row["expected_category_id"] or row["expected_brand_filled"] for row in found)


def test_a_field_without_labels_is_named(finished_backfill, certified_bundle, rows, tmp_path):
    only = [{"listing_id": row["listing_id"], "category": row["category_id"]} for row in rows[:5]]
    labels = write_labels(tmp_path / "labels.csv", only)
    with pytest.raises(BackfillError, match=r"no row of .* has a label in column 'brand'; .* --no-brand"):
        run_select(finished_backfill, tmp_path / "out", certified_bundle, labels)
    with pytest.raises(BackfillError, match="there is no field to select"):
        run_select(finished_backfill, tmp_path / "out", certified_bundle, labels, alpha_category=None, alpha_brand=None)
    with pytest.raises(BackfillError, match=r"alpha_brand is 5; give a share between 0 and 1"):
        SelectionRequest(labels=labels, alpha_brand=5)


def test_labels_of_other_listings_are_refused(finished_backfill, certified_bundle, rows, tmp_path):
    strange = [{"listing_id": "stranger", "category": rows[0]["category_id"]}]
    labels = write_labels(tmp_path / "labels.csv", strange)
    with pytest.raises(BackfillError, match=r"1 of 1 listings .* are not in the backfill .* 'stranger'; .*random"):
        run_select(finished_backfill, tmp_path / "out", certified_bundle, labels, alpha_brand=None)


def test_another_model_is_refused(finished_backfill, certified_bundle, labels, tmp_path):
    other = replace(certified_bundle, info=replace(certified_bundle.info, model_version="another"))
    with pytest.raises(BackfillError, match=r"suggestions of another model: version .*, --model another"):
        run_select(finished_backfill, tmp_path / "out", other, labels)


def copy_store(store: Store, folder: Path) -> Store:
    copied = Store(str(folder))
    for path, data in read_files(store).items():
        copied.write(path, data)
    return copied


def test_an_unfinished_or_changed_backfill_is_refused(finished_backfill, certified_bundle, labels, tmp_path):
    copied = copy_store(finished_backfill, tmp_path / "copy")
    path = next(Ledger(copied).entries()).suggestions.path
    copied.write(path, copied.read(path) + b"x")
    with pytest.raises(BackfillError, match="its checksum differs from the ledger"):
        run_select(copied, tmp_path / "out", certified_bundle, labels)
    copied.remove("_SUCCESS.json")
    with pytest.raises(BackfillError, match=r"is not finished, .* finish it with `backfill run`"):
        run_select(copied, tmp_path / "out", certified_bundle, labels)


def test_another_selection_and_foreign_files_are_left_alone(selected, finished_backfill, certified_bundle, labels):
    store, _ = selected
    before = read_files(store)
    with pytest.raises(BackfillError, match="holds another selection, with another fields; give another --output"):
        run_select(finished_backfill, store.url, certified_bundle, labels, alpha_brand=0.2)
    with pytest.raises(BackfillError, match="holds other files, such as"):
        run_select(finished_backfill, finished_backfill.url, certified_bundle, labels)
    assert read_files(store) == before
