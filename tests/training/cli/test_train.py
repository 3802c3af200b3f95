"""`train` and `distill`, called in this process on a tiny network."""

import pytest
import typer
from typer.testing import CliRunner

from training.cli.train import distill, train_app
from training.errors import RecipeError
from training.run import Run


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
