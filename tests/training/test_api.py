"""The example of docs/python.md, run as it is printed, and what it cannot show."""

import re
import textwrap
import threading

import pytest

from tests.conftest import ROOT
from tests.support.helpers import encode_image
from training.api import Trainer, evaluate
from training.errors import RecipeError
from training.recipe import Recipe
from vision.errors import TaxonomyError
from vision.images import read_size_px
from vision.manifest import Manifest
from vision.photo_files import read_photo


def extract_example():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?:^ {4}.*\n|^\n)+", text[text.index("    from listing_vision") :], re.MULTILINE)[:1]
    return textwrap.dedent(block)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The current folder has photos of two classes that are easy to tell apart."""
    from PIL import Image

    for name, colour in (("mugs", (200, 40, 40)), ("plates", (40, 40, 200))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(60):
            photo = Image.new("RGB", (64, 64), tuple(c + i // 2 for c in colour))
            (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(encode_image(photo))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_example_runs(photos, capsys):
    names = {}
    exec(compile(extract_example(), "docs/python.md", "exec"), names)
    assert "120 photos" in capsys.readouterr().out
    assert names["run"].metrics()[-1]["val_leaf_top1"] == 1.0
    assert names["report"].figures["photo"]["leaf"]["top1"] == 1.0
    assert names["suggestion"].category_path[-1].name == "mugs"
    assert names["bundle"].info.model_name == "first"


def test_a_finished_run_is_evaluated_too(trained_run, synthetic_dataset):
    found = evaluate(trained_run.folder, synthetic_dataset / "manifest.parquet", split="test")
    assert 0 <= found.figures["photo"]["leaf"]["top1"] <= 1


def test_photos_larger_than_the_renditions_are_named_and_counted(bundle, synthetic_dataset):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("test")
    sizes = [read_size_px(read_photo(manifest.get_photo_url(row))) for row in range(len(manifest))]
    median = sorted(map(min, sizes))[len(sizes) // 2]
    larger = [size for size in sizes if min(size) > median]
    assert larger
    found = evaluate(bundle.folder, synthetic_dataset / "manifest.parquet", rendition_px=median)
    assert found.figures["num_unusable_photos"] == len(larger)
    named = "\n".join(found.predictions.unusable)
    assert all(f"{width}x{height} is no rendition of {median} px" in named for width, height in larger)


def test_arguments_are_checked_before_torch_is_needed(synthetic_dataset, tmp_path):
    manifest = synthetic_dataset / "manifest.parquet"
    with pytest.raises(RecipeError, match="unknown field 'lr'"):
        Trainer(manifest, tmp_path / "run", overrides=["lr=3"])
    (tmp_path / "alone.parquet").write_bytes(manifest.read_bytes())
    with pytest.raises(TaxonomyError, match="no taxonomy at"):
        Trainer(tmp_path / "alone.parquet", tmp_path / "run")


def test_a_request_to_stop_saves_and_the_same_call_resumes(synthetic_dataset, small_recipe: Recipe, tmp_path):
    def create(stop_requested=None):
        manifest = synthetic_dataset / "manifest.parquet"
        machine = {"num_workers": 0}
        return Trainer(manifest, tmp_path / "run", recipe=small_recipe, machine=machine, stop_requested=stop_requested)

    asked = threading.Event()
    asked.set()
    stopped = create(asked)
    assert not stopped.train().finished
    assert stopped.interrupted
    resumed = create()
    assert resumed.train().finished
    assert not resumed.interrupted


def test_a_recipe_for_a_gpu_says_so_where_there_is_none(synthetic_dataset, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    overrides = [
        "backbone=test_efficientnet",
        "weights=none",
        "epochs=2",
        "stages.0.photo_px=32",
        "stages.1.photo_px=32",
    ]
    asked = threading.Event()
    asked.set()
    Trainer(
        synthetic_dataset / "manifest.parquet",
        tmp_path / "run",
        recipe="grocery_gpu",
        overrides=overrides,
        machine={"num_workers": 0},
        stop_requested=asked,
    ).train()
    assert "grocery_gpu is a recipe for a GPU" in caplog.text
    assert "for CPUs: grocery, linear_probe, quick" in caplog.text
