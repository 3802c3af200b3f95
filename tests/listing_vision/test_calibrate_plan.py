"""`calibrate-plan` and `calibrate --plan` by their command line: from unlabelled listings to a new certificate."""

import pytest
from typer.testing import CliRunner

from listing_vision.calibrate_plan import calibrate_plan_app
from listing_vision.cli import app
from training.calibration.label_plan import LabelPlan
from vision.bundle import load_bundle
from vision.manifest import Manifest

# A small network is wrong so often that no usual guarantee can be planned.
GUARANTEE = ("--alpha-category", 0.9, "--alpha-brand", 0.9, "--delta", 0.5)


def calibrate(bundle, manifest, *arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, (bundle.folder, manifest, *GUARANTEE, *arguments))])


@pytest.fixture
def manifests(synthetic_dataset, tmp_path):
    """Folder with labelled.csv and recent.csv, which holds the labelled listings too."""
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).rebase(str(tmp_path)).table.to_pylist()
    labelled = [row for row in rows if row["split"] == "val"]
    # Labels that no taxonomy knows, which are not read.
    recent = [{**row, "category": "sold last week", "split": ""} for row in rows]
    for name, part in (("labelled", labelled), ("recent", recent)):
        Manifest.from_rows(part, str(tmp_path)).save(str(tmp_path / f"{name}.csv"))
    return tmp_path


def plan(bundle, folder, *arguments):
    given = (bundle.folder, folder / "labelled.csv", folder / "recent.csv", *GUARANTEE, *arguments)
    return CliRunner().invoke(calibrate_plan_app, list(map(str, given)))


def label(folder, rows, dataset):
    known = Manifest.load(str(dataset / "manifest.parquet")).rebase(str(folder)).table.to_pylist()
    truth = {row["photo"]: row for row in known}
    labelled = [{**row, **{name: truth[row["photo"]][name] for name in ("category", "brand")}} for row in rows]
    Manifest.from_rows(labelled, str(folder)).save(str(folder / "done.csv"))
    return folder / "done.csv"


def test_planned_listings_are_labelled_and_certify_their_thresholds(bundle, other_bundle, manifests, synthetic_dataset):
    done = plan(bundle, manifests, "--output", manifests / "to-label.csv", "--labels", 20)
    assert done.exit_code == 0, (done.output, done.exception)
    rows = Manifest.load(str(manifests / "to-label.csv")).table.to_pylist()
    planned = LabelPlan.load(manifests / "to-label.plan.json")
    drawn = {row["listing_id"] for row in rows}
    assert drawn == planned.listing_ids
    assert f"{len(drawn)} of " in done.output
    labelled = Manifest.load(str(manifests / "labelled.csv")).table.to_pylist()
    assert not drawn & {row["listing_id"] for row in labelled}
    assert {(row["split"], row["category"], row["brand"]) for row in rows} == {("planned", "", "")}
    again = plan(bundle, manifests, "--output", manifests / "to-label.csv")
    assert "a draw is never overwritten" in str(again.exception)

    manifest, plan_path = label(manifests, rows, synthetic_dataset), ("--plan", manifests / "to-label.plan.json")
    output = ("--output", manifests / "new")
    unnoticed = calibrate(bundle, manifest, *output)
    assert "give their plan with --plan" in str(unnoticed.exception)
    elsewhere = calibrate(other_bundle, manifest, *plan_path, *output)
    assert "the plan was made for weights" in str(elsewhere.exception)
    for option in ("--scores", "--tune-split"):
        assert calibrate(bundle, manifest, *plan_path, option, "val", *output).exit_code == 2

    tested = calibrate(bundle, manifest, *plan_path, *output)
    assert tested.exit_code == 0, (tested.output, tested.exception)
    new = load_bundle(manifests / "new").calibration
    assert new.certifies["split"].startswith(f"{len(drawn)} listings drawn among those that the thresholds fill")
    assert new.category_temperature == bundle.calibration.category_temperature
    assert any(field.threshold is not None for field in new.fields)
    for field in planned.fields:
        found = new.field(field.name)
        assert found.grid == (field.threshold,)
        assert found.num_listings == len(field.listing_ids)
        if found.threshold is not None:
            assert found.coverage == field.coverage
            assert f"for {field.coverage:.0%} of the unlabelled listings" in tested.output


def test_a_field_that_cannot_be_planned_says_what_it_would_take(bundle, manifests):
    done = plan(bundle, manifests, "--output", manifests / "to-label.csv", "--labels", 1, "--alpha-category", 0.01)
    assert "Category: not planned: 99% precision " in done.output
    assert "138 if all are right; 1 are for all fields together" in done.output
    unknown = plan(bundle, manifests, "--output", manifests / "to-label.csv", "--engine", "tvm")
    assert "engine 'tvm' is not one of onnxruntime, aot-inductor" in str(unknown.exception)
    assert "no field can be planned with 1 labels; the lines above" in str(done.exception)
    assert not (manifests / "to-label.csv").exists()
