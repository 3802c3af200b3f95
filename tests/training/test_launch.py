"""The launcher's exit status, with real ranks."""

import signal
import subprocess
import sys
import threading

import pytest

from tests.conftest import ROOT
from tests.support.waiting import wait_until
from training.launch import launch
from vision.runtime.cli import EXIT_INTERRUPTED

RANKS = """
import os, signal, sys
first = os.environ["RANK"] == "0"
if sys.argv[1] == "one fails":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    if first:
        sys.exit(3)
    signal.pause()
if sys.argv[1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    open(sys.argv[2] + os.environ["RANK"], "w").close()
    signal.pause()
sys.exit(int(sys.argv[1]))
"""


def start(tmp_path, *arguments, options=("--standalone", "--nproc-per-node=2")):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "training.launch", *options, "--monitor-interval=0.05"]
    command += [str(tmp_path / "ranks.py"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("ranks", "status"), [("75", EXIT_INTERRUPTED), ("one fails", 1)])
def test_it_is_that_of_the_rank_that_ended_first(tmp_path, ranks, status):
    process = start(tmp_path, ranks)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said


def test_a_launcher_that_is_told_to_stop_was_interrupted(tmp_path):
    process = start(tmp_path, "wait", str(tmp_path / "ready-"))
    wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == 2, timeout_s=60)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, said
    assert "SIGTERM" in said


def test_a_meeting_place_that_is_not_there_yet_is_no_failure(tmp_path):
    where = (
        "--nnodes=1:2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:9",
        "--rdzv-conf=is_host=false,read_timeout=1",
    )
    process = start(tmp_path, "0", options=where)
    _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_launcher_that_is_told_to_stop_before_its_ranks_start_was_interrupted(tmp_path, number):
    nowhere = ("--nnodes=1:2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:9", "--rdzv-conf=is_host=false")
    process = start(tmp_path, "0", options=nowhere)
    # While torch is loaded, or the other machine is called, which takes a minute.
    said = next(line for line in process.stderr if "starting ranks" in line)
    process.send_signal(number)
    said += process.communicate(timeout=30)[1]
    assert process.returncode == EXIT_INTERRUPTED, said
    assert f"stopped by {number.name}" in said


@pytest.fixture
def own_signals():
    """Puts this process's signal handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_launcher_is_silent_once_its_ranks_start(own_signals, monkeypatch):
    def has_heartbeat():
        return "heartbeat" in {thread.name for thread in threading.enumerate()}

    def start_ranks(_):
        assert has_heartbeat()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as torchrun does then
        wait_until(lambda: not has_heartbeat(), timeout_s=30)

    monkeypatch.setattr("torch.distributed.run.main", start_ranks)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # set by it, and here put back
    assert launch([]) == 0
