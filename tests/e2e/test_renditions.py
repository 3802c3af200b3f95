"""Renditions by the command line: made, certified, classified, and originals refused under their certificate."""

import pytest

from serving.backfill.ledger import Ledger
from serving.storage import Store
from tests.support.backfill import create_market, read_suggestions, shrink_photos
from tests.support.cli import run_cli
from vision.bundle import load_bundle

RENDITION = ("--rendition", 96)


@pytest.fixture
def run(tmp_path):
    def run(*words: object) -> str:
        done = run_cli(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_a_certificate_of_renditions_fills_for_renditions_alone(bundle, synthetic_dataset, tmp_path, run):
    originals, small, certified = synthetic_dataset / "manifest.parquet", tmp_path / "small", tmp_path / "certified"
    run("data", "shard", originals, "--output", small, "--max-px", 96)
    # The model has hardly learnt anything: with such a weak guarantee it fills something.
    weak = ("--alpha-category", 0.9, "--alpha-brand", 0.9, "--delta", 0.5)
    run("calibrate", bundle.folder, small / "manifest.parquet", "--output", certified, *RENDITION, *weak)
    assert load_bundle(certified).calibration.certifies["backend"] == "onnxruntime-cpu@96px"
    assert "could not be used" not in run("evaluate", certified, small / "manifest.parquet", *RENDITION)

    market = create_market(tmp_path / "market", synthetic_dataset)
    backfill = ("backfill", "run", market / "manifest.csv", "--model", certified, "--cores", 1)
    refused = run_cli(*backfill, "--output", tmp_path / "refused", *RENDITION)
    assert refused.returncode == 1
    assert "is no rendition of 96 px" in refused.stderr
    assert "leave --rendition out" in refused.stderr
    assert not list(Ledger(Store(str(tmp_path / "refused"))).entries())
    assert "PHOTO_TOO_MANY_PIXELS" in refused.stderr
    shrink_photos(market, max_px=96)
    run(*backfill, "--output", tmp_path / "out", *RENDITION)
    suggestions = read_suggestions(Store(str(tmp_path / "out")))
    assert any(row["filled_category_id"] for row in suggestions.values())
