import shutil

import pytest

from training.errors import RunError
from training.run import Run, find_runs, list_differences


def test_what_differs_is_named_with_both_values():
    known = {"recipe": {"seed": 0, "dropout": 0.2}, "taxonomy_sha256": "aa"}
    asked = {"recipe": {"seed": 7, "dropout": 0.2}, "taxonomy_sha256": "bb"}
    assert list_differences(known, asked) == [
        "recipe.seed: 0 there, 7 asked",
        'taxonomy_sha256: "aa" there, "bb" asked',
    ]
    assert list_differences(known, known) == []


def test_runs_are_found_below_a_folder(trained_run):
    assert trained_run.folder in [run.folder for run in find_runs(trained_run.folder.parent)]


def test_a_folder_without_runs_says_how_to_make_one(tmp_path):
    with pytest.raises(RunError, match=r"no training run in .*listing-vision train"):
        find_runs(tmp_path)


def test_weights_are_as_readable_as_the_rest_of_the_folder(trained_run):
    mode = (trained_run.folder / "run.json").stat().st_mode
    assert {path.stat().st_mode for path in trained_run.folder.glob("weights*.safetensors")} == {mode}


def test_weights_that_are_not_there_are_named(trained_run, tmp_path):
    with pytest.raises(RunError, match="weights 'newest': use one of last, best"):
        trained_run.load_model("newest")
    folder = shutil.copytree(trained_run.folder, tmp_path / "run")
    (folder / "weights_best.safetensors").unlink()
    with pytest.raises(RunError, match=r"weights_best.safetensors is missing: an earlier version"):
        Run(folder).load_model("best")
