"""Manifests of all kinds cut into shards of whole listings."""

import gzip
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from serving.backfill.plan import ShardReader, hash_manifest, list_manifest_files, write_plan
from serving.storage import Store
from vision.errors import ManifestError

ROWS = [("b", "b1.jpg"), ("a", "a1.jpg"), ("b", "b2.jpg"), ("c", "c1.jpg"), ("a", "a2.jpg"), ("d", "d1.jpg")]


def write_manifest_file(folder, name: str, rows=ROWS) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, photos = zip(*rows, strict=True)
    table = pa.table({"listing_id": ids, "photo": photos, "category": ["x"] * len(rows)})
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(table, path)
    elif name.lower().endswith(".csv"):
        path.write_text("listing_id,photo,category\n" + "".join(f"{i},{p},x\n" for i, p in rows))
    else:
        path.write_text("".join(f'{{"listing_id": "{i}", "photo": "{p}", "extra": 1}}\n' for i, p in rows))
    return str(path)


def read_all_shards(store) -> list[tuple[list[str], list[str], list[int]]]:
    reader = ShardReader(store)
    shards = [reader.read(number) for number in range(len(reader))]
    return [(list(s.listing_ids), list(s.photos), s.groups.tolist()) for s in shards]


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_listings_are_brought_together_in_the_order_of_their_first_rows(tmp_path, name):
    store = Store(str(tmp_path / "out"))
    plan = write_plan(list_manifest_files(write_manifest_file(tmp_path, name)), store, listings_per_shard=2)
    assert (plan.num_listings, plan.num_photos, plan.num_shards) == (4, 6, 2)
    assert read_all_shards(store) == [
        (["b", "a"], ["b1.jpg", "b2.jpg", "a1.jpg", "a2.jpg"], [0, 0, 1, 1]),
        (["c", "d"], ["c1.jpg", "d1.jpg"], [0, 1]),
    ]


def test_ids_that_look_like_numbers_or_dates_stay_as_they_are(tmp_path):
    store = Store(str(tmp_path / "out"))
    rows = [("007", "1.jpg"), ("2024-01-02", "2.jpg"), ("#9", "s.tar#5+7"), ("'q'", "a b.jpg")]
    write_plan([write_manifest_file(tmp_path, "m.csv", rows)], store, listings_per_shard=5)
    assert read_all_shards(store)[0][:2] == ([i for i, _ in rows], [p for _, p in rows])


def test_a_folder_of_files_and_a_pattern_are_one_manifest(tmp_path):
    first = write_manifest_file(tmp_path, "m/part-0.parquet", ROWS[:3])
    second = write_manifest_file(tmp_path, "m/part-1.parquet", ROWS[3:])
    assert (
        list_manifest_files(str(tmp_path / "m"))
        == list_manifest_files(str(tmp_path / "m/part-*.parquet"))
        == [first, second]
    )
    store = Store(str(tmp_path / "out"))
    assert write_plan([first, second], store, listings_per_shard=9).num_listings == 4
    assert read_all_shards(store)[0][0] == ["b", "a", "c", "d"]


def test_many_rows_in_any_order_over_many_row_groups(tmp_path):
    rows = [(f"listing-{i % 7001}", f"{i}.jpg") for i in range(50_000)]
    random.Random(0).shuffle(rows)
    store = Store(str(tmp_path / "out"))
    plan = write_plan([write_manifest_file(tmp_path, "m.parquet", rows)], store, listings_per_shard=500)
    assert (plan.num_listings, plan.num_photos, plan.num_shards) == (7001, 50_000, 15)
    found = [
        (ids[group], photo)
        for ids, photos, groups in read_all_shards(store)
        for photo, group in zip(photos, groups, strict=True)
    ]
    assert sorted(found) == sorted(rows)
    # Within a listing photos keep their order, and listings that of their first photo.
    firsts = list(dict.fromkeys(listing for listing, _ in rows))
    assert list(dict.fromkeys(listing for listing, _ in found)) == firsts
    assert [p for i, p in found if i == firsts[0]] == [p for i, p in rows if i == firsts[0]]


def test_some_listings_of_a_shard(tmp_path):
    store = Store(str(tmp_path / "out"))
    write_plan([write_manifest_file(tmp_path, "m.csv")], store, listings_per_shard=4)
    some = ShardReader(store).read(0).select_listings({"c", "b"})
    assert (list(some.listing_ids), list(some.photos)) == (["b", "c"], ["b1.jpg", "b2.jpg", "c1.jpg"])
    assert some.groups.tolist() == [0, 0, 1]


def test_rows_that_cannot_be_used_are_named(tmp_path):
    url = write_manifest_file(tmp_path, "m.csv", [("a", "1.jpg"), ("", "2.jpg"), ("c", "")])
    with pytest.raises(ManifestError, match="2 rows of the manifest cannot be used") as caught:
        write_plan([url], Store(str(tmp_path / "out")), listings_per_shard=4)
    assert caught.value.problems == (f"{url} row 2: listing_id is empty", f"{url} row 3: photo is empty")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.csv", "listing,photo\n1,2\n", "column 'listing_id' is missing; it has listing, photo"),
        ("m.parquet", "no parquet", "cannot be read"),
        ("m.csv", "listing_id,photo\n", "has no rows"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=said):
        write_plan([str(tmp_path / name)], Store(str(tmp_path / "out")), listings_per_shard=4)


def test_what_is_no_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        list_manifest_files(str(tmp_path / "missing.csv"))
    (tmp_path / "listings.xlsx").touch()
    with pytest.raises(ManifestError, match="1 of 1 files cannot be read"):
        list_manifest_files(str(tmp_path / "listings.xlsx"))


def test_every_file_of_a_folder_is_read_whatever_its_format(tmp_path):
    write_manifest_file(tmp_path, "m/a.parquet", ROWS[:2])
    write_manifest_file(tmp_path, "m/b.CSV", ROWS[2:3])
    csv = Path(write_manifest_file(tmp_path, "plain.csv", ROWS[3:4])).read_bytes()
    (tmp_path / "m" / "c.csv.gz").write_bytes(gzip.compress(csv))
    write_manifest_file(tmp_path, "m/day=2/d.jsonl", ROWS[4:])
    for skipped in ("_SUCCESS", ".d.jsonl.crc", "_temporary/e.csv", ".hidden/f.csv"):
        (tmp_path / "m" / skipped).parent.mkdir(exist_ok=True)
        (tmp_path / "m" / skipped).write_text("no table")
    store = Store(str(tmp_path / "out"))
    files = list_manifest_files(str(tmp_path / "m"))
    assert [Path(file).name for file in files] == ["a.parquet", "b.CSV", "c.csv.gz", "d.jsonl"]
    assert write_plan(files, store, listings_per_shard=9).num_photos == len(ROWS)
    assert read_all_shards(store)[0][0] == ["b", "a", "c", "d"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write_manifest_file(tmp_path, "m/a.csv")
    (tmp_path / "m" / "b.csv.zip").touch()
    (tmp_path / "m" / "notes.txt").touch()
    with pytest.raises(ManifestError, match="2 of 3 files cannot be read") as caught:
        list_manifest_files(str(tmp_path / "m"))
    assert caught.value.problems == (f"{tmp_path}/m/b.csv.zip", f"{tmp_path}/m/notes.txt")
    assert list_manifest_files(str(tmp_path / "m" / "*.csv")) == [f"{tmp_path}/m/a.csv"]


def test_of_each_file_only_the_needed_columns_are_asked(tmp_path):
    (tmp_path / "a.csv").write_text("listing_id,photo\n1,1.jpg\n")
    (tmp_path / "b.csv").write_text("price;photo;listing_id\n7;2.jpg;2\n")
    pyarrow.parquet.write_table(
        pa.table({"photo": ["3.jpg", "4.jpg"], "listing_id": [3.0, 4.0], "tags": [["a"], []]}), tmp_path / "c.parquet"
    )
    store = Store(str(tmp_path / "out"))
    write_plan([str(tmp_path / name) for name in ("a.csv", "b.csv", "c.parquet")], store, listings_per_shard=9)
    assert read_all_shards(store)[0][:2] == (["1", "2", "3", "4"], ["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    (tmp_path / "d.csv").write_text("listing,photo\n1,1.jpg\n")
    with pytest.raises(ManifestError, match=r"d\.csv: column 'listing_id' is missing; it has listing, photo"):
        write_plan([str(tmp_path / "a.csv"), str(tmp_path / "d.csv")], store, listings_per_shard=9)


def test_relative_photos_are_refused_where_they_are_ambiguous(tmp_path):
    good = write_manifest_file(tmp_path, "1/a.csv", [("a", "/photos/1.jpg"), ("b", "s3://photos/2.jpg")])
    bad = write_manifest_file(tmp_path, "2/a.csv", [("c", "https://photos/3.jpg"), ("d", "4.jpg")])
    store = Store(str(tmp_path / "out"))
    assert write_plan([good], store, listings_per_shard=9, absolute_photos=True).num_photos == 2
    with pytest.raises(ManifestError, match="1 row of the manifest cannot be used") as caught:
        write_plan([good, bad], store, listings_per_shard=9, absolute_photos=True)
    assert caught.value.problems == (
        f"{bad} row 2: photo 4.jpg is relative, and the files are in several folders; write the whole path",
    )


def test_the_digest_is_of_contents_and_their_order(tmp_path):
    first, second = write_manifest_file(tmp_path, "a.csv", ROWS[:2]), write_manifest_file(tmp_path, "b.csv", ROWS[2:])
    assert hash_manifest([first, second]) == hash_manifest([first, second])
    assert hash_manifest([first, second]) != hash_manifest([second, first])
    assert hash_manifest([first]) != hash_manifest([second])


def test_storage_elsewhere(tmp_path):
    store = Store("memory://backfill-plan")
    store.remove_all()
    write_plan([write_manifest_file(tmp_path, "m.csv")], store, listings_per_shard=3)
    assert [ids for ids, _, _ in read_all_shards(store)] == [["b", "a", "c"], ["d"]]
