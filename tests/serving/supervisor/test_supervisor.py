"""All processes of one service: their metrics, health, port and end. The model runs in the gateway processes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from listing_vision_client import CallFailed, ListingVisionClient
from tests.conftest import ROOT
from tests.support.cli import run_cli
from tests.support.serving_process import Callers, is_alive, list_process_tree
from tests.support.signing import create_key_pair
from tests.support.waiting import wait_until
from vision.attestation import sign_bundle


def test_metrics_are_sums_over_all_processes_and_outlive_them(shared, bundle):
    answered = ("listing_vision_gateway_calls_total", bundle.release, "OK")
    with Callers(shared.address) as callers:
        wait_until(lambda: callers.num_answered >= 12, "twelve answers")
    with ListingVisionClient(shared.address) as client, pytest.raises(CallFailed):
        client.classify([])
    found = {(name, *sorted(labels)): value for (name, *labels), value in shared.read_metrics().items()}
    version = bundle.release
    assert found[(answered[0], *sorted(answered[1:]))] == callers.num_answered
    assert found["listing_vision_gateway_call_seconds_count", *sorted(["OK", version])] == callers.num_answered
    assert found["listing_vision_gateway_call_seconds_count", *sorted(["NO_PHOTOS", version])] == 1
    assert found["listing_vision_gateway_photos_total", "ok"] == callers.num_answered
    assert found["listing_vision_gateway_stage_seconds_count", "decode"] == callers.num_answered
    assert found["listing_vision_gateway_stage_seconds_count", "decision"] == callers.num_answered
    assert found["listing_vision_gateway_photos_in_flight",] == 0
    assert found["listing_vision_gateway_serving",] == 2
    victim = min(shared.list_gateways())
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: shared.num_started_gateways == 3, "the new one serves")
    after = {(name, *sorted(labels)): value for (name, *labels), value in shared.read_metrics().items()}
    assert after[(answered[0], *sorted(answered[1:]))] == callers.num_answered
    assert after["listing_vision_restarts_total", "gateway"] == 1
    assert after["listing_vision_gateway_serving",] == 2


def test_gateways_send_golden_photos_to_their_triton_in_turns(bundle, start_serving, triton_installation, tmp_path):
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--workers", "4", "--status-port", "0")

    def read(name):
        [value] = [value for (found, *_), value in served.read_metrics().items() if found == name]
        return value

    begun_s, begun_count = time.monotonic(), read("nv_inference_count_total")
    since_s = time.time() + 8
    checked = "listing_vision_gateway_golden_success_timestamp_seconds"
    wait_until(lambda: read(checked) >= since_s, "all gateways have checked for eight seconds")
    num_seconds = time.monotonic() - begun_s
    # One a second of the gateways and one of the supervisor; each by itself, they would be five.
    assert read("nv_inference_count_total") - begun_count <= 3 * num_seconds + 6
    assert served.check_health() == health_pb2.HealthCheckResponse.SERVING


def test_health_over_http_follows_the_service(shared):
    assert shared.fetch_status("/healthz") == (200, "alive\n")
    assert shared.fetch_status("/readyz") == (200, "ready\n")
    assert shared.fetch_status("/else")[0] == 404
    for worker in shared.list_gateways():
        os.kill(worker, signal.SIGSTOP)
    try:
        code, text = shared.fetch_status("/readyz")
        assert (code, text.startswith("not ready: DEADLINE_EXCEEDED")) == (503, True)
        assert shared.fetch_status("/healthz")[0] == 200
    finally:
        for worker in shared.list_gateways():
            os.kill(worker, signal.SIGCONT)
    wait_until(lambda: shared.fetch_status("/readyz")[0] == 200, "ready again")


def test_what_gateways_write_is_for_their_user_alone(shared):
    for pid in shared.list_gateways():
        assert "Umask:\t0077\n" in Path(f"/proc/{pid}/status").read_text()


def test_a_port_of_another_supervisor_is_taken(shared, bundle):
    port = shared.address.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--in-process", "--port", port]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "choose another --port" in refused.stderr


def test_sigterm_ends_all_processes(shared):
    members = list_process_tree(shared.process.pid)
    assert shared.stop() == 0
    assert not any(map(is_alive, members))
    assert "stopped" in shared.log.splitlines()[-1]


def test_nothing_outlives_a_killed_supervisor(served):
    members = list_process_tree(served.process.pid)
    assert len(members) > 4  # supervisor, two gateways, the processes that decode
    served.process.kill()
    served.process.wait()
    wait_until(lambda: not any(map(is_alive, members)), "all gone")


def test_a_port_of_another_program_is_taken(bundle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--in-process", "--port", port]
        refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert refused.returncode == 1
    assert "Address already in use; choose another --port" in refused.stderr


def test_hangups_before_the_start_is_complete_are_ignored(bundle, tmp_path):
    log_path = tmp_path / "serve.log"
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--port", "0", "--in-process"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def is_protected():
        masks = dict(line.split(":\t") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        handled = int(masks["SigIgn"], 16) | int(masks["SigCgt"], 16)
        return handled >> (signal.SIGHUP - 1) & 1

    def hang_up_until_listening():
        process.send_signal(signal.SIGHUP)
        assert process.poll() is None, log_path.read_text()
        return "listening on" in log_path.read_text()

    try:
        wait_until(is_protected)
        wait_until(hang_up_until_listening)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log_path.read_text()


def test_a_signed_bundle_is_served_and_an_unsigned_one_is_not_loaded(bundle, other_bundle, start_serving, tmp_path):
    private, public = create_key_pair(tmp_path)
    signed = shutil.copytree(bundle.folder, tmp_path / "signed")
    sign_bundle(signed, private)
    options = ("--in-process", "--no-isolate", "--require-signature", str(public))
    served = start_serving(signed, tmp_path / "serve.log", *options)
    with ListingVisionClient(served.address) as client:
        assert client.get_model().model.version == bundle.info.model_version
    refused = run_cli("model", "load", other_bundle.folder, "--port", served.address.rpartition(":")[2])
    assert (refused.returncode, "has no model.sig" in refused.stderr) == (1, True)
