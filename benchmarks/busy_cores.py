"""Measure two trainings that share two cores against one that has them to itself.

    python -m benchmarks.busy_cores [--rounds 3]

Each training is the `train` verb in a process pinned to the same two cores, with its own data loader processes. One
alone with the thread policy of vision/runtime/cpus.py, one alone without it (OpenMP's threads spin as by default), and
two at once with it, in turns. Epochs count once every training of the turn has its first one, the warm-up, behind it.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, create_parser, write_result
from benchmarks.training_speed import prepare_manifest
from training.run import Run

NUM_PHOTOS = 256
NUM_EPOCHS = 3
"""Measured epochs of each training."""
RECIPE = """
backbone = "tf_efficientnet_lite0"
weights = "none"
input_px = 160
checkpoint_every_steps = 1000000
[[stages]]
photo_px = 160
epochs = 1000
"""
# libgomp's own default where no policy is set.
DEFAULT_SPINNING = {"GOMP_SPINCOUNT": "300000"}


def start(folder: Path, manifest: Path, cores: set[int], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with (folder / "train.log").open("wb") as log:
        return subprocess.Popen(
            [
                *("taskset", "--cpu-list", ",".join(map(str, sorted(cores)))),
                *(sys.executable, "-m", "listing_vision", "train", str(manifest)),
                *("--recipe", str(recipe), "--run", str(folder / "run")),
            ],
            cwd=ROOT,
            env=inherited | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def measure(num_trainings: int, manifest: Path, cores: set[int], environment: dict[str, str]) -> list[float]:
    """photos/s of each of so many trainings at once, in median over its epochs."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(index) for index in range(num_trainings)]
        for folder in folders:
            folder.mkdir()
        started = [start(folder, manifest, cores, environment) for folder in folders]
        try:
            return wait_for_epochs(started, folders)
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for_epochs(started: "list[subprocess.Popen[bytes]]", folders: list[Path]) -> list[float]:
    runs = [Run(folder / "run") for folder in folders]
    num_before: list[int] = []
    while True:
        for process, folder in zip(started, folders, strict=True):
            if process.poll() is not None:
                raise SystemExit((folder / "train.log").read_text())
        records: list[list[dict[str, Any]]] = [run.metrics() for run in runs]
        if not num_before and all(records):
            # The epoch under way began before the others were warm.
            num_before = [len(epochs) + 1 for epochs in records]
        if num_before:
            measured = [epochs[before:] for epochs, before in zip(records, num_before, strict=True)]
            if all(len(epochs) >= NUM_EPOCHS for epochs in measured):
                return [statistics.median(epoch["photos_per_s"] for epoch in epochs) for epochs in measured]
        time.sleep(1)


def main() -> None:
    asked = create_parser(__doc__, rounds=3).parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    manifest = prepare_manifest(NUM_PHOTOS, 16)
    turns: dict[str, tuple[int, dict[str, str]]] = {
        "alone": (1, {}),
        "alone, spinning": (1, DEFAULT_SPINNING),
        "two at once": (2, {}),
    }
    rounds: dict[str, list[list[float]]] = {name: [] for name in turns}
    for _ in range(asked.rounds):
        for name, (num_trainings, environment) in turns.items():
            rounds[name].append(measure(num_trainings, manifest, cores, environment))
            print(f"{name:16}", *(f"{speed:6.1f} photos/s" for speed in rounds[name][-1]), flush=True)
    alone = [speed for (speed,) in rounds["alone"]]
    metrics = {
        "share_of_solo": statistics.median(
            min(both) / solo for both, solo in zip(rounds["two at once"], alone, strict=True)
        ),
        "solo_ratio_to_before": statistics.median(
            solo / before for (before,), solo in zip(rounds["alone, spinning"], alone, strict=True)
        ),
        "photos_per_s_solo": statistics.median(alone),
    }
    write_result("busy_cores", metrics, {"cores": len(cores), "photos": NUM_PHOTOS, "rounds": rounds})


if __name__ == "__main__":
    main()
