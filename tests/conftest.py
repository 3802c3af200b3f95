"""Real data, a really trained small model, and a real Triton behind a real gateway, each made once a session."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# Thread pools that spin on two cores starve each other; answers do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("checks", deadline=None, derandomize=True)
settings.load_profile("checks")

if TYPE_CHECKING:
    from tests.support.serving_process import ServeProcess

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def grocery_source() -> Path:
    """The published Grocery Store data set."""
    data = Path(os.environ.get("LISTING_VISION_DATA") or ROOT.parent / "shared" / "data")
    source = data / "grocery-store"
    if not (source / "dataset" / "classes.csv").is_file():
        pytest.skip(f"the Grocery Store data set is not at {source}; set LISTING_VISION_DATA to the folder above it")
    return source


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory):
    """Folder of a small drawn data set: manifest.parquet and taxonomy.json."""
    from training.data.synthetic import create_synthetic_dataset

    folder = tmp_path_factory.mktemp("drawn")
    manifest, taxonomy = create_synthetic_dataset(folder, listings={"train": 40, "val": 30, "test": 10}, seed=1)
    manifest.save(str(folder / "manifest.parquet"))
    taxonomy.save(folder / "taxonomy.json")
    return folder


@pytest.fixture(scope="session")
def small_recipe():
    from training.recipe import Recipe, Stage

    return Recipe(
        stages=(Stage(photo_px=48, epochs=1), Stage(photo_px=64, epochs=2)),
        input_px=64,
        backbone="test_efficientnet",
        weights="none",
        # High rates: after these few steps predictions differ between photos.
        head_learning_rate=1e-2,
        backbone_learning_rate=5e-3,
        batch_size=16,
        checkpoint_every_steps=3,
    )


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, synthetic_dataset, small_recipe):
    """A finished run of a few steps."""
    from tests.support.helpers import train_run

    return train_run(tmp_path_factory.mktemp("run"), synthetic_dataset, small_recipe)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, trained_run):
    from training.export.export import export_bundle

    return export_bundle(trained_run, tmp_path_factory.mktemp("bundles") / "small", model_name="small")


@pytest.fixture(scope="session")
def pt2_bundle(trained_run, tmp_path_factory):
    """The small bundle with a model.pt2, which takes half a minute to compile."""
    if not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("model.pt2 needs a C++ compiler; install g++ or name one in CXX")
    from training.export.export import export_bundle

    return export_bundle(trained_run, tmp_path_factory.mktemp("bundles") / "pt2", model_name="small", pt2=True)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory, synthetic_dataset, small_recipe):
    """A bundle with other weights."""
    from tests.support.helpers import train_run
    from training.export.export import export_bundle

    run = train_run(tmp_path_factory.mktemp("other"), synthetic_dataset, replace(small_recipe, seed=7))
    return export_bundle(run, tmp_path_factory.mktemp("bundles") / "other", model_name="other")


@pytest.fixture(scope="session")
def start_serving():
    """Starts the real console script on a free port; whatever a test leaves running is stopped."""
    from tests.support.serving_process import start_serve

    started: list[ServeProcess] = []

    def start(bundle_folder: Path, log_path: Path, *options: str) -> "ServeProcess":
        started.append(start_serve(bundle_folder, log_path, *options))
        return started[-1]

    yield start
    left = [served for served in started if served.process.poll() is None]
    for served in left:  # all of them first: each takes seconds to drain
        served.process.terminate()
    for served in left:
        served.process.wait(60)


@pytest.fixture(scope="session")
def triton_installation():
    from serving.errors import TritonUnsupported
    from serving.triton.install import find_triton

    try:
        return find_triton()
    except TritonUnsupported as error:  # a machine that could have it and has not fails
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def running_triton(bundle, triton_installation):
    """A Triton that serves the small bundle as `serve` has it served; tests leave it healthy."""
    from serving.triton.process import LocalTriton

    triton = LocalTriton(bundle, triton_installation)
    triton.start()
    try:
        triton.wait_until_listening()
        yield triton
    finally:
        triton.stop()


@pytest.fixture(scope="session")
def served(bundle, start_serving, triton_installation, tmp_path_factory) -> "Iterator[ServeProcess]":
    """The small bundle behind a real Triton and a real gateway."""
    return start_serving(bundle.folder, tmp_path_factory.mktemp("served") / "serve.log")
