"""Two real processes over gloo, started by torchrun as a user starts them."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import ROOT
from tests.support.waiting import wait_until
from training.run import Run

RECIPE = """
input_px = 64
backbone = "test_efficientnet"
weights = "none"
batch_size = 16
checkpoint_every_steps = 2
[[stages]]
photo_px = 48
epochs = 1
trains = "heads"
[[stages]]
photo_px = 48
epochs = 7
"""


class Job:
    """A training command that can be started again and again, alone or on ranks."""

    def __init__(self, folder: Path, synthetic_dataset: Path, recipe: str = RECIPE) -> None:
        folder.mkdir(exist_ok=True)
        self.run = Run(folder / "run")
        self._log = folder / "log.txt"
        (folder / "recipe.toml").write_text(recipe)
        self._words = [str(synthetic_dataset / "manifest.parquet"), "--recipe", str(folder / "recipe.toml")]
        self._words += ["--run-folder", str(self.run.folder), "--workers", "0"]

    def start(self, ranks: int) -> "subprocess.Popen[bytes]":
        launcher = ["-m", "training.launch", "--nproc-per-node", str(ranks)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        launcher += ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *(launcher if ranks > 1 else []), "-m", "training", *self._words],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """What the last start printed."""
        return self._log.read_text()

    def finish(self, ranks: int) -> None:
        assert self.start(ranks).wait() == 0, self.output()

    def wait_for_checkpoint(self, process: "subprocess.Popen[bytes]", step: int) -> None:
        def is_saved() -> bool:
            assert process.poll() is None, self.output()
            return bool(self.list_saved_steps()) and self.list_saved_steps()[-1] >= step

        wait_until(is_saved, timeout_s=120)

    def list_saved_steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.run.checkpoints.glob("step-*"))

    def weights(self) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self.run.weights_path)


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """Kill the launcher; its ranks are sessions of their own and must not outlive it."""
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(ranks) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), timeout_s=10)


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory, synthetic_dataset):
    job = Job(tmp_path_factory.mktemp("unbroken"), synthetic_dataset)
    job.finish(2)
    return job


def assert_equal(one: Job, other: Job) -> None:
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_two_ranks_killed_and_stopped_by_signals_end_bit_equal_to_an_unbroken_run(
    uninterrupted_run, synthetic_dataset, tmp_path
):
    job = Job(tmp_path, synthetic_dataset)
    pause = random.Random(3)
    for step in (2, 4):
        process = job.start(2)
        job.wait_for_checkpoint(process, step)
        with pytest.raises(subprocess.TimeoutExpired):  # killed at a random moment between two checkpoints
            process.wait(0.2 * pause.random())
        kill_all(process)
        assert not job.run.finished
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = job.start(2)
        job.wait_for_checkpoint(process, job.list_saved_steps()[-1] + 2)
        process.send_signal(number)
        assert process.wait() == 75, job.output()
        assert "repeat the command to resume" in job.output()
        assert not job.run.finished
    job.finish(2)
    assert_equal(job, uninterrupted_run)
    losses = [[record["loss"] for record in run.metrics()] for run in (job.run, uninterrupted_run.run)]
    assert losses[0] == losses[1]


def test_another_number_of_ranks_goes_on_from_the_same_step(uninterrupted_run, synthetic_dataset, tmp_path):
    job = Job(tmp_path, synthetic_dataset)
    process = job.start(1)
    job.wait_for_checkpoint(process, 4)
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 75
    stopped_at = job.list_saved_steps()[-1]
    job.finish(2)
    assert f"step-{stopped_at:08d}" in job.output()
    assert [record["step"] for record in job.run.metrics()] == [
        record["step"] for record in uninterrupted_run.run.metrics()
    ]
    assert all(torch.isfinite(tensor).all() for tensor in job.weights().values())


WITHOUT_BATCH_NORM = """
backbone = "test_vit"
weights = "none"
input_px = 32
batch_size = 16
dropout = 0.0
[[stages]]
photo_px = 32
epochs = 1
"""


PROBE = WITHOUT_BATCH_NORM + 'trains = "heads_on_features"\n'


@pytest.mark.parametrize("recipe", [WITHOUT_BATCH_NORM, PROBE], ids=["all", "probe"])
def test_two_ranks_learn_what_one_learns(synthetic_dataset, tmp_path, recipe):
    """No batch norm and no dropout: the ranks' gradients must add up to those of the whole batch."""
    alone, together = (Job(tmp_path / name, synthetic_dataset, recipe) for name in ("alone", "together"))
    alone.finish(1)
    together.finish(2)
    assert together.run.metrics()[-1]["loss"] == pytest.approx(alone.run.metrics()[-1]["loss"], rel=1e-5)
    one, two = alone.weights(), together.weights()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)


def test_one_rank_alone_writes_metrics_and_all_ranks_judge_val(uninterrupted_run):
    records = [json.loads(line) for line in uninterrupted_run.run.metrics_path.read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert 0 <= records[-1]["val_leaf_top1"] <= 1
