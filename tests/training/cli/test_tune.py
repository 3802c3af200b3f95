"""The verbs of `tune`, called in this process on a tiny network."""

import re

import pytest
from typer.testing import CliRunner

from training.cli.tune import tune_app


@pytest.fixture
def tune(synthetic_dataset, recipe):
    def call(verb, *words, with_photos=True):
        photos = [str(synthetic_dataset / "manifest.parquet")] if with_photos else []
        command = [verb, *photos, "--recipe", recipe, *words]
        done = CliRunner().invoke(tune_app, command, catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    return call


def test_the_learning_rate_is_suggested_as_recipe_lines(tune):
    said = tune("learning-rate", "--steps", "20")
    assert "use head_learning_rate = " in said
    assert said.splitlines()[-1].startswith("this recipe: about ")


def test_the_batch_size_is_suggested_as_a_flag(tune):
    lines = tune("batch-size", "--largest", "4", with_photos=False).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["2", "4"]
    assert lines[2].startswith("use --micro-batch ")
    assert re.search(r"about \d+ minutes? here per 1,000 photos, without loading and val$", lines[3])


def test_the_loader_is_compared_with_the_model_at_each_size(tune):
    first, last = tune("loader", "--photos", "32").splitlines()
    assert first.startswith("32 px: loader ")
    assert last.startswith("this recipe: about ")


def test_a_probe_of_features_has_an_estimate_too(tune, recipe):
    said = tune("loader", "--photos", "32", "--set", "stages.0.trains=heads_on_features").splitlines()
    assert re.fullmatch(r"32 px: features \d+ photos/s, once; heads on them \d+ photos/s, 1 epoch", said[0])
    assert said[1].startswith("this recipe: about ")


@pytest.mark.parametrize("verb", ["learning-rate", "batch-size", "loader"])
def test_a_recipe_for_a_gpu_says_so_where_there_is_none(synthetic_dataset, recipe, monkeypatch, caplog, verb):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with open(recipe, "a") as file:
        file.write('[about]\ndata = ""\nmachine = "gpu"\ntime = ""\nexpected = ""\n')
    words = {"learning-rate": ["--steps", "20"], "batch-size": ["--largest", "2"], "loader": ["--photos", "32"]}[verb]
    photos = [] if verb == "batch-size" else [str(synthetic_dataset / "manifest.parquet")]
    done = CliRunner().invoke(tune_app, [verb, *photos, "--recipe", recipe, *words], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"{recipe} is a recipe for a GPU" in caplog.text
    assert "for CPUs: grocery, linear_probe, quick" in caplog.text
