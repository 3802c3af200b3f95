"""`train` and `distill`, called in this process on a tiny network."""

import os
import signal

import pytest
import typer
from typer.testing import CliRunner

from tests.support.helpers import create_scene, encode_image
from training.cli.train import distill, train_app
from training.errors import RecipeError
from training.run import Run
from vision.images import detect_format


def test_train_says_where_the_weights_are_and_takes_the_seed_from_the_command_line(synthetic_dataset, recipe, tmp_path):
    words = [str(synthetic_dataset / "manifest.parquet"), "--recipe", recipe, "--run", str(tmp_path / "run")]
    done = CliRunner().invoke(train_app, [*words, "--seed", "7", "--workers", "0"], catch_exceptions=False)
    assert done.exit_code == 0
    run = Run(tmp_path / "run")
    assert f"trained: {run.weights_path}; next: listing-vision export {run.folder}" in done.stdout
    assert (run.recipe.seed, run.recipe.backbone) == (7, "test_efficientnet")
    assert run.read_settings()["manifest"] == words[0]


def test_distill_needs_a_recipe_with_a_weight(synthetic_dataset, bundle, recipe, tmp_path):
    with pytest.raises(RecipeError, match="distillation_weight = 0, and a teacher"):
        distill(str(synthetic_dataset / "manifest.parquet"), bundle.folder, tmp_path / "run", recipe=recipe, workers=0)


def test_distill_has_a_micro_batch_as_train_has(synthetic_dataset, bundle, recipe, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "training.trainer.training_loop.choose_micro_batch", lambda machine, *_: asked.append(machine.micro_batch) or 4
    )
    words = [str(synthetic_dataset / "manifest.parquet"), "--teacher", str(bundle.folder), "--recipe", recipe]
    words += ["--set", "distillation_weight=0.5", "--run", str(tmp_path / "run"), "--workers", "0"]
    app = typer.Typer()
    app.command()(distill)
    done = CliRunner().invoke(app, [*words, "--micro-batch", "4"], catch_exceptions=False)
    assert done.exit_code == 0
    assert asked == [4]


def test_a_signal_while_a_folder_is_imported_ends_at_once_and_a_repeat_begins_again(recipe, tmp_path, monkeypatch):
    for name in ("mugs", "plates"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(encode_image(create_scene(32 + i, 40)))
    words = [str(tmp_path / "photos"), "--recipe", recipe, "--run", str(tmp_path / "run"), "--workers", "0"]
    seen = []

    def detect_and_terminate(prefix):
        seen.append(prefix)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return detect_format(prefix)

    with monkeypatch.context() as patched:
        patched.setattr("training.data.folder_importer.detect_format", detect_and_terminate)
        stopped = CliRunner().invoke(train_app, words, catch_exceptions=False)
    assert stopped.exit_code == 75
    assert len(seen) == 3
    assert not list((tmp_path / "run").rglob("*.parquet"))
    assert CliRunner().invoke(train_app, words, catch_exceptions=False).exit_code == 0
    assert Run(tmp_path / "run").finished
