"""deploy/slurm/train.sh, run with stand-ins for Slurm's programs: no cluster can be had here."""

import os
import re
import signal
import subprocess

import pytest

from scripts.check_deploy import DEPLOY
from tests.support.deploy_settings import parse_options
from tests.support.waiting import wait_until
from training.recipe import load_recipe
from vision.runtime.cli import EXIT_INTERRUPTED

SCRIPT = DEPLOY / "slurm" / "train.sh"
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node-7\\nnode-8\\n'; else echo "$@" >> "$NOTES/requeued"; fi
"""
SRUN = """#!/bin/bash
trap 'exit 75' USR1
printf '%s\\n' "$@" > "$NOTES/started.tmp" && mv "$NOTES/started.tmp" "$NOTES/started"
[ "$ENDS" = at-once ] && exit "$STATUS"
while true; do sleep 0.05; done
"""


def start(tmp_path, **environment):
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ["bash", str(SCRIPT), "/data/manifest.parquet", "convnext_base", "/runs/large"]
    return subprocess.Popen(words, env={**os.environ, **job, **environment, "PATH": path, "NOTES": str(tmp_path)})


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_told_to_stop_saves_and_goes_back_into_the_queue(tmp_path, number):
    process = start(tmp_path, ENDS="by-signal")
    wait_until((tmp_path / "started").exists, timeout_s=60)
    process.send_signal(number)
    assert process.wait(60) == EXIT_INTERRUPTED
    assert (tmp_path / "requeued").read_text() == "requeue 41\n"


@pytest.mark.parametrize("status", [0, 1])
def test_a_job_that_ends_does_not_come_back(tmp_path, status):
    assert start(tmp_path, ENDS="at-once", STATUS=str(status)).wait(60) == status
    assert not (tmp_path / "requeued").exists()


def test_it_is_torchrun_on_the_first_node(tmp_path, monkeypatch):
    from torch.distributed.run import parse_args

    start(tmp_path, ENDS="at-once", STATUS="0").wait(60)
    program, *words = (tmp_path / "started").read_text().splitlines()
    assert (program, words[:2]) == ("python", ["-m", "training.launch"])
    launcher = parse_args(words[2:])
    assert (launcher.nnodes, launcher.rdzv_endpoint, launcher.rdzv_id) == ("2", "node-7:29400", "41")
    assert launcher.training_script == "training"
    options = parse_options(["train", *launcher.training_script_args], {}, monkeypatch)
    assert load_recipe(options["recipe"])
    assert str(options["run"]) == "/runs/large"
    # The signal comes early enough for the ranks to save.
    [before_s] = re.findall(r"--signal=B:USR1@(\d+)", SCRIPT.read_text())
    assert int(before_s) >= launcher.shutdown_timeout + 15
