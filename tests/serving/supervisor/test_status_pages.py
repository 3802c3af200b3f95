"""What the status port says where the Triton that `serve` is to start does not run."""

import asyncio
import shutil
import subprocess
import sys
import threading

import prometheus_client
import pytest

from serving.observability.metrics import MetricsFolder
from serving.supervisor import status_pages
from serving.supervisor.status_pages import StatusPages
from serving.supervisor.supervisor_metrics import SupervisorMetrics
from serving.triton.install import HOME_VARIABLE
from tests.conftest import ROOT


def test_without_triton_the_fallback_is_visible_everywhere(bundle, start_serving, tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "nothing"))
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--status-port", "0")
    code, text = served.fetch_status("/readyz")
    cause = f"no Triton server at {tmp_path / 'nothing'}; `listing-vision triton install` installs it"
    assert (code, text.splitlines()[0]) == (200, "ready")
    assert text.splitlines()[1].startswith(f"degraded: the gateway processes run the model themselves: {cause}")
    assert served.read_metrics()["listing_vision_engine_fallback",] == 1
    (line,) = [line for line in served.log.splitlines() if "no Triton: " in line]
    assert "ERROR" in line
    assert cause in line
    assert served.stop() == 0


def test_a_required_triton_that_is_missing_is_an_error(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "nothing"))
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--port", "0", "--require-triton"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert "no Triton server at" in done.stderr


def test_too_little_shared_memory_is_named(bundle):
    serve = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--port", "0", "--require-triton"]
    # A mount namespace of its own, in which /dev/shm has the 1 MiB of a container that nobody thought of.
    isolate = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*isolate, "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace needs root and unshare of util-linux")
    done = subprocess.run([*isolate, *serve], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert "/dev/shm has 1 MiB and" in done.stderr
    assert "--shm-size" in done.stderr


def test_an_engine_that_was_chosen_is_no_fallback(shared):
    assert shared.read_metrics()["listing_vision_engine_fallback",] == 0
    assert shared.fetch_status("/readyz") == (200, "ready\n")


def test_problems_are_named_while_nothing_serves():
    metrics = MetricsFolder()
    try:
        pages = StatusPages(
            metrics,
            list_gateways=list,
            fetch_triton_metrics=lambda: b"# of Triton\n",
            list_problems=lambda: ["one", "two"],
            loop=None,
        ).by_path
        assert pages["/readyz"]().status == 503
        assert pages["/readyz"]().body == b"not ready: no gateway process\ndegraded: one\ndegraded: two\n"
        assert pages["/metrics"]().body.endswith(b"# of Triton\n")
    finally:
        metrics.remove()


def test_metrics_of_two_supervisors_are_apart():
    registries = prometheus_client.CollectorRegistry(), prometheus_client.CollectorRegistry()
    first, _ = map(SupervisorMetrics, registries)
    first.restarts.labels("http").inc()
    values = [
        registry.get_sample_value("listing_vision_restarts_total", {"component": "http"}) for registry in registries
    ]
    assert values == [1, 0]


def check_liveness(loop):
    pages = StatusPages(None, list_gateways=list, fetch_triton_metrics=bytes, list_problems=list, loop=loop)
    return pages.by_path["/healthz"]()


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_supervisor_that_runs_or_has_not_begun_is_alive(loop):
    assert check_liveness(loop).status == check_liveness(None).status == 200


def test_a_supervisor_whose_loop_stands_still_is_not_alive(loop, monkeypatch):
    monkeypatch.setattr(status_pages, "LIVENESS_TIMEOUT_S", 0.05)
    released = threading.Event()
    loop.call_soon_threadsafe(released.wait)
    response = check_liveness(loop)
    released.set()
    assert (response.status, response.body) == (503, b"the supervisor has not run for 0.05 s\n")
