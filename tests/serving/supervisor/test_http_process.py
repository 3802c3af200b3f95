"""The HTTP process, killed and frozen, comes back on its port."""

import os
import signal
import urllib.error
import urllib.request

import pytest

from tests.support.waiting import wait_until


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
    (pid,) = served.list_processes("serving.http_api.process")
    restarts = ("listing_vision_restarts_total", "http")
    before = served.read_metrics().get(restarts, 0)
    os.kill(pid, number)
    wait_until(lambda: served.read_metrics().get(restarts, 0) == before + 1, "it is started again")
    wait_until(lambda: is_served(served.http_url), "it serves")
    assert served.list_processes("serving.http_api.process").isdisjoint({pid})


def test_sighup_replaces_it_on_its_port(served):
    (before,) = served.list_processes("serving.http_api.process")
    url, num_logged = served.http_url, served.log.count("HTTP at ")
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: served.log.count("HTTP at ") == num_logged + 1, "it serves again")
    assert served.http_url == url
    assert is_served(url)
    (after,) = served.list_processes("serving.http_api.process")
    assert after != before
    assert served.stop() == 0
