"""A running `listing-vision serve` as tests see it: its log, status port, processes; and clients that call it."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from listing_vision_client import CallFailed, ListingVisionClient
from tests.conftest import ROOT
from tests.support.helpers import create_scene, encode_image, list_children
from tests.support.waiting import wait_until

PHOTO = encode_image(create_scene(200, 150))


@dataclass
class ServeProcess:
    """A `listing-vision serve` process."""

    process: "subprocess.Popen[bytes]"
    address: str
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def http_url(self) -> str:
        return re.findall(r"HTTP at (\S+)", self.log)[-1]

    @property
    def num_started_gateways(self) -> int:
        """Gateway processes that have served so far, those included that have exited."""
        return self.log.count(" serves on ")

    def triton_pid(self) -> int:
        return int(re.findall(r"Triton \(pid (\d+)\)", self.log)[-1])

    def list_gateways(self) -> set[int]:
        """Pids of the gateway processes."""
        return self.list_processes("serving.supervisor.gateway_worker")

    def list_processes(self, module: str) -> set[int]:
        """Pids of the child processes that run a module."""
        found = set()
        for child in list_children(self.process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has exited
                if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(child)
        return found

    def fetch_status(self, path: str) -> tuple[int, str]:
        """Code and body of a page of the status port."""
        url = re.findall(r"metrics and health at (\S+)", self.log)[-1]
        try:
            with urllib.request.urlopen(url + path, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def read_metrics(self) -> dict[tuple[str, ...], float]:
        """Samples by name and label values."""
        families = text_string_to_metric_families(self.fetch_status("/metrics")[1])
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}

    def check_health(self, service: str = "") -> int:
        with grpc.insecure_channel(self.address) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def start_serve(bundle_folder: Path, log_path: Path, *options: str) -> ServeProcess:
    """Start the real console script on a free port; return once it listens."""
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle_folder), "--port", "0", *options]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def find_address() -> "re.Match[str] | None":
        return re.search(r"listening on (\S+:\d+)", log_path.read_text())

    try:
        wait_until(lambda: find_address() or process.poll() is not None, "it listens")
        found = find_address()
        assert found
    except AssertionError:
        process.kill()
        process.wait()
        raise AssertionError(f"serve did not start:\n{log_path.read_text()}") from None
    return ServeProcess(process, found.group(1), log_path)


def list_process_tree(pid: int) -> list[int]:
    return [pid, *(p for child in list_children(pid) for p in list_process_tree(child))]


def is_alive(pid: int) -> bool:
    """Whether a process exists and has not exited."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


class Callers:
    """Threads that call again and again, each call over its own connection, so that all gateways are reached."""

    def __init__(self, address: str, num_callers: int = 3):
        self.failures, self.num_answered = [], 0
        self._address, self._stop = address, threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(num_callers)]

    def _call(self):
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
