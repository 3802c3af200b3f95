"""Folders of photos as people have them."""

import os
import unicodedata
from pathlib import Path

import pytest

from tests.support.helpers import create_scene, encode_image
from training.data.folder_importer import SPLIT_FOLDERS, import_folder
from vision.errors import ManifestError


def write_photos(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_image(create_scene()))


def read_rows(manifest) -> list[tuple[str, str]]:
    return sorted((row["split"], row["category"]) for row in manifest.table.to_pylist())


def test_folders_become_categories(tmp_path):
    write_photos(tmp_path, "train/Cups/a.jpg", "train/Shoes/b.jpg", "val/Cups/c.jpg", "test/Shoes/d.png")
    imported = import_folder(tmp_path)
    assert [category.name for category in imported.taxonomy.categories] == ["Cups", "Shoes"]
    assert read_rows(imported.manifest) == [("test", "Shoes"), ("train", "Cups"), ("train", "Shoes"), ("val", "Cups")]
    assert imported.manifest.resolve_labels(imported.taxonomy).brands.tolist() == [-1] * 4
    assert imported.left_out == ()


def test_a_class_missing_from_val_shifts_no_index(tmp_path):
    write_photos(tmp_path, "train/A/a.jpg", "train/B/a.jpg", "train/C/a.jpg", "val/C/c.jpg")
    imported = import_folder(tmp_path)
    assert imported.manifest.select_split("val").resolve_labels(imported.taxonomy).category_nodes.tolist() == [2]


@pytest.mark.parametrize("name", [*SPLIT_FOLDERS, "Validation", "VALID", "Dev"])
def test_every_usual_name_of_a_split_is_taken(tmp_path, name):
    write_photos(tmp_path, "train/A/a.jpg", f"{name}/A/b.jpg")
    splits = {
        row["photo"].rsplit("/", 1)[1]: row["split"] for row in import_folder(tmp_path).manifest.table.to_pylist()
    }
    assert splits["b.jpg"] == SPLIT_FOLDERS[name.lower()]


def test_classes_without_splits_are_taken(tmp_path):
    write_photos(tmp_path, "Cups/a.jpg", "Shoes/b.jpg", "Shoes/c.jpg")
    assert read_rows(import_folder(tmp_path).manifest) == [("", "Cups"), ("", "Shoes"), ("", "Shoes")]


@pytest.mark.parametrize("before", ["", "train/"])
def test_nested_folders_become_a_tree(tmp_path, before):
    write_photos(tmp_path, *(before + name for name in ("Women/Shoes/1.jpg", "Women/Bags/2.jpg", "Women/3.jpg")))
    imported = import_folder(tmp_path)
    assert imported.taxonomy.leaf_ids == ("women/bags", "women/shoes")
    assert [category for _, category in read_rows(imported.manifest)] == ["Women", "Women > Bags", "Women > Shoes"]
    imported.manifest.resolve_labels(imported.taxonomy)


def test_a_separator_in_a_name_is_a_level(tmp_path):
    write_photos(tmp_path, "Women > Shoes/1.jpg", "Women>Bags/2.jpg")
    imported = import_folder(tmp_path, language="ja")
    assert imported.taxonomy.leaf_ids == ("women/bags", "women/shoes")
    assert imported.taxonomy.by_id["women"].names == {"ja": "Women"}
    imported.manifest.resolve_labels(imported.taxonomy)


def test_what_an_archive_adds_is_left_out_and_counted(tmp_path):
    write_photos(tmp_path / "unpacked", "train/A/a.jpg", "val/A/b.jpg")
    write_photos(
        tmp_path,
        "__MACOSX/unpacked/train/A/._a.jpg",
        "unpacked/train/A/._a.jpg",
        "unpacked/train/.ipynb_checkpoints/a.jpg",
    )
    imported = import_folder(tmp_path)
    assert read_rows(imported.manifest) == [("train", "A"), ("val", "A")]
    assert [str(left_out) for left_out in imported.left_out] == ["hidden names: 2, such as train/.ipynb_checkpoints"]


def test_files_are_known_by_their_first_bytes(tmp_path):
    write_photos(tmp_path, "Cups/IMG_1.JPG", "Cups/IMG_2", "Cups/IMG_3.txt")
    (tmp_path / "Cups" / "webp.jpg").write_bytes(encode_image(create_scene(), "WEBP"))
    (tmp_path / "Cups" / "avif.jpg").write_bytes(encode_image(create_scene(), "AVIF"))
    for name in ("notes.txt", "Thumbs.db", "page.jpg", "b.txt"):
        (tmp_path / "Cups" / name).write_text("<html>")
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "Cups" / "empty.png").touch()
    imported = import_folder(tmp_path)
    assert {Path(row["photo"]).name for row in imported.manifest.table.to_pylist()} == {
        "IMG_1.JPG",
        "IMG_2",
        "IMG_3.txt",
        "webp.jpg",
        "avif.jpg",
    }
    (left_out,) = imported.left_out
    assert (left_out.reason, left_out.count, left_out.example) == ("files that are no photo", 6, "Cups/Thumbs.db")
    assert left_out.endings == ((".txt", 2), (".db", 1), (".png", 1), (".jpg", 1), (".md", 1))


def test_a_whole_folder_left_out_is_an_error_unless_it_is_named(tmp_path):
    write_photos(tmp_path, "train/A/a.jpg", "raw/A/b.jpg", "raw/A/c.jpg", "test/1.jpg")
    (tmp_path / "train" / "Masks").mkdir()
    (tmp_path / "train" / "Masks" / "1.npy").write_bytes(b"x")
    with pytest.raises(ManifestError, match="these would be left out") as caught:
        import_folder(tmp_path)
    assert caught.value.problems == (
        "train/Masks: 1 file, none of them a photo",
        "raw: 2 photos, in no split",
        "test: 1 photo, none in a class folder",
    )
    imported = import_folder(tmp_path, skip=["raw/", "*/Masks", "test"])
    assert read_rows(imported.manifest) == [("train", "A")]
    assert [(left_out.reason, left_out.count) for left_out in imported.left_out] == [
        ("names that --skip leaves out", 3)
    ]


def test_a_name_that_is_no_unicode_is_an_error(tmp_path):
    write_photos(tmp_path, "A/a.jpg")
    (tmp_path / "A" / os.fsdecode("靴.jpg".encode("cp932"))).write_bytes(encode_image(create_scene()))
    with pytest.raises(ManifestError, match=r"A/\ufffd.*\.jpg: its name is not in UTF-8; rename it"):
        import_folder(tmp_path)


def test_a_photo_beside_the_classes_is_named(tmp_path):
    write_photos(tmp_path, "train/A/a.jpg", "train/b.jpg", "c.jpg")
    assert [str(left_out) for left_out in import_folder(tmp_path).left_out] == [
        "photos in no class folder: 2, such as c.jpg"
    ]


def test_links_are_followed_once_and_empty_folders_named(tmp_path):
    folder = tmp_path / "photos"
    write_photos(folder, "A/a.jpg")
    write_photos(tmp_path, "elsewhere/b.jpg")
    (folder / "B").symlink_to(tmp_path / "elsewhere")
    (folder / "A" / "up").symlink_to(folder)
    (folder / "A" / "gone").symlink_to(tmp_path / "gone")
    (folder / "Empty" / "Inner").mkdir(parents=True)
    imported = import_folder(folder)
    assert read_rows(imported.manifest) == [("", "A"), ("", "B")]
    assert [str(left_out) for left_out in imported.left_out] == [
        "links to nothing and special files: 1, such as A/gone",
        "links that lead back to a folder above: 1, such as A/up",
        "empty folders: 1, such as Empty/Inner",
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["val/A/a.jpg", "Shoes/b.jpg"], "val names a split, and Shoes does not"),
        (["A/train/x/a.jpg", "A/test/x/b.jpg", "c.jpg"], "the splits are inside the class A"),
        (["A/train/a.jpg", "A/test/b.jpg", "B/train/c.jpg"], "the splits are inside the class A"),
    ],
)
def test_splits_in_the_wrong_place_are_refused(tmp_path, names, said):
    write_photos(tmp_path, *names)
    with pytest.raises(ManifestError, match=said):
        import_folder(tmp_path)


def test_names_that_differ_in_case_or_normal_form_are_one_class(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Café")
    write_photos(tmp_path, "train/Café/a.jpg", f"val/{decomposed}/b.jpg", "val/CAFÉ/c.jpg")
    imported = import_folder(tmp_path)
    assert imported.taxonomy.leaf_ids == ("café",)
    assert imported.manifest.resolve_labels(imported.taxonomy).category_nodes.tolist() == [0, 0, 0]


@pytest.mark.parametrize("names", [[], ["a.jpg"]])
def test_a_folder_without_classes_is_refused(tmp_path, names):
    write_photos(tmp_path, *names)
    with pytest.raises(ManifestError, match="holds no photo as"):
        import_folder(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="is not a folder"):
        import_folder(tmp_path / "none")
