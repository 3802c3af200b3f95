import dataclasses
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.conftest import ROOT
from tests.helpers import train_run
from training.loop import Trainer
from training.run import Run
from vision.errors import LossNotFinite, RunError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy


def test_a_run_holds_what_it_was_made_of(trained_run, small_recipe):
    assert trained_run.recipe == small_recipe
    records = trained_run.metrics()
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["photo_px"] for record in records] == [48, 64, 64]
    assert 0 <= records[-1]["val_leaf_top1"] <= 1
    assert records[-1]["loss"] < records[0]["loss"]
    assert trained_run.asked()["versions"]["torch"] == torch.__version__


def weights(run):
    return safetensors.torch.load_file(run.weights_path)


RECIPE_TOML = """
input_px = 64
batch_size = 16
checkpoint_every_steps = 3
[[stages]]
photo_px = 48
epochs = 1
[[stages]]
photo_px = 64
epochs = 2
"""


def test_a_run_killed_and_one_terminated_end_bit_equal_to_an_unbroken_one(trained_run, drawn, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE_TOML)
    folder = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "listing_vision", "train", str(drawn / "manifest.parquet")),
        *("--recipe", str(recipe), "--run", str(folder), "--workers", "0"),
    ]

    def until_checkpoint(process, step):
        for _ in range(1200):
            if (folder / "checkpoints" / f"step-{step:08d}").exists() or process.poll() is not None:
                return
            time.sleep(0.05)
        raise AssertionError(f"no checkpoint at step {step}")

    killed = subprocess.Popen(command, cwd=ROOT)
    until_checkpoint(killed, 3)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (folder / "weights.safetensors").exists()

    terminated = subprocess.Popen(command, cwd=ROOT)
    until_checkpoint(terminated, 6)
    terminated.send_signal(signal.SIGTERM)
    assert terminated.wait(120) == 75
    assert not (folder / "weights.safetensors").exists()

    assert subprocess.run(command, cwd=ROOT).returncode == 0
    resumed, unbroken = weights(Run(folder)), weights(trained_run)
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)

    def without_times(run):
        return [{k: v for k, v in r.items() if k not in ("seconds", "photos_per_s")} for r in run.metrics()]

    assert without_times(Run(folder)) == without_times(trained_run)


def test_a_finished_run_repeated_changes_nothing(trained_run, drawn, small_recipe):
    before = trained_run.weights_path.read_bytes()
    train_run(trained_run.folder, drawn, small_recipe)
    assert trained_run.weights_path.read_bytes() == before


def test_another_recipe_in_the_same_folder_is_refused(trained_run, drawn, small_recipe):
    other = dataclasses.replace(small_recipe, seed=7)
    with pytest.raises(RunError, match="holds a run with another recipe"):
        train_run(trained_run.folder, drawn, other)


def test_other_data_under_the_same_name_is_refused(drawn, small_recipe, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "data")
    train_run(tmp_path / "run", folder, small_recipe)
    manifest = Manifest.load(str(folder / "manifest.parquet"))
    manifest.take(np.arange(len(manifest))[::-1].copy()).save(str(folder / "manifest.parquet"))
    with pytest.raises(RunError, match="holds a run with another manifest"):
        train_run(tmp_path / "run", folder, small_recipe)


def test_a_loss_that_is_not_finite_is_stopped_before_the_step(drawn, small_recipe, tmp_path):
    manifest = Manifest.load(str(drawn / "manifest.parquet"))
    taxonomy = Taxonomy.load(drawn / "taxonomy.json")
    trainer = Trainer(small_recipe, manifest=manifest, taxonomy=taxonomy, run=Run(tmp_path), num_workers=0)
    with torch.no_grad():
        trainer._model.category_head.weight.fill_(float("nan"))
    before = trainer._model.brand_head.weight.clone()
    with pytest.raises(LossNotFinite, match=r"loss nan at step 0 on manifest rows \[.*\.jpg"):
        trainer.run()
    assert torch.equal(trainer._model.brand_head.weight, before)


def test_no_run_and_an_unfinished_run_say_so(tmp_path, drawn, small_recipe):
    with pytest.raises(RunError, match="is not a training run"):
        Run(tmp_path).load_model()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="has not finished"):
        Run(tmp_path).load_model()
