import dataclasses

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.predictions import create_predictions
from training.calibration.splits import (
    CalibrationListings,
    choose_tune_listings,
    exclude_labelled,
    refuse_planned_rows,
    select_forecast_rows,
    select_listings,
    select_tested_rows,
    select_tune_rows,
    split_calibration_rows,
)
from vision.errors import ManifestError
from vision.manifest import Manifest


def test_a_calibration_split_is_kept_for_the_tests():
    rows = [{"listing_id": str(i), "photo": f"{i}.jpg", "split": split} for i, split in enumerate(("train", "val"))]
    tune, tested, description = split_calibration_rows(Manifest.from_rows(rows, ""))
    assert (len(tune), tested) == (1, None)
    assert description == "val, four fifths of the listings by hash of listing id"
    rows.append({"listing_id": "9", "photo": "9.jpg", "split": "calibrate"})
    tune, tested, description = split_calibration_rows(Manifest.from_rows(rows, ""))
    assert tune.column("listing_id").to_pylist() == ["1"]
    assert tested.column("listing_id").to_pylist() == ["9"]
    assert description == "calibrate; thresholds to test from val"
    for refused in ("calibrate", "train"):
        with pytest.raises(ManifestError, match=f"cannot come from the split '{refused}'"):
            split_calibration_rows(Manifest.from_rows(rows, ""), tune_split=refused)
    with pytest.raises(ManifestError, match="no row of the manifest has split 'tune'"):
        split_calibration_rows(Manifest.from_rows(rows, ""), tune_split="tune")


def test_a_fifth_of_the_listings_is_for_tuning_the_same_ones_each_time():
    predictions = create_predictions(np.zeros((400, 4)), np.zeros(400, int))
    is_tune = choose_tune_listings(predictions)
    assert 50 < is_tune.sum() < 110
    reversed_ids = dataclasses.replace(predictions, listing_ids=predictions.listing_ids[::-1])
    assert (choose_tune_listings(reversed_ids) == is_tune[::-1]).all()


def test_rows_to_explore_are_those_that_no_guarantee_is_tested_on():
    rows = [{"listing_id": str(i), "photo": f"{i}.jpg", "split": "val"} for i in range(400)]
    manifest = Manifest.from_rows(rows, "")
    ids = select_tune_rows(manifest).column("listing_id").to_pylist()
    predictions = dataclasses.replace(
        create_predictions(np.zeros((400, 4)), np.zeros(400, int)), listing_ids=tuple(str(i) for i in range(400))
    )
    assert ids == [str(i) for i in np.flatnonzero(choose_tune_listings(predictions))]
    # With listings kept for the tests, the whole other split is free.
    kept = Manifest.from_rows([*rows, {"listing_id": "x", "photo": "x.jpg", "split": "calibrate"}], "")
    assert len(select_tune_rows(kept)) == 400
    with pytest.raises(ManifestError, match="cannot come from the split 'calibrate'"):
        select_tune_rows(kept, tune_split="calibrate")


def test_only_the_calibrate_split_tests_a_bundle_that_keeps_its_temperatures():
    rows = [{"listing_id": name, "photo": "x.jpg", "split": name} for name in ("train", "val", "calibrate")]
    assert select_tested_rows(Manifest.from_rows(rows, "")).column("listing_id").to_pylist() == ["calibrate"]
    with pytest.raises(ManifestError, match="the bundle's temperatures may come from any other"):
        select_tested_rows(Manifest.from_rows(rows[:2], ""))


def test_listings_for_thresholds_lose_their_labels_and_are_none_of_the_labelled_ones():
    def build(*ids):
        rows = [{"listing_id": name, "photo": f"{name}.jpg", "category": "c", "brand": "b"} for name in ids]
        return Manifest.from_rows(rows, "photos")

    left = exclude_labelled(build("1", "2", "3", "3"), build("2", "9"))
    assert left.column("listing_id").to_pylist() == ["1", "3", "3"]
    assert left.base_url == "photos"
    for name in ("category", "brand"):
        assert set(left.column(name).to_pylist()) == {""}
    with pytest.raises(ManifestError, match="every unlabelled listing is in the labelled manifest"):
        exclude_labelled(build("1"), build("1", "2"))


def test_planned_rows_are_refused_and_are_no_evidence_of_the_share_of_errors():
    splits = ("train", "val", "calibrate", "test", "planned", "")
    rows = [{"listing_id": split, "photo": f"{i}.jpg", "split": split} for i, split in enumerate(splits)]
    manifest = Manifest.from_rows([{**row, "listing_id": row["listing_id"] or "none"} for row in rows], "")
    assert select_forecast_rows(manifest).column("listing_id").to_pylist() == ["val", "calibrate", "none"]
    with pytest.raises(ManifestError, match="give their plan with --plan"):
        refuse_planned_rows(manifest)
    planned = select_listings(manifest, ["planned", "elsewhere"])
    assert planned.column("listing_id").to_pylist() == ["planned"]
    refuse_planned_rows(select_listings(manifest, ["val", "train"]))
    with pytest.raises(ManifestError, match="no labelled row has split val, calibrate or none"):
        select_forecast_rows(planned)
    with pytest.raises(ManifestError, match="no listing of the plan is in the manifest"):
        select_listings(manifest, ["elsewhere"])


def test_too_few_listings_are_all_for_tuning():
    assert choose_tune_listings(create_predictions(np.zeros((1, 4)), np.zeros(1, int))).tolist() == [True]


def test_chosen_listings_are_numbered_from_zero():
    predictions = create_predictions(np.eye(4), np.arange(4))
    chosen = CalibrationListings.from_predictions(predictions, create_small_taxonomy(), np.array([0, 1, 0, 1], bool))
    assert chosen.groups.tolist() == [0, 1]
    assert chosen.category_logits.argmax(axis=1).tolist() == [1, 3]
    assert chosen.truth.leaves.tolist() == [1, 3]
