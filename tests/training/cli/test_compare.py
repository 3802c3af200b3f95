"""`compare` on really trained models; exit statuses 1 and 3 through a real process."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
from typer.testing import CliRunner

from listing_vision.cli import app
from tests.conftest import ROOT
from training.run import Run
from vision.errors import ListingVisionError
from vision.manifest import Manifest


def compare(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def run_compare_process(*words):
    command = [sys.executable, "-m", "listing_vision", "compare", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)


@pytest.fixture(scope="module")
def shifted_run(trained_run, tmp_path_factory):
    """The trained run with a category head that predicts its neighbour's category."""
    folder = tmp_path_factory.mktemp("confused") / "run"
    shutil.copytree(trained_run.folder, folder)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    for name in list(weights):
        if name.startswith("category_head"):
            weights[name] = weights[name].roll(1, 0)
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    return Run(folder)


@pytest.fixture(scope="module")
def relabelled_manifest(trained_run, synthetic_dataset, tmp_path_factory):
    """A manifest of the test split labelled with what the trained run predicts, so that it is never wrong."""
    from training.inference.evaluated_model import load_evaluated_model
    from training.inference.predictions import predict
    from vision.prediction.listings import (
        predict_listings,
    )

    model = load_evaluated_model(trained_run.folder)
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("test")
    predictions = predict(rows, model.taxonomy, model.preprocessing, model.infer)
    answers = predict_listings(
        predictions.category_logits,
        predictions.brand_logits,
        predictions.scope_scores,
        predictions.groups,
        taxonomy=model.taxonomy,
        calibration=model.calibration,
    )
    nodes = answers.paths.nodes
    table = [
        row
        | {
            "photo": f"{synthetic_dataset}/{row['photo']}",
            "category": model.taxonomy.categories[int(nodes[group][nodes[group] >= 0][-1])].id,
        }
        for row, group in zip(rows.table.to_pylist(), predictions.groups, strict=True)
    ]
    path = tmp_path_factory.mktemp("labelled") / "manifest.parquet"
    Manifest.from_rows(table, "").save(str(path))
    return path


def test_a_model_passes_against_itself(bundle, trained_run, synthetic_dataset):
    manifest = synthetic_dataset / "manifest.parquet"
    done = compare(bundle.folder, bundle.folder, manifest, "--gate", ROOT / "training" / "gates" / "release.toml")
    assert done.exit_code == 0, done.stderr
    assert "gate passed" in done.stdout
    assert "10 listings" in done.stdout
    lost_and_won = [line.split()[-3:-1] for line in done.stdout.splitlines() if line.startswith("  Leaf category ")]
    assert lost_and_won == [["0", "0"]]


def test_a_worse_model_is_named_and_exits_3_only_with_a_gate(trained_run, shifted_run, relabelled_manifest, tmp_path):
    gate = tmp_path / "gate.yaml"
    gate.write_text("max_category_drop: 0.5\nmin_category_listings: 1\n")
    words = (trained_run.folder, shifted_run.folder, relabelled_manifest, "--output", tmp_path / "report")
    done = run_compare_process(*words, "--gate", gate)
    assert done.returncode == 3, done.stderr
    assert "gate not passed: max_overall_drop, max_category_drop" in done.stdout
    assert "max_overall_drop broken: leaf accuracy fell by 100.00 points, a fall of 0.00 is allowed" in done.stdout
    assert "Traceback" not in done.stderr

    figures = json.loads((tmp_path / "report" / "compare.json").read_text())
    leaf = figures["fields"]["leaf"]
    assert (leaf["num_listings"], leaf["num_lost"], leaf["num_won"]) == (10, 10, 0)
    assert leaf["p_value"] == pytest.approx(2 / 2**10)
    assert leaf["interval"] == [-1, -1]
    assert figures["gate"]["passed"] is False
    assert sum(flip["field"] == "category" for flip in figures["flips"]) == 10
    page = (tmp_path / "report" / "compare.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 10
    assert "Gate not passed" in page
    assert "http" not in page.replace("http-equiv", "")

    assert compare(*words).exit_code == 0
    better = compare(shifted_run.folder, trained_run.folder, relabelled_manifest, "--gate", gate)
    assert better.exit_code == 0, better.stdout + better.stderr


def test_failures_are_not_verdicts(bundle, shifted_run, synthetic_dataset, tmp_path):
    manifest = synthetic_dataset / "manifest.parquet"
    gate = tmp_path / "gate.toml"
    gate.write_text("max_overal_drop = 0\n")
    done = run_compare_process(bundle.folder, bundle.folder, manifest, "--gate", gate)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "all: max_brand_drop, max_category_drop, max_coverage_drop, max_overall_drop, min_category_listings"
    )
    assert "nearest known: 'max_overall_drop'" in done.stderr

    stranger = Run(tmp_path / "stranger")
    shutil.copytree(shifted_run.folder, stranger.folder)
    taxonomy = stranger.taxonomy
    renamed = dataclasses.replace(
        taxonomy,
        version="stranger-1",
        categories=tuple(
            dataclasses.replace(
                c,
                id=f"x-{c.id}",
                names={"en": f"X {c.name}"},
                parent_id=None if c.parent_id is None else f"x-{c.parent_id}",
            )
            for c in taxonomy.categories
        ),
        brands=tuple(dataclasses.replace(b, id=f"x-{b.id}", names={"en": f"X {b.name}"}) for b in taxonomy.brands),
    )
    renamed.save(stranger.folder / "taxonomy.json")
    done = compare(bundle.folder, stranger.folder, manifest)
    assert isinstance(done.exception, ListingVisionError)
    assert "nothing to compare" in str(done.exception)
    assert "'stranger-1'" in str(done.exception)
    assert compare(bundle.folder, manifest).exit_code == 2
