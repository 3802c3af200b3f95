import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from training.data.checks import KINDS, WARNINGS, Finding, check_labels, check_photos, write_findings
from training.data.synthetic import create_synthetic_photo
from vision.manifest import Manifest


@pytest.fixture
def run_checks(tmp_path):
    def run(photos: dict[str, bytes], rows: list[dict[str, str]]):
        for name, data in photos.items():
            (tmp_path / name).write_bytes(data)
        defaults = {"category": "gala", "brand": "", "split": "train"}
        complete = [{"listing_id": row["photo"], **defaults, **row} for row in rows]
        manifest = Manifest.from_rows(complete, str(tmp_path))
        return [*check_labels(manifest, create_small_taxonomy()), *check_photos(manifest)]

    return run


def photo(seed: int) -> bytes:
    return create_synthetic_photo(seed % 10, 1, np.random.default_rng(seed))


def list_errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.kind not in WARNINGS]


def test_a_clean_manifest_has_no_findings(run_checks):
    splits = ("train", "train", "val", "calibrate", "test")
    names = [f"{category}-{i}" for category in ("gala", "fuji", "lemon", "tools") for i in range(5)]
    rows = [{"photo": name, "category": name[:-2], "split": splits[int(name[-1])]} for name in names]
    assert run_checks({name: photo(number) for number, name in enumerate(names)}, rows) == []


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
    said = {kind: {f.value: list(f.places) for f in findings if f.kind == kind} for kind in KINDS}
    reasons = ["PHOTO_NOT_AN_IMAGE", "PHOTO_MISSING"]
    assert [said["bad_photo"][reason][0].split(":")[0] for reason in reasons] == ["row 6", "row 7"]
    assert [places[0][:6] for reason, places in said["bad_photo"].items() if reason not in reasons] == ["row 5:"]
    assert said["unknown_category"] == {"unknown category 'gallaa'; nearest known: 'gala'": ["row 8"]}
    assert said["unknown_brand"] == {"unknown brand 'Acmee'; nearest known: 'Acme'": ["row 8"]}
    assert said["unknown_split"] == {"split 'trian' is not one of train, val, calibrate, test": ["row 8"]}
    assert said["contradicting_labels"] == {
        "category": [
            "listing 'good' has the category 'gala' and 'gallaa'",
            "listing 'third' has the category 'fuji' and 'gala'",
        ]
    }
    assert said["straddling_listing"] == {"train and trian": ["listing 'good'"]}
    (places,) = said["exact_duplicate"].values()
    assert [("row 1 (train)" in place, "row 2 (test)" in place) for place in places] == [(True, True)]
    assert any("row 3 (train)" in place and "row 4 (val)" in place for place in said["near_duplicate"]["train and val"])


def test_a_million_rows_with_one_wrong_value_are_one_line():
    columns = {
        "listing_id": pa.array(np.arange(1_000_000)).cast(pa.string()),
        "photo": pa.array(["a"] * 1_000_000),
        "category": pa.array(["gallaa"] * 1_000_000),
        "split": pa.array(["train"] * 1_000_000),
    }
    found = check_labels(Manifest.from_table(pa.table(columns), ""), create_small_taxonomy())
    (wrong,) = list_errors(found)
    assert str(wrong) == (
        "unknown_category: unknown category 'gallaa'; nearest known: 'gala': "
        "1000000 in all, such as row 1; row 2; row 3"
    )


def test_classes_with_few_photos_and_missing_splits_are_warnings(run_checks):
    rows = [("a", "gala", "train"), ("b", "gala", "val"), ("c", "fuji", "train"), ("d", "lemon", "val")]
    found = run_checks(
        {name: photo(number) for number, (name, _, _) in enumerate(rows)},
        [{"photo": name, "category": category, "split": split} for name, category, split in rows],
    )
    assert list_errors(found) == []
    assert {(finding.kind, finding.places) for finding in found if finding.kind.startswith("class")} == {
        ("class_without_photos", ("Tools",)),
        ("class_with_one_photo", ("Fruit > Apple > Fuji", "Fruit > Lemon")),
        ("class_without_train", ("Fruit > Lemon",)),
        ("class_without_val", ("Fruit > Apple > Fuji",)),
    }
    assert [finding.value for finding in found if finding.kind == "split_missing"] == [
        "no photo is in calibrate",
        "no photo is in test",
    ]


def test_a_manifest_without_splits_says_what_makes_them(run_checks):
    found = run_checks({"a": photo(1)}, [{"photo": "a", "split": ""}])
    assert [str(finding) for finding in found if finding.kind == "split_missing"] == [
        "split_missing: no photo has a split: `listing-vision data split` makes them"
    ]
    assert not [finding for finding in found if finding.kind.startswith("class_without_val")]


def test_every_place_is_written(tmp_path):
    findings = [Finding("bad_photo", "PHOTO_EMPTY", tuple(f"row {i}, é" for i in range(5)))]
    write_findings(findings, tmp_path / "findings.csv")
    with (tmp_path / "findings.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["place"] for row in rows] == list(findings[0].places)
    assert {(row["kind"], row["value"]) for row in rows} == {("bad_photo", "PHOTO_EMPTY")}


def test_duplicates_within_a_split_are_no_leak(run_checks):
    assert list_errors(run_checks({"a": photo(1), "b": photo(1)}, [{"photo": "a"}, {"photo": "b"}])) == []


def test_scenes_are_told_apart(run_checks):
    photos = {str(i): photo(i) for i in range(12)} | {"scene": encode_image(create_scene())}
    rows = [{"photo": name, "split": "val" if i % 2 else "train"} for i, name in enumerate(photos)]
    assert [f for f in run_checks(photos, rows) if f.kind == "near_duplicate"] == []
