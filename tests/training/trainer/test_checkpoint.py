import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from training.errors import RunError
from training.trainer.checkpoint import Checkpoint, find_latest_checkpoint, load_checkpoint, save_checkpoint


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, tensors={"model.w": torch.full((3,), float(step))}, state={"note": step})


def test_round_trip_and_the_two_newest_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]
    loaded = load_checkpoint(find_latest_checkpoint(tmp_path))
    assert (loaded.step, loaded.state) == (3, {"note": 3})
    assert torch.equal(loaded.tensors["model.w"], torch.full((3,), 3.0))


def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path):
    for step in (1, 2):
        newest = save_checkpoint(tmp_path, checkpoint(step))
    damaged = newest / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert find_latest_checkpoint(tmp_path).name == "step-00000001"
    with pytest.raises(RunError, match="is damaged"):
        load_checkpoint(newest)


@pytest.mark.parametrize("name", ["state.json", "state.sha256", "tensors.safetensors"])
def test_a_half_deleted_one_is_passed_over_too(tmp_path, name):
    for step in (1, 2):
        newest = save_checkpoint(tmp_path, checkpoint(step))
    (newest / name).unlink()
    assert find_latest_checkpoint(tmp_path).name == "step-00000001"


def test_a_changed_state_is_damage(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(1)) / "state.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 7'))
    assert find_latest_checkpoint(tmp_path) is None


def test_what_a_crash_left_half_written_is_ignored(tmp_path):
    (tmp_path / ".tmp-00000009").mkdir()
    assert find_latest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, checkpoint(9))
    assert find_latest_checkpoint(tmp_path).name == "step-00000009"


def test_as_many_as_asked_for_are_kept(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-0000000{n}" for n in (3, 4, 5)]


@pytest.mark.parametrize("limit_bytes", [0, 60, 400_000])
def test_a_full_disk_leaves_the_last_good_one_and_says_so(tmp_path, limit_bytes):
    """The kernel refuses to let a file grow, as a full disk does, at the first byte and in the middle."""
    save_checkpoint(tmp_path, checkpoint(1))
    program = f"""
import resource, signal, torch
from pathlib import Path
from training.trainer.checkpoint import Checkpoint, save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))
save_checkpoint(Path({str(tmp_path)!r}), Checkpoint(step=2, tensors={{"model.w": torch.zeros(10**6)}}, state={{}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "the checkpoint of step 2 cannot be written" in done.stderr
    assert "the last good one is" in done.stderr
    assert "step-00000001" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(find_latest_checkpoint(tmp_path)).step == 1
