import csv

import pytest
from typer.testing import CliRunner

from listing_vision.classify import classify
from listing_vision.classify_table import find_photos
from tests.support.helpers import create_scene, encode_image
from vision.errors import ListingVisionError
from vision.runtime.cli import create_cli_app


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    (tmp_path / "photos" / ".hidden").mkdir()
    for name in ("b.jpg", "more/a.PNG", ".hidden/c.jpg"):
        (tmp_path / "photos" / name).write_bytes(encode_image(create_scene(60, 50)))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"broken")
    (tmp_path / "photos" / "notes.txt").write_text("not a photo")
    return tmp_path / "photos"


def call(*words):
    app = create_cli_app("")
    app.command()(classify)
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_photos_are_found_below_a_folder_and_files_are_taken_as_they_are(folder, tmp_path):
    found = find_photos([tmp_path / "else.bin", folder])
    assert [path.name for path in found] == ["else.bin", "b.jpg", "broken.jpg", "a.PNG", "notes.txt"]
    with pytest.raises(ListingVisionError, match="has no file"):
        find_photos([folder / ".hidden" / "..", (folder.parent / "empty").mkdir() or folder.parent / "empty"])


def test_each_photo_is_a_row_and_a_broken_one_says_why(folder, bundle, tmp_path):
    done = call(folder, "--bundle", bundle.folder, "--output", tmp_path / "out.csv")
    assert done.exit_code == 0
    assert "4 files, 2 of them not used" in done.stdout
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {row["photo"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"b.jpg", "broken.jpg", "a.PNG", "notes.txt"}
    assert rows["broken.jpg"]["error"]
    assert not rows["broken.jpg"]["category"]
    assert rows["b.jpg"]["category"]
    assert 0 <= float(rows["b.jpg"]["probability"]) <= 1
    assert rows["b.jpg"]["action"] in ("suggest", "prefill")


def test_a_folder_is_no_listing(folder, bundle):
    done = call(folder, "--bundle", bundle.folder)
    assert done.exit_code == 2
    assert "--output FILE.csv" in " ".join(done.output.replace("│", " ").split())
