import csv
import io
import unicodedata

import pytest

from training.data.importers import (
    GROCERY_BRANDS,
    build_brands,
    build_taxonomy,
    compute_version,
    import_grocery_store,
)
from vision.errors import ManifestError


def test_grocery_store_counts_its_classes_from_its_own_table(grocery_source):
    manifest, taxonomy = import_grocery_store(grocery_source)
    with (grocery_source / "dataset" / "classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert len(taxonomy.leaf_ids) == len({row["Class ID (int)"] for row in classes})
    depth_two = {taxonomy.get_lineage(leaf)[1].id for leaf in taxonomy.leaf_ids}
    assert len(depth_two) == len({row["Coarse Class ID (int)"] for row in classes})
    assert {category.name for category in taxonomy.categories if category.parent_id is None} == {
        "Fruit",
        "Packages",
        "Vegetables",
    }
    counts = {entry["values"]: entry["counts"] for entry in manifest.column("split").value_counts().to_pylist()}
    assert counts == {"train": 2640, "val": 296, "test": 2485}


def test_grocery_store_labels(grocery_source):
    manifest, taxonomy = import_grocery_store(grocery_source)
    rows = manifest.table.to_pylist()
    granny = next(row for row in rows if "Granny-Smith" in row["photo"])
    assert (granny["category"], granny["brand"]) == ("Fruit > Apple > Granny Smith", "no brand")
    juice = next(row for row in rows if "God-Morgon-Apple-Juice" in row["photo"])
    assert (juice["category"], juice["brand"]) == ("Packages > Juice > God Morgon Apple Juice", "God Morgon")
    # A class that is its whole coarse class is a leaf at the second level.
    assert taxonomy.find_category("Fruit > Avocado") in taxonomy.leaf_ids
    assert {row["brand"] for row in rows} == {"no brand", *GROCERY_BRANDS}
    manifest.resolve_labels(taxonomy)
    for row in rows:
        assert (row["brand"] == "no brand") == (not row["category"].startswith("Packages"))


def test_grocery_store_has_an_iconic_photo_of_each_class_for_train(grocery_source):
    published, taxonomy = import_grocery_store(grocery_source)
    manifest, same_taxonomy = import_grocery_store(grocery_source, iconic=True)
    assert same_taxonomy == taxonomy
    rows = manifest.table.to_pylist()
    assert rows[: len(published)] == published.table.to_pylist()
    added = rows[len(published) :]
    assert len(added) == len(taxonomy.leaf_ids)
    assert {taxonomy.find_category(row["category"]) for row in added} == set(taxonomy.leaf_ids)
    assert {row["split"] for row in added} == {"train"}
    assert len({row["listing_id"] for row in rows}) == len(rows)
    assert "train-Granny-Smith_Iconic" in {row["listing_id"] for row in added}


def test_a_folder_that_is_not_the_data_set_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"classes\.csv is missing"):
        import_grocery_store(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["T-Shirts", "T Shirts"], "category 'T Shirts' gets the id 't-shirts', which 'T-Shirts' has; rename one"),
        (["Cups", " "], "category ' ' has an empty name; give it one"),
    ],
)
def test_names_that_would_share_an_id_are_refused(names, said):
    with pytest.raises(ManifestError) as caught:
        build_taxonomy("x", [[name] for name in names])
    assert caught.value.problems == (said,)


def test_names_of_every_script_get_ids_of_their_own():
    names = ["เสื้อ", "เสือ", "靴", "かばん", "हिंदी", "👟", "👠", "Café"]
    taxonomy = build_taxonomy("x", [[unicodedata.normalize("NFD", name)] for name in names], language="und")
    assert taxonomy.leaf_ids == ("เสื้อ", "เสือ", "靴", "かばん", "हिंदी", "u1f45f", "u1f460", "café")
    assert [taxonomy.find_category(name) for name in names] == list(taxonomy.leaf_ids)


def test_spellings_of_a_brand_are_its_aliases():
    brands = build_brands(["Dr. Martens", "Dr Martens", "DR. MARTENS", "資生堂"], language="ja")
    assert [(brand.id, brand.name, brand.aliases) for brand in brands] == [
        ("dr-martens", "Dr. Martens", ("Dr Martens",)),
        ("資生堂", "資生堂", ()),
    ]


def test_a_taxonomy_version_follows_from_what_is_in_it():
    version = compute_version("mine", [["Cups"], ["Shoes"]])
    assert version.startswith("mine-")
    assert version == compute_version("mine", [["Cups"], ["Shoes"]])
    assert (
        version != compute_version("mine", [["Cups", "Shoes"]]) != compute_version("mine", [["Cups"], ["Shoes"]], "a")
    )


def test_a_listed_photo_that_is_missing_is_named(tmp_path):
    table = io.StringIO()
    csv.writer(table).writerows(
        [
            [
                "Class Name (str)",
                "Class ID (int)",
                "Coarse Class Name (str)",
                "Coarse Class ID (int)",
                "Iconic Image Path (str)",
            ],
            ["Kiwi", "0", "Kiwi", "0", "/iconic/Fruit/Kiwi/Kiwi.jpg"],
        ]
    )
    (tmp_path / "classes.csv").write_text(table.getvalue())
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split}/Kiwi_001.jpg, 0, 0\n")
    with pytest.raises(ManifestError, match=r"test\.txt names test/Kiwi_001\.jpg, which is missing"):
        import_grocery_store(tmp_path)
