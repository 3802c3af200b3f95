import platform
import resource
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import resource, sys
import torch
from training.trainer.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(30):
    torch.zeros(16 << 20)
before = faults()
for _ in range(20):
    torch.zeros(16 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_memory_used_again_costs_few_page_faults():
    def count(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, cwd=ROOT)
        return int(done.stdout)

    assert count("keep") < count("as it is") / 2


RUN = """
import gc, sys
from pathlib import Path
import numpy as np
from tests.support.helpers import trainer_of
from training.recipe import Recipe, Stage
from training.run import Run

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
trainer_of(Path(sys.argv[1]), Path(sys.argv[2]), recipe).run()
assert len(resident_pages) == 50
print(np.polyfit(range(30), resident_pages[20:], 1)[0])
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_fifty_epochs_do_not_grow(synthetic_dataset, tmp_path):
    """A leak of a batch or a graph an epoch would be megabytes; the slope over the later epochs is looked at."""
    command = [sys.executable, "-c", RUN, str(tmp_path / "run"), str(synthetic_dataset)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages_per_epoch = float(done.stdout.splitlines()[-1])
    assert pages_per_epoch * resource.getpagesize() < 100_000
