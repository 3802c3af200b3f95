import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from training.data.checks import KINDS, check_manifest
from training.data.synthetic import create_synthetic_photo
from vision.manifest import Manifest


@pytest.fixture
def run_checks(tmp_path):
    def run(photos: dict[str, bytes], rows: list[dict[str, str]]):
        for name, data in photos.items():
            (tmp_path / name).write_bytes(data)
        defaults = {"category": "gala", "brand": "", "split": "train"}
        complete = [{"listing_id": row["photo"], **defaults, **row} for row in rows]
        return check_manifest(Manifest.from_rows(complete, str(tmp_path)), create_small_taxonomy())

    return run


def photo(seed: int) -> bytes:
    return create_synthetic_photo(seed % 10, 1, np.random.default_rng(seed))


def test_a_clean_manifest_has_no_findings(run_checks):
    assert run_checks({"a": photo(1), "b": photo(2)}, [{"photo": "a"}, {"photo": "b", "split": "val"}]) == []


def test_everything_wrong_is_named(run_checks):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photo(3))))
    brighter = upright.point(lambda v: min(255, int(v * 1.05)))
    findings = run_checks(
        {
            "good": photo(1),
            "copy": photo(1),
            "third": photo(3),
            "alike": encode_image(brighter, quality=80),
            "cut": photo(4)[:900],
            "text": b"no photo at all",
            "own": photo(5),
            "other": photo(6),
        },
        [
            {"photo": "good"},
            {"photo": "copy", "split": "test"},
            {"photo": "third"},
            {"photo": "alike", "split": "val"},
            {"photo": "cut"},
            {"photo": "text"},
            {"photo": "missing"},
            {"photo": "own", "category": "gallaa", "brand": "Acmee", "split": "trian", "listing_id": "good"},
            {"photo": "other", "listing_id": "third", "category": "fuji"},
        ],
    )
    said = {kind: [f.message for f in findings if f.kind == kind] for kind in KINDS}
    assert all(said.values()), said
    assert "PHOTO_TRUNCATED" in said["bad_photo"][0]
    assert "PHOTO_NOT_AN_IMAGE" in said["bad_photo"][1]
    assert [m.split(":")[0] for m in said["bad_photo"]] == ["row 5", "row 6", "row 7"]
    assert "PHOTO_MISSING" in said["bad_photo"][2]
    assert said["unknown_category"] == ["row 8: unknown category 'gallaa'; nearest known: 'gala'"]
    assert said["unknown_brand"] == ["row 8: unknown brand 'Acmee'; nearest known: 'Acme'"]
    assert said["unknown_split"] == ["row 8: split 'trian' is not one of train, val, calibrate, test"]
    assert said["contradicting_labels"] == [
        "listing 'good' has the category 'gala' and 'gallaa'",
        "listing 'third' has the category 'fuji' and 'gala'",
    ]
    assert said["straddling_listing"] == ["listing 'good' has photos in train, trian"]
    assert [("row 1 (train)" in m, "row 2 (test)" in m) for m in said["exact_duplicate"]] == [(True, True)]
    assert any("row 3 (train)" in m and "row 4 (val)" in m for m in said["near_duplicate"])


def test_duplicates_within_a_split_are_no_leak(run_checks):
    assert run_checks({"a": photo(1), "b": photo(1)}, [{"photo": "a"}, {"photo": "b"}]) == []


def test_scenes_are_told_apart(run_checks):
    photos = {str(i): photo(i) for i in range(12)} | {"scene": encode_image(create_scene())}
    rows = [{"photo": name, "split": "val" if i % 2 else "train"} for i, name in enumerate(photos)]
    assert [f for f in run_checks(photos, rows) if f.kind == "near_duplicate"] == []
