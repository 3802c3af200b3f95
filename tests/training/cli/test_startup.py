import os
import signal
import subprocess
import sys

from training.cli.startup import request_stop_on_signals
from vision.runtime.cli import EXIT_INTERRUPTED


def test_signals_are_noted_instead_of_ending_the_process():
    with request_stop_on_signals() as stop_requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested.wait(10)


def test_a_signal_before_torch_is_loaded_exits_75_and_the_same_command_resumes(synthetic_dataset, recipe, tmp_path):
    command = [
        *(sys.executable, "-m", "listing_vision", "train", str(synthetic_dataset / "manifest.parquet")),
        *("--recipe", recipe, "--run", str(tmp_path / "run")),
        *("--set", "epochs=2", "--set", "stages.0.trains=heads_on_features"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=240)[1]
    assert "2 epochs of test_efficientnet" in first
    assert process.returncode == EXIT_INTERRUPTED, said
    assert "repeat the command to resume" in said
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert subprocess.run(command).returncode == 0
    assert (tmp_path / "run" / "weights.safetensors").exists()
