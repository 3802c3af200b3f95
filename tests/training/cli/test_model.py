import json

import numpy as np
import pytest

from training.calibration.splits import select_tune_rows
from training.cli.model import evaluate, runs
from training.errors import RunError
from training.inference.evaluated_model import load_evaluated_model
from training.inference.predictions import predict
from vision.manifest import Manifest

DEFAULTS = {"split": "test", "photos_per_listing": None, "other_brands": False}


def test_runs_are_listed_with_their_figures(trained_run, tmp_path, capsys):
    runs(trained_run.folder)
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "val", "brand", "loss", "epochs", "min", "state", "backbone"]
    last = trained_run.metrics()[-1]
    assert line.split()[:5] == [
        str(trained_run.folder),
        f"{last['val_leaf_top1']:.1%}",
        f"{last['val_brand_top1']:.1%}",
        f"{last['loss']:.3f}",
        "3/3",
    ]
    assert line.split()[6:] == ["finished", trained_run.recipe.backbone]
    with pytest.raises(RunError, match="no training run in"):
        runs(tmp_path)


def test_a_run_is_evaluated_like_its_bundle(tmp_path, bundle, trained_run, synthetic_dataset):
    figures = {}
    for name, model in (("run", trained_run.folder), ("bundle", bundle.folder)):
        options = {**DEFAULTS, "explore": "val" if name == "bundle" else None}
        evaluate(model, str(synthetic_dataset / "manifest.parquet"), output=tmp_path / f"{name}.json", **options)
        figures[name] = json.loads((tmp_path / f"{name}.json").read_text())
        assert not list(tmp_path.glob("*.html"))
    tune = select_tune_rows(Manifest.load(str(synthetic_dataset / "manifest.parquet")))
    exploration = figures["bundle"]["exploration"]
    assert (exploration["split"], exploration["num"]) == ("val", len(set(tune.column("listing_id").to_pylist())))
    assert exploration["selective"].keys() == figures["bundle"]["listing"]["selective"].keys()
    assert "exploration" not in figures["run"]
    # A run has no temperatures; before them its export answers alike.
    assert figures["run"]["photo"]["num"] == figures["bundle"]["photo"]["num"]
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("test")
    by_run, by_bundle = (
        predict(rows, model.taxonomy, model.preprocessing, model.infer)
        for model in map(load_evaluated_model, (trained_run.folder, bundle.folder))
    )
    np.testing.assert_allclose(by_run.category_logits, by_bundle.category_logits, atol=1e-3)
    np.testing.assert_allclose(by_run.brand_logits, by_bundle.brand_logits, atol=1e-3)
