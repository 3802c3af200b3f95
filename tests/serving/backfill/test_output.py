"""Rows of suggestions and dead letters, built and merged."""

import numpy as np
import pytest

from serving.backfill.job import Job, ModelVersions
from serving.backfill.output import build_suggestion, build_tables, merge_tables, to_parquet
from serving.backfill.plan import ShardPhotos
from vision.feeders.photo_reader import PhotoFailure

BRAND = ("no_brand", None, None, 0.9, False)


@pytest.fixture
def job():
    return Job(
        manifest="m.csv",
        manifest_sha256="",
        base_url="",
        model=ModelVersions(name="n", version="v", taxonomy="t", calibration="c", backend="b"),
        listings_per_shard=3,
        top_k=0,
        embedding=False,
        num_listings=3,
        num_photos=5,
        num_shards=1,
    )


@pytest.fixture
def shard():
    groups = np.array([0, 0, 1, 2, 2])
    return ShardPhotos(number=0, listing_ids=["a", "b", "c"], photos=["0", "1", "2", "3", "4"], groups=groups)


def failures(*photos):
    return {photo: PhotoFailure(reason="PHOTO_NOT_FOUND", message=f"{photo} is gone") for photo in photos}


def suggest(leaf):
    return build_suggestion(
        [("root", "Root", 1.0, True), (leaf, leaf.upper(), 0.5, False)],
        BRAND,
        out_of_scope=False,
        photos_disagree=False,
    )


def test_a_suggestion_names_its_leaf_and_its_deepest_prefilled_category():
    row = build_suggestion(
        [("a", "A", 0.9, True), ("b", "B", 0.8, True), ("c", "C", 0.5, False)],
        ("brand", "x", "X", 0.7, True),
        out_of_scope=True,
        photos_disagree=False,
    )
    assert row["out_of_scope"]
    assert (row["category_id"], row["filled_category_id"]) == ("c", "b")
    assert row["category_path"][1] == {"id": "b", "name": "B", "probability": 0.8, "filled": True}
    assert row["brand"] == {"kind": "brand", "id": "x", "name": "X", "probability": 0.7, "filled": True}
    assert (
        build_suggestion([("a", "A", 0.9, False)], BRAND, out_of_scope=False, photos_disagree=False)[
            "filled_category_id"
        ]
        is None
    )


def test_a_listing_without_a_usable_photo_has_a_row_and_dead_letters(job, shard):
    tables = build_tables(job, shard, {0: suggest("x"), 2: suggest("y")}, failures(0, 2))
    rows = tables.suggestions.to_pylist()
    assert [row["listing_id"] for row in rows] == ["a", "b", "c"]
    assert [row["result"] for row in rows] == ["classified", "no_usable_photo", "classified"]
    assert [row["num_photos"] for row in rows] == [2, 1, 2]
    assert rows[1]["category_path"] is rows[1]["brand"] is None
    assert {row["model_version"] for row in rows} == {"v"}
    assert [(letter["listing_id"], letter["photo"]) for letter in tables.dead_letters.to_pylist()] == [
        ("a", "0"),
        ("b", "2"),
    ]
    assert tables.results == {"classified": 2, "no_usable_photo": 1}
    assert tables.errors == {"PHOTO_NOT_FOUND": 2}


def test_the_same_table_gives_the_same_bytes(job, shard):
    one, other = (build_tables(job, shard, {0: suggest("x")}, failures(2, 3, 4)) for _ in range(2))
    assert to_parquet(one.suggestions) == to_parquet(other.suggestions)
    assert to_parquet(one.suggestions) != to_parquet(one.dead_letters)


def test_merged_rows_keep_the_order_and_take_what_did_not_get_worse(job, shard):
    old = build_tables(job, shard, {0: suggest("old"), 2: suggest("old")}, failures(1, 2, 3))
    again = shard.select_listings({"b", "c"})
    # Of b's photo nothing failed any more; of c's photos, both did.
    new = build_tables(job, again, {0: suggest("new")}, failures(1, 2))
    merged = merge_tables(old, new, shard)
    assert [(row["listing_id"], row["category_id"]) for row in merged.suggestions.to_pylist()] == [
        ("a", "old"),
        ("b", "new"),
        ("c", "old"),
    ]
    assert [letter["photo"] for letter in merged.dead_letters.to_pylist()] == ["1", "3"]
    assert merged.suggestions.schema.equals(old.suggestions.schema)
