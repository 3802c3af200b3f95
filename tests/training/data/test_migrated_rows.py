import pyarrow as pa
import pyarrow.parquet
import pytest

from serving.backfill.output import build_suggestion
from tests.support.helpers import create_small_taxonomy
from training.data.migrated_rows import RowMigration, migrate_files
from training.data.taxonomy_changes import MigrationMap, plan_migration
from vision.errors import TaxonomyError
from vision.taxonomy import Brand, Category, Taxonomy

OLD = create_small_taxonomy()
"""Fruit > Apple > (Gala, Fuji), Fruit > Lemon, Tools; Acme, Zeta."""
_TREE = [
    ("goods", None),
    ("produce", "goods"),
    ("apple", "produce"),
    ("lime", "produce"),
    ("citron", "produce"),
    ("toys", None),
]
NEW = Taxonomy(
    version="small-2",
    categories=tuple(Category(id=i, names={"en": i.title()}, parent_id=p) for i, p in _TREE),
    brands=(Brand(id="acme-inc", names={"en": "Acme Inc"}),),
)
MIGRATION = plan_migration(
    OLD,
    NEW,
    MigrationMap(
        categories={
            "fruit": ("produce",),
            "gala": ("apple",),
            "fuji": ("apple",),
            "lemon": ("lime", "citron"),
            "tools": (),
        },
        brands={"acme": ("acme-inc",), "zeta": ()},
    ),
)


def create_gateway_row(ids, probabilities, num_filled, *, kind="NO_BRAND", brand=None, version="small-1"):
    return {
        "listing_id": "l",
        "model_version": "m1",
        "taxonomy_version": version,
        "category_ids": ids,
        "category_probabilities": probabilities,
        "num_filled": num_filled,
        "brand_kind": kind,
        "brand_id": brand,
        "brand_filled": True,
    }


def convert(rows):
    table, number = RowMigration(MIGRATION).convert(pa.Table.from_pylist(rows))
    return table.to_pylist(), number


def test_paths_of_a_gateway_become_those_of_the_new_tree():
    rows, number = convert(
        [
            create_gateway_row(["fruit", "apple", "gala"], [0.9, 0.8, 0.5], 2, kind="BRAND", brand="acme"),
            create_gateway_row(["fruit", "lemon"], [0.9, 0.7], 1, kind="BRAND", brand="zeta"),
            create_gateway_row(["tools"], [0.6], 1),
            create_gateway_row(["fruit"], [0.6], 1, version="another"),
        ]
    )
    assert number == 3
    apple, lemon, tools, other = rows
    assert apple["category_ids"] == ["goods", "produce", "apple"]
    assert apple["category_probabilities"] == [0.9, 0.9, 0.8]
    assert (apple["num_filled"], apple["brand_kind"], apple["brand_id"]) == (3, "BRAND", "acme-inc")
    assert (apple["model_version"], apple["taxonomy_version"]) == ("m1", "small-2")
    # Split: what both parts have in common.
    assert (lemon["category_ids"], lemon["num_filled"]) == (["goods", "produce"], 2)
    assert (lemon["brand_kind"], lemon["brand_id"], lemon["brand_filled"]) == ("OTHER", None, False)
    assert (tools["category_ids"], tools["category_probabilities"], tools["num_filled"]) == ([], [], 0)
    assert tools["brand_kind"] == "NO_BRAND"
    assert other == create_gateway_row(["fruit"], [0.6], 1, version="another")


def test_outcomes_keep_the_name_of_a_retired_brand():
    outcome = {"taxonomy_version": "small-1", "category_id": "fuji", "brand_kind": "BRAND", "brand_id": "zeta"}
    (row,), _ = convert([{**outcome, "brand_name": ""}])
    assert row["category_id"] == "apple"
    assert (row["brand_kind"], row["brand_id"], row["brand_name"]) == ("OTHER", None, "Zeta")


def test_suggestions_of_a_backfill_are_carried_over_with_their_alternatives():
    suggestion = build_suggestion(
        [("fruit", "Fruit", 0.9, True), ("apple", "Apple", 0.75, True), ("gala", "Gala", 0.5, False)],
        ("brand", "zeta", "Zeta", 0.9, True),
        out_of_scope=False,
        photos_disagree=False,
    )
    alternatives = [{"id": id_, "probability": p} for id_, p in (("gala", 0.5), ("fuji", 0.25), ("tools", 0.125))]
    (row,), _ = convert([{**suggestion, "alternatives": alternatives, "taxonomy_version": "small-1"}])
    assert [(s["id"], s["name"], s["probability"], s["filled"]) for s in row["category_path"]] == [
        ("goods", "Goods", 0.9, True),
        ("produce", "Produce", 0.9, True),
        ("apple", "Apple", 0.75, True),
    ]
    assert (row["category_id"], row["filled_category_id"]) == ("apple", "apple")
    assert row["alternatives"] == [{"id": "apple", "probability": 0.75}]
    assert (row["brand"]["kind"], row["brand"]["id"], row["brand"]["filled"]) == ("unknown", None, False)


def create_shoes(version, shop):
    tree = [
        ("men", None),
        ("women", None),
        ("men/shoes", "men"),
        ("women/shoes", "women"),
        ("sneaker", f"{shop}/shoes"),
    ]
    return Taxonomy(
        version=version, categories=tuple(Category(id=i, names={"en": i}, parent_id=p) for i, p in tree), brands=()
    )


@pytest.mark.parametrize(
    ("is_filled", "path", "filled"),
    [
        ((True, True, False), ["men", "men/shoes", "sneaker"], None),
        ((True, True, True), ["men", "men/shoes", "sneaker"], "sneaker"),
    ],
)
def test_what_is_filled_lies_on_the_path_of_a_leaf_that_has_moved_to_another_branch(is_filled, path, filled):
    old, new = create_shoes("shoes-1", "women"), create_shoes("shoes-2", "men")
    old_path = ["women", "women/shoes", "sneaker"]
    suggestion = build_suggestion(
        [(id_, id_, 0.9, each) for id_, each in zip(old_path, is_filled, strict=True)],
        None,
        out_of_scope=False,
        photos_disagree=False,
    )
    table = pa.Table.from_pylist([{**suggestion, "taxonomy_version": "shoes-1"}])
    (row,) = RowMigration(plan_migration(old, new, MigrationMap())).convert(table)[0].to_pylist()
    assert [step["id"] for step in row["category_path"]] == path
    assert (row["category_id"], row["filled_category_id"]) == ("sneaker", filled)
    assert [step["id"] for step in row["category_path"] if step["filled"]][-1:] == ([filled] if filled else [])


def test_files_are_copied_with_their_folders(tmp_path):
    rows = [create_gateway_row(["fruit"], [0.9], 1), create_gateway_row(["fruit"], [0.9], 1, version="another")]
    (tmp_path / "old/suggestions/2026-01-01").mkdir(parents=True)
    (tmp_path / "old/dead_letters").mkdir()
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "old/suggestions/2026-01-01/a.parquet")
    pa.parquet.write_table(pa.table({"photo": ["x.jpg"]}), tmp_path / "old/dead_letters/a.parquet")
    counts = migrate_files(str(tmp_path / "old"), str(tmp_path / "new"), MIGRATION)
    assert counts == {"carried over": 1, "left as they are": 2}
    written = pa.parquet.read_table(tmp_path / "new/suggestions/2026-01-01/a.parquet").to_pylist()
    assert [row["category_ids"] for row in written] == [["goods", "produce"], ["fruit"]]
    assert pa.parquet.read_table(tmp_path / "new/dead_letters/a.parquet").to_pylist() == [{"photo": "x.jpg"}]
    assert migrate_files(str(tmp_path / "new"), str(tmp_path / "again"), MIGRATION) == {
        "carried over": 0,
        "left as they are": 3,
    }


@pytest.mark.parametrize(
    ("column", "said"), [("category_ids", "category 'pear' is not in taxonomy 'small-1'"), ("brand_id", "brand 'pear'")]
)
def test_ids_that_the_old_taxonomy_lacks_are_named_with_their_file(tmp_path, column, said):
    row = create_gateway_row(["fruit"], [0.9], 1)
    row[column] = ["pear"] if column == "category_ids" else "pear"
    (tmp_path / "old").mkdir()
    pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "old" / "a.parquet")
    with pytest.raises(TaxonomyError, match=rf"a\.parquet: {said}"):
        migrate_files(str(tmp_path / "old"), str(tmp_path / "new"), MIGRATION)


def test_a_folder_without_rows_and_the_same_folder_are_refused(tmp_path):
    with pytest.raises(TaxonomyError, match="has no Parquet file"):
        migrate_files(str(tmp_path), str(tmp_path / "new"), MIGRATION)
    pa.parquet.write_table(pa.table({"photo": ["x"]}), tmp_path / "a.parquet")
    for target in (f"{tmp_path}/", tmp_path / "new"):
        with pytest.raises(TaxonomyError, match="or in it; give another --output"):
            migrate_files(str(tmp_path), str(target), MIGRATION)
