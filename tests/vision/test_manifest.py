import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import small_taxonomy
from vision.errors import ManifestError
from vision.manifest import COLUMNS, Manifest

# Control characters and lone surrogates cannot stand in CSV or UTF-8.
words = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12)
rows = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, words)), min_size=1, max_size=8)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_round_trip_in_every_format(tmp_path_factory, ending):
    @given(rows)
    def round_trip(written):
        path = str(tmp_path_factory.mktemp("m") / f"manifest.{ending}")
        Manifest.from_rows(written, "").save(path)
        assert Manifest.load(path).table.to_pylist() == written

    round_trip()


def _write(tmp_path, text, name="m.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_labels_become_indices_and_missing_ones_minus_one(tmp_path):
    path = _write(
        tmp_path,
        "listing_id,photo,category,brand\n1,a.jpg,Fruit > Apple > Gala,no brand\n2,b.jpg,fruit,\n3,c.jpg,,ACME Corp\n",
    )
    taxonomy = small_taxonomy()
    labels = Manifest.load(path).labels(taxonomy)
    assert labels.category_nodes.tolist() == [taxonomy.node_index["gala"], taxonomy.node_index["fruit"], -1]
    assert labels.brands.tolist() == [0, -1, 1]


def test_unknown_labels_name_row_value_and_nearest(tmp_path):
    path = _write(tmp_path, "listing_id,photo,category,brand\n1,a,Fruit > Lemmon,\n2,b,Fruit > Lemmon,Acne\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.load(path).labels(small_taxonomy())
    assert caught.value.problems == (
        "row 1 (2 in all): unknown category 'Fruit > Lemmon'; nearest known: 'Fruit > Lemon'",
        "row 2 (1 in all): unknown brand 'Acne'; nearest known: 'Acme'",
    )


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("listing_id,category\n1,x\n", "m.csv", "column 'photo' is missing"),
        ("listing_id,photo\n1,\n", "m.csv", "row 1: photo is empty"),
        ("listing_id,photo\n", "m.csv", "no rows"),
        ("x", "m.txt", "ending '.txt' is not one of"),
        ("not parquet", "m.parquet", "cannot be read"),
    ],
)
def test_unusable_manifests_are_refused(tmp_path, text, name, said):
    with pytest.raises(ManifestError, match=said):
        Manifest.load(_write(tmp_path, text, name))


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.csv"):
        Manifest.load(str(tmp_path / "none.csv"))


def test_photo_paths_are_relative_to_the_manifest(tmp_path):
    path = _write(tmp_path, "listing_id,photo\n1,a/b.jpg\n2,/abs.jpg\n3,s3://bucket/c.jpg\n")
    manifest = Manifest.load(path)
    assert [manifest.photo_url(row) for row in range(3)] == [f"{tmp_path}/a/b.jpg", "/abs.jpg", "s3://bucket/c.jpg"]


def test_manifests_are_read_by_url(tmp_path):
    path = _write(tmp_path, "listing_id,photo\n1,a.jpg\n")
    assert len(Manifest.load(f"file://{path}")) == 1


def test_json_lines_keep_ids_that_look_like_dates_and_numbers(tmp_path):
    path = _write(tmp_path, '{"listing_id": "2026-11-22", "photo": "007", "extra": [1]}\n', "m.jsonl")
    row = Manifest.load(path).table.to_pylist()[0]
    assert (row["listing_id"], row["photo"], row["brand"]) == ("2026-11-22", "007", "")


def test_listing_groups_number_by_first_appearance(tmp_path):
    path = _write(tmp_path, "listing_id,photo\nb,1\na,2\nb,3\n")
    assert Manifest.load(path).listing_groups().tolist() == [0, 1, 0]


def test_a_split_without_rows_names_those_there_are(tmp_path):
    path = _write(tmp_path, "listing_id,photo,split\n1,a,train\n2,b,val\n")
    manifest = Manifest.load(path)
    assert manifest.where_split("val").column("photo").to_pylist() == ["b"]
    with pytest.raises(ManifestError, match="'test'; it has: train, val"):
        manifest.where_split("test")


def test_take_keeps_order(tmp_path):
    path = _write(tmp_path, "listing_id,photo\n1,a\n2,b\n3,c\n")
    assert Manifest.load(path).take(np.array([2, 0])).column("photo").to_pylist() == ["c", "a"]
