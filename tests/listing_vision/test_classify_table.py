import csv
import dataclasses
import shutil

import pytest
from typer.testing import CliRunner

from listing_vision.classify import classify
from listing_vision.classify_table import find_photos
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.status import Refusal
from tests.support.fake_service import FakeService
from tests.support.helpers import create_scene, encode_image
from vision.bundle import create_bundle, seal_bundle
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
    (tmp_path / "else.bin").touch()
    found = find_photos([tmp_path / "else.bin", folder])
    assert [path.name for path in found] == ["else.bin", "b.jpg", "broken.jpg", "a.PNG", "notes.txt"]
    with pytest.raises(ListingVisionError, match="has no file"):
        find_photos([folder / ".hidden" / "..", (folder.parent / "empty").mkdir() or folder.parent / "empty"])


def test_paths_that_match_nothing_are_named(folder):
    with pytest.raises(ListingVisionError, match=r"no file or folder at \S+photo, \S+\*\.jpeg; check the spelling"):
        find_photos([folder.parent / "photo", folder, folder / "*.jpeg"])


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
    assert (rows["b.jpg"]["reason"] == "") == (rows["b.jpg"]["action"] == "prefill")
    assert (rows["b.jpg"]["brand_reason"] == "") == (rows["b.jpg"]["brand_action"] == "prefill")


def test_a_photo_out_of_scope_is_marked(folder, bundle, tmp_path):
    strict = tmp_path / "strict"
    calibration = dataclasses.replace(bundle.calibration, scope_threshold=1e9)
    with create_bundle(strict) as building:
        for name in bundle.files:
            shutil.copy2(bundle.folder / name, building / name)
        (building / "calibration.json").write_text(calibration.to_json())
        seal_bundle(building, bundle.info)
    call(folder / "b.jpg", folder / "more", "--bundle", strict, "--output", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        marks = [(row["action"], row["reason"], row["brand_reason"]) for row in csv.DictReader(file)]
    assert marks == [("suggest", "out_of_scope", "out_of_scope")] * 2


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_without_a_usable_photo_is_written_and_fails(folder, bundle, tmp_path):
    done = call(folder / "notes.txt", folder / "broken.jpg", "--bundle", bundle.folder, "--output", tmp_path / "o.csv")
    assert done.exit_code == 1
    assert "2 files, 2 of them not used" in done.stdout
    assert all(row["error"] for row in read_rows(tmp_path / "o.csv"))


class MugService(FakeService):
    """Sees a mug in every photo, and notes from which connections it was called."""

    def __init__(self, *failures, **options):
        super().__init__(*failures, **options)
        self.peers = set()

    def ClassifyListing(self, request, context):
        self.peers.add(context.peer())
        super().ClassifyListing(request, context)
        return pb.ClassifyListingResponse(
            category_path=[pb.CategorySuggestion(category_id="mug", name="Mug", probability=0.9, action=1)]
        )


def test_a_server_is_asked_over_one_channel_and_what_it_refuses_is_a_row(tmp_path):
    photos = [tmp_path / f"{i}.jpg" for i in range(4)]
    for path in photos:
        path.write_bytes(b"photo")
    unusable = Refusal(reason="NO_USABLE_PHOTO", message="no photo of the listing can be used")
    busy = Refusal(reason="TOO_BUSY", message="all places are taken", retry_after_s=0.001)
    with MugService(None, unusable, busy) as service:
        done = call(*photos, "--server", service.address, "--output", tmp_path / "out.csv")
    assert done.exit_code == 0
    rows = read_rows(tmp_path / "out.csv")
    assert [row["category"] for row in rows] == ["Mug", "", "Mug", "Mug"]
    assert "NO_USABLE_PHOTO: no photo of the listing can be used" in rows[1]["error"]
    assert service.num_attempts == 5  # the busy answer was tried again
    assert len(service.peers) == 1


def test_a_server_that_refuses_every_photo_fails_the_command(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"photo")
    with MugService(fails_always=Refusal(reason="UNAUTHENTICATED", message="no token")) as service:
        done = call(tmp_path / "a.jpg", "--server", service.address, "--output", tmp_path / "out.csv")
    assert done.exit_code == 1
    assert "UNAUTHENTICATED" in read_rows(tmp_path / "out.csv")[0]["error"]


def test_a_folder_is_no_listing(folder, bundle):
    done = call(folder, "--bundle", bundle.folder)
    assert done.exit_code == 2
    assert "--output FILE.csv" in " ".join(done.output.replace("│", " ").split())
