"""Tables with names of their own, as shops and Excel write them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from training.data.importers import save_dataset
from training.data.table_importer import import_table
from vision.errors import ManifestError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

JAPANESE = {"listing_id": ["商品ID"], "photo": ["画像"], "category": ["カテゴリ"], "brand": ["ブランド"]}
ROWS = [
    ("17", "写真/1.jpg", "婦人 > 靴", "資生堂"),
    ("17", "写真/2.jpg", "婦人 > 靴", "資生堂"),
    ("18", "写真/3.jpg", "紳士>靴", "ノーブランド"),
    ("19", "https://photos/4.jpg", "紳士", ""),
]


def write_csv(path: Path, rows, *, encoding="utf-8", separator=",") -> str:
    header = ["商品ID", "画像", "カテゴリ", "ブランド"]
    path.write_bytes("\r\n".join(separator.join(row) for row in [header, *rows]).encode(encoding))
    return str(path)


def write_like(folder: Path, form: str) -> str:
    names = ["商品ID", "画像", "カテゴリ", "ブランド"]
    if form == "parquet":
        ids, *others = zip(*ROWS, strict=True)
        values = [[float(i) for i in ids], *others]
        pyarrow.parquet.write_table(pa.table(dict(zip(names, values, strict=True))), folder / "items.parquet")
        return str(folder / "items.parquet")
    if form == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in ROWS]
        (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return str(folder / "items.jsonl")
    encoding, separator = form.split(" ")
    return write_csv(folder / "items.csv", ROWS, encoding=encoding, separator=separator)


@pytest.mark.parametrize("form", ["utf-8 ,", "utf-8-sig ;", "cp932 ,", "utf-16 \t", "jsonl", "parquet"])
def test_a_table_of_any_form_becomes_a_manifest_and_a_taxonomy(tmp_path, form):
    imported = import_table(write_like(tmp_path, form), columns=JAPANESE, language="ja", no_brand="ノーブランド")
    taxonomy = imported.taxonomy
    assert taxonomy.leaf_ids == ("婦人/靴", "紳士/靴")
    assert taxonomy.by_id["婦人/靴"].names == {"ja": "靴"}
    assert taxonomy.brand_labels == ("ノーブランド", "資生堂")
    rows = imported.manifest.table.to_pylist()
    assert [row["listing_id"] for row in rows] == ["17", "17", "18", "19"]
    assert [imported.manifest.get_photo_url(row) for row in (0, 3)] == [
        f"{tmp_path}/写真/1.jpg",
        "https://photos/4.jpg",
    ]
    labels = imported.manifest.resolve_labels(taxonomy)
    assert [taxonomy.categories[node].id for node in labels.category_nodes] == ["婦人/靴", "婦人/靴", "紳士/靴", "紳士"]
    assert labels.brands.tolist() == [1, 1, 0, -1]
    assert imported.notes == ()


def test_it_is_saved_with_paths_that_still_lead_to_the_photos(tmp_path):
    imported = import_table(write_csv(tmp_path / "items.csv", ROWS), columns=JAPANESE)
    path = save_dataset(imported.manifest, imported.taxonomy, tmp_path / "data" / "mine")
    manifest = Manifest.load(str(path))
    assert manifest.get_photo_url(0) == f"{tmp_path}/写真/1.jpg"
    manifest.resolve_labels(Taxonomy.load(path.parent / "taxonomy.json"))
    elsewhere = import_table(str(tmp_path / "items.csv"), columns=JAPANESE, photos="s3://shop/photos")
    assert elsewhere.manifest.get_photo_url(0) == "s3://shop/photos/写真/1.jpg"


def test_columns_of_the_manifests_names_need_not_be_given(tmp_path):
    (tmp_path / "m.csv").write_text(
        "photo,category,split,price\n1.jpg,Cups,Training,7\n2.jpg,Cups,VALIDATION,8\n3.jpg,Cups,,9\n"
    )
    imported = import_table(str(tmp_path / "m.csv"))
    assert imported.manifest.column("split").to_pylist() == ["train", "val", ""]
    assert imported.manifest.column("listing_id").to_pylist() == ["1.jpg", "2.jpg", "3.jpg"]
    assert imported.taxonomy.brands == ()


def test_levels_may_be_columns_and_the_separator_another(tmp_path):
    (tmp_path / "m.csv").write_text(
        "photo,top,mid,low\n1,Women,Shoes,Boots/Ankle\n2,Women,Bags,\n3,,,\n4,women,,\n", encoding="utf-8"
    )
    imported = import_table(str(tmp_path / "m.csv"), columns={"category": ["top", "mid", "low"]}, separator="/")
    assert imported.manifest.column("category").to_pylist() == ["women/shoes/boots/ankle", "women/bags", "", "women"]
    imported.manifest.resolve_labels(imported.taxonomy)


def test_rows_without_a_photo_and_spellings_are_counted(tmp_path):
    rows = ["1.jpg,Cups,Dr. Martens", "2.jpg,Cups,Dr Martens", "3.jpg,Cups,dr. martens", ",Cups,Zeta", "NaN,Cups,"]
    (tmp_path / "m.csv").write_text("photo,category,brand\n" + "\n".join(rows))
    imported = import_table(str(tmp_path / "m.csv"))
    assert imported.notes == (
        "left out: 2 rows without a photo",
        "1 brand is spelled in several ways, such as Dr Martens = Dr. Martens",
    )
    assert imported.manifest.resolve_labels(imported.taxonomy).brands.tolist() == [1, 1, 1]


def test_a_photo_without_a_listing_is_one(tmp_path):
    (tmp_path / "m.csv").write_text("photo,category,listing_id\n1.jpg,Cups,7\n2.jpg,Cups,\n")
    imported = import_table(str(tmp_path / "m.csv"))
    assert imported.manifest.column("listing_id").to_pylist() == ["7", "2.jpg"]
    assert imported.notes == ("1 row has no listing_id; each photo of these is a listing",)


def test_a_name_like_another_categorys_id_is_not_taken_for_it(tmp_path):
    (tmp_path / "m.csv").write_text("photo,category\n1,Women > Shoes\n2,women/shoes\n")
    imported = import_table(str(tmp_path / "m.csv"))
    nodes = imported.manifest.resolve_labels(imported.taxonomy).category_nodes
    assert [imported.taxonomy.categories[node].name for node in nodes] == ["Shoes", "women/shoes"]


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        (
            "picture,category\n1,a\n",
            {},
            "which column is the photo. Give --column photo=NAME; it has picture, category",
        ),
        ("photo,kind\n1,a\n", {}, "which column is the category"),
        ("photo,kind\n1,a\n", {"category": ["knid"]}, "column 'knid', given for category, is missing; it has photo"),
        ("photo,kind\n1,a\n", {"catgory": ["kind"]}, "'catgory' is no column of a manifest"),
        ("photo,category,a\n1,a,b\n", {"photo": ["photo", "a"]}, "photo is one column, not 2"),
        ("photo,category\n1,\n", {}, "no row has a category"),
        ("photo,category\n,a\n", {}, "has no row with a photo in column 'photo'"),
        ("photo,category,split\n1,a,trian\n", {}, "split 'trian' is not one of train, training"),
        ("photo,category\n1,T-Shirts\n2,T Shirts\n", {}, "rename one"),
        ("photo,category\n1,a > > b\n", {}, "has an empty name"),
    ],
)
def test_a_table_that_cannot_be_imported_says_why(tmp_path, text, columns, said):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=said):
        import_table(str(tmp_path / "m.csv"), columns=columns)


names = st.text(st.characters(exclude_categories=("C",), exclude_characters=">"), min_size=1, max_size=6)


@given(st.lists(st.tuples(names, names, names), min_size=1, max_size=8))
def test_whatever_is_imported_resolves(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("t") / "m.jsonl"
    lines = [{"photo": str(i), "category": f"{a} > {b}", "brand": c} for i, (a, b, c) in enumerate(drawn)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    try:
        imported = import_table(str(path), no_brand="\x00", other_brand="\x01")
    except ManifestError as error:
        if "rename one" in str(error) or "empty name" in str(error):
            reject()
        raise
    labels = imported.manifest.resolve_labels(imported.taxonomy)
    assert (labels.category_nodes >= 0).all()
    known = [bool(c.strip()) and c not in ("nan", "NaN") for _, _, c in drawn]
    assert ((labels.brands > 0) == known).all()
    assert Taxonomy.from_json(imported.taxonomy.to_json()) == imported.taxonomy
