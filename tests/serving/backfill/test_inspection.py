"""Verification and comparison of a backfill's output."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from listing_vision.classify import classify_with_bundle
from serving.backfill import inspection
from serving.backfill.ledger import Ledger
from tests.support.backfill import (
    group_photos_by_listing,
    read_manifest,
    read_suggestions,
    run_backfill,
    write_manifest,
)


def test_what_is_wrong_with_an_output_is_found(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    entries = list(Ledger(store).entries())
    first = Path(store.full_path(entries[0].suggestions.path))
    second = Path(store.full_path(entries[1].suggestions.path))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    found = inspection.verify(store)
    assert not found.is_valid
    assert any("checksum differs" in problem for problem in found.problems)
    assert found.num_missing == 10
    first.unlink()
    assert any("is missing" in problem for problem in inspection.verify(store).problems)
    first.write_bytes(kept)
    assert inspection.verify(store).is_valid
    (first.parent / "shard-0000099.parquet").write_bytes(kept)
    assert any("in no ledger" in problem for problem in inspection.verify(store).problems)


def classify(bundle, photo: bytes) -> str:
    return classify_with_bundle(bundle.folder, [photo]).category_path[-1].category_id


def test_what_changed_between_two_backfills(bundle, market, tmp_path):
    old = run_backfill(bundle, market, tmp_path / "old")
    photos = group_photos_by_listing(market)
    ids = list(photos)
    answers = read_suggestions(old)
    # The photos of one listing now show another thing, and one listing is new to the other.
    candidates = (photos[i][0].read_bytes() for i in ids[1:])
    other = next(photo for photo in candidates if classify(bundle, photo) != answers[ids[0]]["category_id"])
    for photo in photos[ids[0]]:
        photo.write_bytes(other)
    rows = read_manifest(market / "manifest.csv")
    write_manifest(market / "manifest.csv", [row for row in rows if row["listing_id"] != ids[-1]])
    new = run_backfill(bundle, market, tmp_path / "new")
    found = inspection.diff(old, new)
    assert (found.num_in_both, found.num_only_old, found.num_only_new) == (len(ids) - 1, 1, 0)
    assert found.num_category_changed == 1
    assert found.pairs == [(answers[ids[0]]["category_id"], read_suggestions(new)[ids[0]]["category_id"], 1)]
    assert found.examples[0][0] == ids[0]
    assert "another category" in str(found)
    assert answers[ids[1]]["category_path"][0]["name"] in inspection.describe_distribution(new)


def test_the_summary_counts_what_the_gates_stop(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    (entry, *_) = Ledger(store).entries()
    path = store.full_path(entry.suggestions.path)
    table = pq.read_table(path)

    def write(**columns):
        changed = table.drop_columns(list(columns))
        for name, values in columns.items():
            if values is not None:
                changed = changed.append_column(name, pa.array(values, pa.bool_()))
        pq.write_table(changed, path)
        return dict(
            re.findall(r"^(out of scope|photos disagree).*?(\d+) ", inspection.describe_distribution(store), re.M)
        )

    marks = [result == "classified" for result in table["result"].to_pylist()]
    assert sum(marks) > 1
    first = [mark and not any(marks[:row]) for row, mark in enumerate(marks)]
    assert write(out_of_scope=marks, photos_disagree=first) == {
        "out of scope": str(sum(marks)),
        "photos disagree": "1",
    }
    # A backfill of an earlier version has no such columns.
    for other in Ledger(store).entries():
        file = store.full_path(other.suggestions.path)
        pq.write_table(pq.read_table(file).drop_columns(["out_of_scope", "photos_disagree"]), file)
    assert not re.search("out of scope|photos disagree", inspection.describe_distribution(store))


def test_without_brands_the_summary_has_none(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    assert "brand: " in inspection.describe_distribution(store)
    for entry in Ledger(store).entries():
        path = store.full_path(entry.suggestions.path)
        table = pq.read_table(path)
        at = table.column_names.index("brand")
        nothing = pa.nulls(len(table), table.schema.field("brand").type)
        pq.write_table(table.set_column(at, table.schema.field("brand"), nothing), path)
    summary = inspection.describe_distribution(store)
    assert "brand: " not in summary
    assert "top category" in summary
