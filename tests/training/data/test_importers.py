import csv
import io
from pathlib import Path

import pytest

from tests.support.helpers import create_scene, encode_image
from training.data.importers import GROCERY_BRANDS, import_folder, import_grocery_store
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


def test_a_folder_that_is_not_the_data_set_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"classes\.csv is missing"):
        import_grocery_store(tmp_path)


def write_photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_image(create_scene()))


def test_folders_become_categories(tmp_path):
    for name in ("train/Cups/a.jpg", "train/Shoes/b.jpg", "val/Cups/c.jpg", "test/Shoes/d.png"):
        write_photo(tmp_path / name)
    manifest, taxonomy = import_folder(tmp_path)
    assert [category.name for category in taxonomy.categories] == ["Cups", "Shoes"]
    assert sorted((r["split"], r["category"], r["brand"]) for r in manifest.table.to_pylist()) == [
        ("test", "Shoes", ""),
        ("train", "Cups", ""),
        ("train", "Shoes", ""),
        ("val", "Cups", ""),
    ]
    assert manifest.resolve_labels(taxonomy).brands.tolist() == [-1] * 4


def test_a_class_missing_from_val_shifts_no_index(tmp_path):
    for name in ("train/A/a.jpg", "train/B/a.jpg", "train/C/a.jpg", "val/C/c.jpg"):
        write_photo(tmp_path / name)
    manifest, taxonomy = import_folder(tmp_path)
    assert manifest.select_split("val").resolve_labels(taxonomy).category_nodes.tolist() == [2]


def test_endings_in_capitals_count_and_other_files_are_named(tmp_path, caplog):
    for name in ("train/Cups/IMG_1.JPG", "train/Cups/IMG_1.png", "val/Cups/a.jpeg"):
        write_photo(tmp_path / name)
    (tmp_path / "train" / "Cups" / "notes.txt").write_text("x")
    manifest, _ = import_folder(tmp_path)
    ids = manifest.column("listing_id").to_pylist()
    assert sorted(ids) == ["train/Cups/IMG_1.JPG", "train/Cups/IMG_1.png", "val/Cups/a.jpeg"]
    assert "1 files are no photos and are left out: .txt" in caplog.text


def test_names_in_any_script_are_kept_apart(tmp_path):
    for name in ("train/靴/a.jpg", "train/かばん/b.jpg"):
        write_photo(tmp_path / name)
    _, taxonomy = import_folder(tmp_path)
    assert sorted(taxonomy.leaf_ids) == sorted(["靴", "かばん"])


@pytest.mark.parametrize("names", [("T-Shirts", "T Shirts"), ("!", "Cups")])
def test_names_that_would_share_an_id_are_refused(tmp_path, names):
    for name in names:
        write_photo(tmp_path / "train" / name / "a.jpg")
    with pytest.raises(ManifestError, match="rename one"):
        import_folder(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="holds no photo"):
        import_folder(tmp_path)


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
