"""The HTTP process, killed and frozen, comes back on its port."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.conftest import ROOT
from tests.support.waiting import wait_until

MODULE = "serving.http_api.process"


def is_served(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(bundle, start_serving, tmp_path_factory):
    options = ("--in-process", "--http-port", "0", "--status-port", "0")
    return start_serving(bundle.folder, tmp_path_factory.mktemp("http") / "serve.log", *options)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_is_killed_or_frozen_is_started_again_on_its_port(served, number):
    (pid,) = served.list_processes(MODULE)
    restarts = ("listing_vision_restarts_total", "http")
    before = served.read_metrics().get(restarts, 0)
    os.kill(pid, number)
    wait_until(lambda: served.read_metrics().get(restarts, 0) == before + 1, "it is started again")
    wait_until(lambda: is_served(served.http_url), "it serves")
    assert served.list_processes(MODULE).isdisjoint({pid})


def test_sighup_replaces_it_on_its_port_without_a_failed_request(served):
    (before,) = served.list_processes(MODULE)
    url, num_logged = served.http_url, served.log.count("HTTP at ")
    served.process.send_signal(signal.SIGHUP)
    results = []

    def is_replaced():
        results.append(is_served(url))  # each request has a connection of its own
        return served.log.count("HTTP at ") == num_logged + 1 and before not in served.list_processes(MODULE)

    wait_until(is_replaced, "the new process serves and the old one has ended")
    assert served.http_url == url
    assert all(results)
    assert len(served.list_processes(MODULE)) == 1


def test_a_taken_port_is_named(bundle, served, tmp_path):
    port = served.http_url.rpartition(":")[2]
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--in-process", "--port", "0"]
    failed = subprocess.run(
        [*command, "--http-port", port], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert failed.returncode == 1
    assert f"cannot serve HTTP on 127.0.0.1:{port}: Address already in use; choose another" in failed.stderr
    assert served.stop() == 0
