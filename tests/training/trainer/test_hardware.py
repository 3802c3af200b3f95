import platform
import resource
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from training.errors import RunError
from training.trainer.hardware import Machine


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decode_on": "gpu"}, "decode_on = 'gpu': use one of 'loader', 'device'"),
        ({"augment_on": "gpu"}, "augment_on = 'gpu': use one of 'auto', 'loader', 'device'"),
        ({"decode_on": "device", "augment_on": "loader"}, "augment_on = 'loader': the loader has no pixels"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(RunError, match=message):
        Machine(**values)


@pytest.mark.parametrize(
    ("values", "on_cpu", "on_gpu"),
    [
        ({"num_workers": 11}, False, True),
        ({"num_workers": 12}, False, False),
        ({"augment_on": "loader"}, False, False),
        ({"augment_on": "device"}, True, True),
        ({"decode_on": "device"}, True, True),
        ({"decode_on": "device", "augment_on": "device"}, True, True),
    ],
)
def test_photos_are_augmented_where_it_is_faster_and_where_they_are_decoded(values, on_cpu, on_gpu):
    machine = Machine(**values)
    assert machine.augments_on_device(torch.device("cpu")) == on_cpu
    assert machine.augments_on_device(torch.device("cuda")) == on_gpu


RUN = """
import gc, sys
from pathlib import Path
import numpy as np
from training.recipe import Recipe, Stage
from training.run import Run
from training.trainer.hardware import Machine
from training.trainer.training_loop import TrainingLoop
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

resident_pages = []
append = Run.append_metrics

def measured(run, record):
    gc.collect()
    resident_pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
    append(run, record)

Run.append_metrics = measured
recipe = Recipe(
    stages=(Stage(photo_px=32, epochs=50),), backbone="test_efficientnet", weights="none", input_px=32, batch_size=32
)
source = Path(sys.argv[2])
train = Manifest.load(str(source / "manifest.parquet")).select_split("train").take(np.arange(32)).table.to_pylist()
val = [{**row, "split": "val"} for row in train[:4]]
TrainingLoop(
    recipe,
    manifest_url="",
    manifest=Manifest.from_rows(train + val, str(source)),
    taxonomy=Taxonomy.load(source / "taxonomy.json"),
    run=Run(Path(sys.argv[1])),
    machine=Machine(num_workers=0),
).run()
assert len(resident_pages) == 50
print(np.median(np.diff(resident_pages[20:])))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_fifty_epochs_do_not_grow(synthetic_dataset, tmp_path):
    """A leak of a batch or a graph would be megabytes in each epoch; the allocator may take some once."""
    command = [sys.executable, "-c", RUN, str(tmp_path / "run"), str(synthetic_dataset)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages_per_epoch = float(done.stdout.splitlines()[-1])
    assert pages_per_epoch * resource.getpagesize() < 100_000
