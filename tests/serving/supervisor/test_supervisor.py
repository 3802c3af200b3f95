"""The tree of processes behind one port, with the model in the gateway processes: real signals, real deaths."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.client import CallFailed, ListingVisionClient
from tests.conftest import ROOT
from tests.support.helpers import create_scene, encode_image, list_children

PHOTO = encode_image(create_scene(200, 150))


def list_workers(pid: int) -> set[int]:
    found = set()
    for child in list_children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if b"serving.supervisor.gateway_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(child)
    return found


def list_process_tree(pid: int) -> list[int]:
    return [pid, *(p for child in list_children(pid) for p in list_process_tree(child))]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until(condition, what: str, tries: int = 600) -> None:
    for _ in range(tries):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {tries / 10:g} s: {what}")


@pytest.fixture
def served(bundle, start_serving, tmp_path):
    return start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--workers", "2", "--status-port", "0")


def status(served, path: str) -> tuple[int, str]:
    url = re.findall(r"metrics and health at (\S+)", served.log)[-1]
    try:
        with urllib.request.urlopen(url + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(served) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    families = text_string_to_metric_families(status(served, "/metrics")[1])
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


class Callers:
    """Ask again and again, each call over a connection of its own, so that all processes are reached."""

    def __init__(self, address: str, num_callers: int = 3):
        self.failures, self.num_answered = [], 0
        self._address, self._stop = address, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_callers)]

    def _ask(self):
        while not self._stop.is_set():
            with ListingVisionClient(self._address) as client:
                try:
                    assert client.classify([PHOTO], timeout_s=20).category_path
                    self.num_answered += 1
                except CallFailed as error:
                    self.failures.append(str(error))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_two_processes_answer_on_one_port(served):
    assert len(list_workers(served.process.pid)) == 2
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []


def test_a_killed_process_is_replaced_and_the_other_goes_on(served):
    before = list_workers(served.process.pid)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(list_workers(served.process.pid) - {victim}) == 2, "two processes again")
    wait_until(lambda: served.log.count(" serves on ") == 3, "the new one serves")
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []
    assert served.stop() == 0


def test_a_silent_process_is_replaced_before_its_connections_wait_for_ever(served):
    before = list_workers(served.process.pid)
    victim = min(before)
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: f"gateway process {victim} does not answer and is killed" in served.log, "it is killed")
    wait_until(lambda: served.log.count(" serves on ") == 3, "the new one serves")
    assert victim not in list_workers(served.process.pid)
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []
    assert served.stop() == 0


def test_processes_are_replaced_one_by_one_without_a_failed_call(served):
    before = list_workers(served.process.pid)
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 5, "answers before")
        served.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "all 2 gateway processes were replaced" in served.log, "replaced")
        asked = callers.num_answered
        wait_until(lambda: callers.num_answered >= asked + 5, "answers after")
    assert callers.failures == []
    assert list_workers(served.process.pid).isdisjoint(before)


def test_as_many_as_are_wanted_are_left_where_one_dies_while_all_are_replaced(served):
    before = list_workers(served.process.pid)
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(list_workers(served.process.pid)) == 3, "a new one comes")
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: "all 2 gateway processes were replaced" in served.log, "replaced")
    wait_until(lambda: len(list_workers(served.process.pid)) == 2, "two of them")
    assert list_workers(served.process.pid).isdisjoint(before)
    started = served.log.count(" serves on ")
    # Another death is replaced by one, so that nobody else was on the way.
    os.kill(min(list_workers(served.process.pid)), signal.SIGKILL)
    wait_until(lambda: served.log.count(" serves on ") == started + 1, "one more")
    assert len(list_workers(served.process.pid)) == 2


def test_metrics_add_up_over_all_processes_and_outlive_them(served, bundle):
    answered = ("listing_vision_gateway_calls_total", bundle.release, "OK")
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 12, "twelve answers")
    with ListingVisionClient(served.address) as client, pytest.raises(CallFailed):
        client.classify([])
    found = {(name, *sorted(labels)): value for (name, *labels), value in metrics(served).items()}
    version = bundle.release
    assert found[(answered[0], *sorted(answered[1:]))] == callers.num_answered
    assert found["listing_vision_gateway_call_seconds_count", *sorted(["OK", version])] == callers.num_answered
    assert found["listing_vision_gateway_call_seconds_count", *sorted(["NO_PHOTOS", version])] == 1
    assert found["listing_vision_gateway_photos_total", "ok"] == callers.num_answered
    assert found["listing_vision_gateway_stage_seconds_count", "decode"] == callers.num_answered
    assert found["listing_vision_gateway_stage_seconds_count", "decision"] == callers.num_answered
    assert found["listing_vision_gateway_photos_in_flight",] == 0
    assert found["listing_vision_gateway_serving",] == 2
    victim = min(list_workers(served.process.pid))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: served.log.count(" serves on ") == 3, "the new one serves")
    after = {(name, *sorted(labels)): value for (name, *labels), value in metrics(served).items()}
    assert after[(answered[0], *sorted(answered[1:]))] == callers.num_answered
    assert after["listing_vision_restarts_total", "gateway"] == 1
    assert after["listing_vision_gateway_serving",] == 2


def test_health_over_http_follows_the_service(served):
    assert status(served, "/healthz") == (200, "alive\n")
    assert status(served, "/readyz") == (200, "ready\n")
    assert status(served, "/else")[0] == 404
    for worker in list_workers(served.process.pid):
        os.kill(worker, signal.SIGSTOP)
    try:
        code, said = status(served, "/readyz")
        assert (code, said.startswith("not ready: DEADLINE_EXCEEDED")) == (503, True)
        assert status(served, "/healthz")[0] == 200
    finally:
        for worker in list_workers(served.process.pid):
            os.kill(worker, signal.SIGCONT)
    wait_until(lambda: status(served, "/readyz")[0] == 200, "ready again")


def test_nothing_outlives_a_killed_supervisor(served):
    members = list_process_tree(served.process.pid)
    assert len(members) > 4  # supervisor, two gateways, the processes that decode
    served.process.kill()
    served.process.wait()
    wait_until(lambda: not any(map(is_alive, members)), "all gone")


def test_sigterm_ends_the_whole_tree(served):
    members = list_process_tree(served.process.pid)
    assert served.stop() == 0
    assert not any(map(is_alive, members))
    assert "stopped" in served.log.splitlines()[-1]


def test_a_port_that_another_gateway_shares_is_still_taken(served, bundle):
    port = served.address.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--in-process", "--port", port]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "choose another --port" in refused.stderr


def test_a_port_that_something_else_has_is_named(bundle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--in-process", "--port", port]
        refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert refused.returncode == 1
    assert "Address already in use; choose another --port" in refused.stderr
