"""Training on two hosts that meet over a network, of which one is lost and comes back: two network namespaces."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.waiting import wait_until
from training.run import Run
from vision.runtime.cli import EXIT_INTERRUPTED

RECIPE = """
input_px = 64
backbone = "test_efficientnet"
weights = "none"
batch_size = 16
checkpoint_every_steps = 2
[[stages]]
photo_px = 48
epochs = 2000
"""


def ip(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


class Host:
    """A network namespace with an address of its own."""

    def __init__(self, number: int) -> None:
        self.name, self.address = f"listing-vision-{os.getpid()}-{number}", f"10.211.0.{number}"
        self.is_first = number == 1
        ip("netns", "add", self.name)

    def connect(self) -> None:
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "wire")
        for device in ("wire", "lo"):
            ip("-n", self.name, "link", "set", device, "up")

    def start(self, log_path, *training: str) -> "subprocess.Popen[bytes]":
        """Start the host's launcher, which meets the other's at the first host."""
        quick = f"last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3,is_host={self.is_first}"
        launcher = ["-m", "training.launch", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9"]
        launcher += ["--monitor-interval=0.2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.211.0.1:29400"]
        launcher += [f"--rdzv-conf={quick}", f"--local-addr={self.address}", "-m", "training", *training]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "wire", "OMP_NUM_THREADS": "1"}
        with log_path.open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *launcher],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill whatever runs on it, as a power cut does."""
        for pid in ip("netns", "pids", self.name).stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        self.kill()
        ip("netns", "del", self.name)


@pytest.fixture
def hosts():
    try:
        first = Host(1)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and iproute2: {error}")
    second = Host(2)
    ip("link", "add", "wire", "netns", first.name, "type", "veth", "peer", "name", "wire", "netns", second.name)
    for host in (first, second):
        host.connect()
    yield first, second
    for host in (first, second):
        host.remove()


def test_a_host_is_lost_and_comes_back(hosts, synthetic_dataset, tmp_path):
    second = hosts[1]
    run, log_path = Run(tmp_path / "run"), tmp_path / "log.txt"
    (tmp_path / "recipe.toml").write_text(RECIPE)
    training = [str(synthetic_dataset / "manifest.parquet"), "--recipe", str(tmp_path / "recipe.toml")]
    training += ["--run-folder", str(run.folder), "--workers", "0"]

    def wait_for_epoch(num_ranks: int) -> None:
        """Wait for an epoch after those so far, with so many ranks."""
        num_before = len(run.metrics())

        def is_over() -> bool:
            assert launchers[0].poll() is None, log_path.read_text()
            return any(len(epoch.get("ranks", ["alone"])) == num_ranks for epoch in run.metrics()[num_before:])

        wait_until(is_over, f"an epoch with {num_ranks} ranks", timeout_s=120)

    launchers = [host.start(log_path, *training) for host in hosts]
    wait_for_epoch(2)
    second.kill()
    launchers[1].wait()
    wait_for_epoch(1)
    launchers[1] = second.start(log_path, *training)
    wait_for_epoch(2)

    # Without the host that they meet at, the other cannot continue.
    hosts[0].kill()
    launchers[0].wait()
    assert launchers[1].wait(60) == EXIT_INTERRUPTED, log_path.read_text()
    # Epochs follow one another as in a run that nothing has happened to.
    assert [epoch["epoch"] for epoch in run.metrics()] == list(range(1, len(run.metrics()) + 1))
    for epoch in [epoch for epoch in run.metrics() if "ranks" in epoch]:
        assert all(rank["host"] and 0 <= rank["data_wait_share"] <= 1 for rank in epoch["ranks"])
        assert sum(rank["photos_per_s"] for rank in epoch["ranks"]) == pytest.approx(epoch["photos_per_s"], rel=0.5)
