import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.conftest import ROOT
from tests.support.helpers import create_trainer, train_run
from tests.support.waiting import wait_until
from training.errors import LossNotFinite, RunError
from training.recipe import Recipe, Stage, load_recipe
from training.run import Run
from training.trainer.distributed import Ranks
from training.trainer.loading.dataloader import create_evaluation_batches
from training.trainer.train_step import TrainStep
from training.trainer.validation import Validation
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy


def test_a_run_holds_what_it_was_made_of(trained_run, small_recipe):
    assert trained_run.recipe == small_recipe
    records = trained_run.metrics()
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["photo_px"] for record in records] == [48, 64, 64]
    assert all(0 <= record["val_leaf_top1"] <= 1 for record in records)
    assert all(record["seconds"] > record["val_seconds"] > 0 for record in records)
    assert records[-1]["loss"] < records[0]["loss"]
    assert trained_run.read_settings()["versions"]["torch"] == torch.__version__


def weights(run):
    return safetensors.torch.load_file(run.weights_path)


RECIPE_TOML = """
input_px = 64
backbone = "test_efficientnet"
weights = "none"
batch_size = 16
checkpoint_every_steps = 3
[[stages]]
photo_px = 48
epochs = 1
[[stages]]
photo_px = 64
epochs = 5
"""


def test_a_run_killed_and_one_terminated_end_bit_equal_to_an_unbroken_one(synthetic_dataset, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE_TOML)
    folder = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "listing_vision", "train", str(synthetic_dataset / "manifest.parquet")),
        *("--recipe", str(tmp_path / "recipe.toml"), "--run", str(folder), "--workers", "0"),
    ]

    def start_until_checkpoint(step):
        process = subprocess.Popen(command, cwd=ROOT)
        path = folder / "checkpoints" / f"step-{step:08d}"
        wait_until(lambda: path.exists() or process.poll() is not None, timeout_s=60)
        return process

    killed = start_until_checkpoint(3)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (folder / "weights.safetensors").exists()

    terminated = start_until_checkpoint(6)
    terminated.send_signal(signal.SIGTERM)
    assert terminated.wait(120) == 75
    assert not (folder / "weights.safetensors").exists()

    assert subprocess.run(command, cwd=ROOT).returncode == 0
    unbroken_run = train_run(tmp_path / "unbroken", synthetic_dataset, load_recipe(str(tmp_path / "recipe.toml")))
    resumed, unbroken = weights(Run(folder)), weights(unbroken_run)
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)

    def without_times(run):
        return [
            {k: v for k, v in r.items() if k not in ("seconds", "val_seconds", "photos_per_s", "data_wait_share")}
            for r in run.metrics()
        ]

    assert without_times(Run(folder)) == without_times(unbroken_run)


def test_a_finished_run_repeated_changes_nothing(trained_run, synthetic_dataset, small_recipe):
    before = trained_run.weights_path.read_bytes()
    train_run(trained_run.folder, synthetic_dataset, small_recipe)
    assert trained_run.weights_path.read_bytes() == before


def test_a_finished_run_of_an_earlier_version_is_repeated_although_recipes_have_grown(
    trained_run, synthetic_dataset, small_recipe, tmp_path
):
    folder = shutil.copytree(trained_run.folder, tmp_path / "run")
    settings = json.loads((folder / "run.json").read_text())
    del settings["recipe"]["lora_rank"]
    (folder / "run.json").write_text(json.dumps(settings))
    before = (folder / "weights.safetensors").read_bytes()
    train_run(folder, synthetic_dataset, small_recipe)
    assert (folder / "weights.safetensors").read_bytes() == before
    (folder / "weights.safetensors").unlink()
    with pytest.raises(RunError, match=r"another recipe .*recipe\.lora_rank: null there"):
        train_run(folder, synthetic_dataset, small_recipe)


def test_another_recipe_in_the_same_folder_is_refused(trained_run, synthetic_dataset, small_recipe):
    other = dataclasses.replace(small_recipe, seed=7)
    with pytest.raises(RunError, match="holds a run with another recipe"):
        train_run(trained_run.folder, synthetic_dataset, other)


def test_other_data_under_the_same_name_is_refused(synthetic_dataset, small_recipe, tmp_path):
    folder = shutil.copytree(synthetic_dataset, tmp_path / "data")
    train_run(tmp_path / "run", folder, small_recipe)
    manifest = Manifest.load(str(folder / "manifest.parquet"))
    manifest.take(np.arange(len(manifest))[::-1].copy()).save(str(folder / "manifest.parquet"))
    with pytest.raises(RunError, match="holds a run with another manifest"):
        train_run(tmp_path / "run", folder, small_recipe)


def test_a_loss_that_is_not_finite_changes_no_weight(synthetic_dataset, small_recipe, tmp_path):
    trainer = create_trainer(tmp_path, synthetic_dataset, small_recipe)
    model = trainer.train_step.model
    with torch.no_grad():
        model.category_head.weight.fill_(float("nan"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(LossNotFinite, match=r"loss nan, gradient norm nan at step 0 on rows \[.*train split \(.*\.jpg"):
        trainer.run()
    assert all(torch.equal(p.nan_to_num(7), before[name].nan_to_num(7)) for name, p in model.named_parameters())


def stop_at_step(trainer, stopped):
    run_step = trainer.train_step.run

    def run(number, *more):
        if number == stopped:
            trainer.stop()
        return run_step(number, *more)

    trainer.train_step.run = run


def test_a_run_of_another_version_is_refused_with_what_differs(synthetic_dataset, small_recipe, tmp_path, monkeypatch):
    trainer = create_trainer(tmp_path, synthetic_dataset, small_recipe)
    stop_at_step(trainer, 0)
    trainer.run()
    assert trainer.interrupted
    monkeypatch.setattr("vision.__version__", "9.9")
    with pytest.raises(RunError, match=r'made by something else \(listing_vision: ".*" there, "9\.9" asked\)'):
        train_run(tmp_path, synthetic_dataset, small_recipe)


def test_micro_batches_learn_what_whole_batches_learn_but_for_batch_norm(synthetic_dataset, tmp_path):
    """A transformer has no batch norm, so cutting the batch must change nothing but rounding."""
    recipe = Recipe(
        stages=(Stage(photo_px=32, epochs=1),),
        backbone="test_vit",
        weights="none",
        input_px=32,
        batch_size=16,
        dropout=0.0,
        ema_decay=0.0,
    )
    whole = train_run(tmp_path / "whole", synthetic_dataset, recipe).metrics()[-1]["loss"]
    cut = train_run(tmp_path / "cut", synthetic_dataset, recipe, micro_batch=5).metrics()[-1]["loss"]
    assert cut == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup_alpha": 0.2, "cutmix_alpha": 1.0},
        {"long_tail": "logit_adjustment", "balanced_sampling": 0.5},
        {"activation_checkpointing": True, "layer_decay": 0.7, "drop_path": 0.1},
        {"schedule": "poly"},
    ],
)
def test_every_ingredient_trains(synthetic_dataset, small_recipe, tmp_path, changes):
    recipe = dataclasses.replace(small_recipe, stages=(Stage(photo_px=48, epochs=2),), **changes)
    records = train_run(tmp_path, synthetic_dataset, recipe).metrics()
    assert np.isfinite(records[-1]["loss"])
    assert records[-1]["loss"] < records[0]["loss"] + 0.5


def test_augmentation_on_the_device_trains(synthetic_dataset, small_recipe, tmp_path):
    recipe = dataclasses.replace(small_recipe, stages=(Stage(photo_px=48, epochs=1),))
    assert np.isfinite(train_run(tmp_path, synthetic_dataset, recipe, augment_on="device").metrics()[-1]["loss"])


def test_decoding_on_the_device_trains_and_goes_on_as_if_unbroken(synthetic_dataset, small_recipe, tmp_path):
    whole = train_run(tmp_path / "whole", synthetic_dataset, small_recipe, decode_on="device")
    records = whole.metrics()
    assert records[-1]["loss"] < records[0]["loss"]
    broken = create_trainer(tmp_path / "broken", synthetic_dataset, small_recipe, decode_on="device")
    stop_at_step(broken, 3)
    broken.run()
    assert broken.interrupted
    resumed = weights(train_run(tmp_path / "broken", synthetic_dataset, small_recipe, decode_on="device"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights(whole).items())


def test_a_linear_probe_needs_no_decoding_on_the_device(synthetic_dataset, tmp_path):
    stages = (Stage(photo_px=48, epochs=1, trains="heads_on_features"), Stage(photo_px=48, epochs=1))
    recipe = Recipe(stages=stages, backbone="test_efficientnet", weights="none", input_px=64, batch_size=16)
    assert np.isfinite(train_run(tmp_path, synthetic_dataset, recipe, decode_on="device").metrics()[-1]["loss"])


def test_bf16_trains(synthetic_dataset, small_recipe, tmp_path):
    recipe = dataclasses.replace(small_recipe, stages=(Stage(photo_px=48, epochs=1),))
    assert np.isfinite(train_run(tmp_path, synthetic_dataset, recipe, precision="bf16").metrics()[-1]["loss"])


def test_a_linear_probe_decodes_each_photo_once(synthetic_dataset, tmp_path, monkeypatch):
    recipe = Recipe(
        stages=(Stage(photo_px=64, epochs=20, trains="heads_on_features"),),
        input_px=64,
        batch_size=16,
        head_learning_rate=1e-2,
    )
    records = train_run(tmp_path / "run", synthetic_dataset, recipe).metrics()
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert all(0 <= record["val_leaf_top1"] <= 1 for record in records)
    assert len(list((tmp_path / "run" / "features").glob("*"))) == 2  # of train and of val
    before = Run(tmp_path / "run").load_model().backbone.state_dict()
    fresh = create_trainer(tmp_path / "other", synthetic_dataset, recipe).train_step.model.backbone.state_dict()
    assert all(torch.equal(before[name], fresh[name]) for name in fresh)


def test_val_judges_a_linear_probe_by_features_as_by_photos(synthetic_dataset, tmp_path):
    recipe = Recipe(
        stages=(Stage(photo_px=48, epochs=2, trains="heads_on_features"),),
        input_px=64,
        backbone="test_efficientnet",
        weights="none",
        batch_size=16,
        head_learning_rate=1e-2,
    )
    trainer = create_trainer(tmp_path, synthetic_dataset, recipe)
    trainer.run()
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("val")
    taxonomy = Taxonomy.load(synthetic_dataset / "taxonomy.json")
    val = Validation(manifest, taxonomy, input_px=64, num_workers=0, ranks=Ranks(device=torch.device("cpu")))
    last = Run(tmp_path).metrics()[-1]
    assert val.evaluate(trainer.train_step).items() <= last.items()


PROBE = (Stage(photo_px=48, epochs=2, trains="heads_on_features"), Stage(photo_px=48, epochs=1))


@pytest.mark.parametrize(
    ("stages", "epoch"), [(None, 1), (None, 3), (PROBE, 2)], ids=["first epoch", "last epoch", "last epoch on features"]
)
def test_a_run_stopped_while_val_is_evaluated_ends_equal_to_an_unbroken_one(
    synthetic_dataset, small_recipe, tmp_path, monkeypatch, stages, epoch
):
    create = create_evaluation_batches
    monkeypatch.setattr(
        "training.trainer.validation.create_evaluation_batches", lambda *a, **kw: create(*a, **{**kw, "batch_size": 8})
    )
    recipe = dataclasses.replace(small_recipe, stages=stages or small_recipe.stages)
    unbroken = train_run(tmp_path / "unbroken", synthetic_dataset, recipe)
    end_of_epoch = unbroken.metrics()[epoch - 1]["step"]

    stopped = create_trainer(tmp_path / "run", synthetic_dataset, recipe)
    evaluate, infer = stopped.validation.evaluate, TrainStep.infer_averaged
    epochs, batches = [], []

    def stop_in_epoch(train_step, *arguments, **options):
        epochs.append(len(epochs) + 1)
        if epochs[-1] == epoch and stages:  # evaluated in one batch
            stopped.stop()
        return evaluate(train_step, *arguments, **options)

    def stop_at_second_batch(*arguments, **options):
        if epochs[-1] == epoch:
            batches.append(epoch)
            if len(batches) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return infer(*arguments, **options)

    monkeypatch.setattr(stopped.validation, "evaluate", stop_in_epoch)
    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "infer_averaged", stop_at_second_batch)
        stopped.run()
    assert stopped.interrupted
    assert len(batches) == (0 if stages else 2)
    assert [record["epoch"] for record in Run(tmp_path / "run").metrics()] == list(range(1, epoch))
    assert max(path.name for path in Run(tmp_path / "run").checkpoints.iterdir()) == f"step-{end_of_epoch:08d}"

    resumed = train_run(tmp_path / "run", synthetic_dataset, recipe)
    one, other = weights(resumed), weights(unbroken)
    assert all(torch.equal(one[name], other[name]) for name in other)
    times = ("seconds", "val_seconds", "photos_per_s", "data_wait_share")
    records = [[{k: v for k, v in r.items() if k not in times} for r in run.metrics()] for run in (resumed, unbroken)]
    assert records[0] == records[1]


class ScriptedValidation:
    """Gives each epoch the next of the scores."""

    def __init__(self, validation, scores):
        self.manifest, self._scores = validation.manifest, iter(scores)

    def evaluate(self, *_, **__):
        return {"val_leaf_top1": next(self._scores), "val_brand_top1": None, "val_bad_photos": 0}


def test_a_run_ends_early_with_the_best_weights_also_when_it_was_interrupted(synthetic_dataset, small_recipe, tmp_path):
    recipe = dataclasses.replace(
        small_recipe,
        stages=(Stage(photo_px=48, epochs=6),),
        final_weights="best",
        early_stopping_epochs=2,
        checkpoint_every_steps=1000,
    )
    scores = [0.1, 0.5, 0.2, 0.3, 0.9]
    whole = create_trainer(tmp_path / "whole", synthetic_dataset, recipe)
    whole.validation = ScriptedValidation(whole.validation, scores)
    whole.run()
    assert [record["val_leaf_top1"] for record in Run(tmp_path / "whole").metrics()] == [0.1, 0.5, 0.2, 0.3]

    broken = create_trainer(tmp_path / "broken", synthetic_dataset, recipe)
    broken.validation = ScriptedValidation(broken.validation, scores)
    steps_per_epoch = Run(tmp_path / "whole").metrics()[0]["step"]
    stop_at_step(broken, 2 * steps_per_epoch + 1)
    broken.run()
    assert broken.interrupted
    resumed = create_trainer(tmp_path / "broken", synthetic_dataset, recipe)
    resumed.validation = ScriptedValidation(resumed.validation, scores[2:])
    resumed.run()

    runs = [Run(tmp_path / name) for name in ("whole", "broken")]
    for kind in ("last", "best", None):
        one, other = (run.load_model(kind).state_dict() for run in runs)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    best, last = (runs[0].load_model(kind).state_dict() for kind in ("best", "last"))
    assert any(not torch.equal(tensor, last[name]) for name, tensor in best.items())
    assert all(torch.equal(tensor, best[name]) for name, tensor in runs[0].load_model().state_dict().items())
    before = runs[0].weights_path.stat()
    train_run(tmp_path / "whole", synthetic_dataset, recipe)
    assert runs[0].weights_path.stat() == before


@pytest.mark.parametrize(("share", "survives"), [(0.5, True), (0.01, False)])
def test_bad_photos_are_counted_and_stop_the_run_above_the_share(
    synthetic_dataset, small_recipe, tmp_path, share, survives
):
    folder = shutil.copytree(synthetic_dataset, tmp_path / "data")
    manifest = Manifest.load(str(folder / "manifest.parquet")).select_split("train")
    for row in (2, 5, 9):
        Path(manifest.get_photo_url(row)).write_bytes(b"not a photo")
    trainer = create_trainer(tmp_path / "run", folder, small_recipe, max_bad_photo_share=share)
    if survives:
        trainer.run()
        assert Run(tmp_path / "run").metrics()[-1]["bad_photos"] == 3
    else:
        with pytest.raises(RunError, match=r"of \d+ training photos cannot be used, more than the share of 0\.01"):
            trainer.run()
    named = [json.loads(line)["row"] for line in (tmp_path / "run" / "bad_photos.jsonl").read_text().splitlines()]
    assert set(named) <= {3, 6, 10}
    assert len(named) == len(set(named)) >= (3 if survives else 1)


def test_no_run_and_an_unfinished_run_say_so(tmp_path, synthetic_dataset, small_recipe):
    with pytest.raises(RunError, match="is not a training run"):
        Run(tmp_path).load_model()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="has not finished"):
        Run(tmp_path).load_model()
