import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.helpers import create_small_taxonomy
from vision.errors import ManifestError
from vision.manifest import COLUMNS, OUT_OF_SCOPE, Manifest, open_for_replacement

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
    taxonomy = create_small_taxonomy()
    labels = Manifest.load(path).resolve_labels(taxonomy)
    assert labels.category_nodes.tolist() == [taxonomy.node_index["gala"], taxonomy.node_index["fruit"], -1]
    assert labels.brands.tolist() == [0, -1, 1]


def test_unknown_labels_name_row_value_and_nearest(tmp_path):
    path = _write(tmp_path, "listing_id,photo,category,brand\n1,a,Fruit > Lemmon,\n2,b,Fruit > Lemmon,Acne\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.load(path).resolve_labels(create_small_taxonomy())
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
        ("x", "m.txt", "its ending is not one of .parquet"),
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
    assert [manifest.get_photo_url(row) for row in range(3)] == [f"{tmp_path}/a/b.jpg", "/abs.jpg", "s3://bucket/c.jpg"]


def test_manifests_are_read_by_url(tmp_path):
    path = _write(tmp_path, "listing_id,photo\n1,a.jpg\n")
    assert len(Manifest.load(f"file://{path}")) == 1


def test_json_lines_keep_ids_that_look_like_dates_and_numbers(tmp_path):
    path = _write(tmp_path, '{"listing_id": "2026-11-22", "photo": "007", "extra": [1]}\n', "m.jsonl")
    row = Manifest.load(path).table.to_pylist()[0]
    assert (row["listing_id"], row["photo"], row["brand"]) == ("2026-11-22", "007", "")


def test_listing_groups_number_by_first_appearance(tmp_path):
    path = _write(tmp_path, "listing_id,photo\nb,1\na,2\nb,3\n")
    assert Manifest.load(path).number_listings().tolist() == [0, 1, 0]


def test_a_split_without_rows_names_those_there_are(tmp_path):
    path = _write(tmp_path, "listing_id,photo,split\n1,a,train\n2,b,val\n")
    manifest = Manifest.load(path)
    assert manifest.select_split("val").column("photo").to_pylist() == ["b"]
    with pytest.raises(ManifestError, match="'test'; it has: train, val"):
        manifest.select_split("test")
    with pytest.raises(ManifestError, match="'test'; it has: none, `listing-vision data split` makes them"):
        Manifest.from_rows([{"listing_id": "1", "photo": "a"}], "").select_split("test")


def test_take_keeps_order(tmp_path):
    path = _write(tmp_path, "listing_id,photo\n1,a\n2,b\n3,c\n")
    assert Manifest.load(path).take(np.array([2, 0])).column("photo").to_pylist() == ["c", "a"]


def test_columns_that_are_missing_or_null_are_not_known(tmp_path):
    path = str(tmp_path / "m.parquet")
    table = pa.table({"listing_id": [1, 2], "photo": ["a", "b"], "brand": pa.array([None, "Acme"]), "other": [0, 0]})
    pyarrow.parquet.write_table(table, path)
    assert Manifest.load(path).table.to_pylist() == [
        dict.fromkeys(COLUMNS, "") | {"listing_id": "1", "photo": "a"},
        dict.fromkeys(COLUMNS, "") | {"listing_id": "2", "photo": "b", "brand": "Acme"},
    ]
    assert Manifest.from_rows([{"listing_id": "1", "photo": "a"}], "").table.to_pylist()[0]["seller_id"] == ""


def test_every_reader_finds_plain_strings_in_what_is_saved(tmp_path):
    path = str(tmp_path / "m.parquet")
    Manifest.from_rows([{"listing_id": "1", "photo": "a", "brand": "Acme"}], "").save(path)
    assert set(pyarrow.parquet.read_schema(path).types) == {pa.string()}


def test_row_groups_with_dictionaries_of_their_own_are_one_column(tmp_path):
    path = str(tmp_path / "m.parquet")
    categories = ["Fruit > Lemon", "Tools", "Tools", "fuji", "", "Fruit > Lemon"]
    listings = ["b", "a", "b", "c", "a", "d"]
    table = pa.table({"listing_id": listings, "photo": list("123456"), "category": categories})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    manifest, taxonomy = Manifest.load(path), create_small_taxonomy()
    ids = ["lemon", "tools", "tools", "fuji", None, "lemon"]
    assert manifest.resolve_labels(taxonomy).category_nodes.tolist() == [
        taxonomy.node_index[i] if i else -1 for i in ids
    ]
    assert manifest.number_listings().tolist() == [0, 1, 0, 2, 1, 3]
    assert manifest.column("category").value_counts().to_pylist()[0] == {"values": "Fruit > Lemon", "counts": 2}


def test_no_column_overflows_32_bit_offsets_when_chunks_are_joined():
    table = Manifest.from_rows([{"listing_id": "1", "photo": "a"}], "").table
    wide = {field.name for field in table.schema if field.type == pa.large_string()}
    assert wide == {"listing_id", "photo", "seller_id", "listed_at"}


def test_labels_of_other_splits_are_not_judged(tmp_path):
    path = _write(tmp_path, "listing_id,photo,category,split\n1,a,nonsense,val\n2,b,Tools,train\n")
    manifest, taxonomy = Manifest.load(path), create_small_taxonomy()
    assert manifest.select_split("train").resolve_labels(taxonomy).category_nodes.tolist() == [
        taxonomy.node_index["tools"]
    ]
    with pytest.raises(ManifestError, match=r"row 1 \(1 in all\): unknown category 'nonsense'"):
        manifest.select_split("val").resolve_labels(taxonomy)


@given(rows, st.data())
def test_the_digest_knows_every_value_and_not_the_chunks(written, data):
    manifest = Manifest.from_rows(written, "")
    cut = data.draw(st.integers(0, len(written)))
    pieces = [Manifest.from_rows(part, "").table for part in (written[:cut], written[cut:])]
    chunked = Manifest(pa.concat_tables(pieces, promote_options="none"), "elsewhere")
    assert chunked.compute_digest() == manifest.compute_digest()

    row, column = data.draw(st.integers(0, len(written) - 1)), data.draw(st.sampled_from(COLUMNS))
    value = data.draw(words)
    assume(value != written[row][column])
    changed = [{**values, column: value} if i == row else values for i, values in enumerate(written)]
    assert Manifest.from_rows(changed, "").compute_digest() != manifest.compute_digest()


def test_the_digest_sees_a_moved_boundary():
    def digest(*photos):
        return Manifest.from_rows([{"listing_id": "1", "photo": photo} for photo in photos], "").compute_digest()

    assert len({digest("ab", "c"), digest("a", "bc"), digest("c", "ab"), digest("ab", "c", "")}) == 4
    moved = [{"listing_id": "1", "photo": "2", "category": "x"}], [{"listing_id": "1", "photo": "2", "brand": "x"}]
    assert Manifest.from_rows(moved[0], "").compute_digest() != Manifest.from_rows(moved[1], "").compute_digest()


def test_the_digest_is_that_of_the_values_in_any_file_format(tmp_path):
    manifest = Manifest.from_rows(
        [{"listing_id": str(i // 3), "photo": f"{i}.jpg", "brand": "Å"} for i in range(9)], ""
    )
    for ending in ("parquet", "csv", "jsonl"):
        manifest.save(str(tmp_path / f"m.{ending}"))
        assert Manifest.load(str(tmp_path / f"m.{ending}")).compute_digest() == manifest.compute_digest()


def test_saved_over_an_old_manifest_or_not_at_all(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("old")

    def fail():
        with open_for_replacement(str(path)) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]
    assert path.read_text() == "old"
    with pytest.raises(ManifestError, match=r"ending '\.txt'"):
        Manifest.from_rows([], "").save(str(tmp_path / "m.txt"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]


def test_a_manifest_moved_to_another_folder_keeps_its_photos(tmp_path):
    photos = ["a/b.jpg", "/abs.jpg", "s3://bucket/c.jpg", "shard-000000.tar#512+3"]
    manifest = Manifest.from_rows([{"listing_id": "1", "photo": photo} for photo in photos], str(tmp_path / "here"))
    moved = manifest.rebase(str(tmp_path / "there"))
    assert [moved.get_photo_url(row) for row in range(4)] == [manifest.get_photo_url(row) for row in range(4)]
    assert manifest.rebase(str(tmp_path / "x" / ".." / "here")).column("photo").to_pylist() == photos


def test_out_of_scope_is_a_label_to_evaluate_and_not_to_train_on():
    manifest = Manifest.from_rows([{"listing_id": "1", "photo": "1.jpg", "category": "Out of scope"}], "")
    taxonomy = create_small_taxonomy()
    assert manifest.resolve_labels(taxonomy, out_of_scope=True).category_nodes.tolist() == [OUT_OF_SCOPE]
    with pytest.raises(ManifestError, match="no category to train on") as refused:
        manifest.resolve_labels(taxonomy)
    assert "val, calibrate and test" in str(refused.value)
