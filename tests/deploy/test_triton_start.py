"""The Triton image's start script, with a real Triton."""

import asyncio
import contextlib
import os
import subprocess
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scripts.check_deploy import DEPLOY
from serving.inference.health import wait_for_golden_photos
from serving.inference.model_names import CANARY_MODEL_NAME
from serving.inference.triton import TritonEngine
from serving.inference.triton_channel import TritonAccess
from serving.processes.sockets import find_free_ports
from serving.triton.config import RepositoryOptions
from serving.triton.repository import write_repository
from tests.support.certificates import Authority
from vision.errors import EngineUnavailable

KEY = "a-key-of-the-operator"


class Started(NamedTuple):
    grpc_port: int
    http_port: int
    pid: int


@contextlib.contextmanager
def run_start_script(installation, folder, settings):
    """Ports and process of a Triton that the script has started on the repository `models` of a folder."""
    grpc_port, http_port, metrics_port = find_free_ports(3)
    root = installation.server_root
    variables = installation.process_environment()
    variables |= {
        "PATH": f"{installation.binary.parent}:{variables['PATH']}",
        "TRITON_MODELS": str(folder / "models"),
        **settings,
    }
    command = [str(DEPLOY / "triton" / "start.sh"), f"--backend-directory={root / 'backends'}"]
    command += [f"--cache-directory={root / 'caches'}", "--allow-gpu-metrics=false"]
    command += [f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")]
    command += [f"--grpc-port={grpc_port}", f"--http-port={http_port}", f"--metrics-port={metrics_port}"]
    command += [f"--backend-config=python,shm-region-prefix-name=listing_vision_start_{os.getpid()}_"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        yield Started(grpc_port, http_port, process.pid)
    finally:
        process.terminate()
        assert process.wait(40) == 0, (folder / "log.txt").read_text()[-3000:]


@pytest.fixture(scope="module")
def ports(bundle, other_bundle, triton_installation, tmp_path_factory):
    """Ports and process of a Triton that the script has started, with a canary beside the model."""
    folder = tmp_path_factory.mktemp("start")
    # The gateway's image writes it in the same way: the first Python on Triton's PATH runs the models.
    options = RepositoryOptions(backend="python", instances=1)
    write_repository(bundle, folder / "models", options)
    write_repository(other_bundle, folder / "models", replace(options, model_name=CANARY_MODEL_NAME))
    with run_start_script(triton_installation, folder, {"TRITON_CONTROL_KEY": KEY}) as started:
        yield started


@pytest.fixture(scope="module")
def ready_ports(ports, bundle):
    """The ports, once the model answers its golden photos; a gateway needs no other method of Triton."""

    async def ask():
        engine = TritonEngine(f"127.0.0.1:{ports.grpc_port}")
        try:
            await wait_for_golden_photos(engine, bundle)
            return await engine.fetch_backend()
        finally:
            await engine.close()

    assert asyncio.run(ask()) == "onnxruntime-cpu"
    return ports


def test_what_lies_in_the_repository_is_served(ready_ports, other_bundle):
    async def ask():
        engine = TritonEngine(f"127.0.0.1:{ready_ports.grpc_port}", model_name=CANARY_MODEL_NAME)
        try:
            await wait_for_golden_photos(engine, other_bundle)
            return await engine.fetch_backend()
        finally:
            await engine.close()

    assert asyncio.run(ask()) == "onnxruntime-cpu"


def test_fp32_stays_fp32_on_a_card(ready_ports):
    variables = Path(f"/proc/{ready_ports.pid}/environ").read_bytes().split(b"\0")
    assert b"NVIDIA_TF32_OVERRIDE=0" in variables


def test_nobody_without_the_key_loads_or_unloads_a_model(ready_ports):
    async def control(what):
        engine = TritonEngine(f"127.0.0.1:{ready_ports.grpc_port}")
        try:
            await getattr(engine, what)(timeout_s=5)
        finally:
            await engine.close()

    for what in ("load", "unload"):
        with pytest.raises(EngineUnavailable):
            asyncio.run(control(what))
    with grpc.insecure_channel(f"127.0.0.1:{ready_ports.grpc_port}") as channel:
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for call, request in (
            (triton.RepositoryIndex, service_pb2.RepositoryIndexRequest()),
            (triton.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
            (triton.TraceSetting, service_pb2.TraceSettingRequest()),
            (triton.LogSettings, service_pb2.LogSettingsRequest()),
        ):
            with pytest.raises(grpc.RpcError):
                call(request, timeout=5)
        header = [("triton-grpc-protocol-listing-vision-control", KEY)]
        found = triton.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=5, metadata=header)
    states = {model.name: model.state for model in found.models}
    assert states == {"listing_vision": "READY", CANARY_MODEL_NAME: "READY"}


def test_probes_are_answered_and_http_has_nothing_but_these(ready_ports):
    with grpc.insecure_channel(f"127.0.0.1:{ready_ports.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    for path in ("/v2/health/live", "/v2/health/ready"):
        with urllib.request.urlopen(f"http://127.0.0.1:{ready_ports.http_port}{path}", timeout=5) as answer:
            assert answer.status == 200
    model = "/v2/models/listing_vision"
    closed = {"/v2": None, f"{model}/config": None, f"{model}/infer": b"{}", "/v2/repository/index": b"{}"}
    for path, body in closed.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{ready_ports.http_port}{path}", data=body, timeout=5)
        assert refused.value.code == 403
        refused.value.close()


def test_a_key_and_tls_protect_inference_where_they_are_given(bundle, triton_installation, tmp_path):
    write_repository(bundle, tmp_path / "models", RepositoryOptions(backend="python", instances=1))
    authority = Authority(tmp_path / "ca", "triton")
    certificate, key = authority.issue("server")
    key_file = tmp_path / "key"
    key_file.write_text("listing-vision=a-key-of-the-gateways\n")
    settings = {"TRITON_KEY_FILE": key_file, "TRITON_TLS_CERTIFICATE": certificate, "TRITON_TLS_KEY": key}

    async def fetch_backend(access, *, is_ready=True):
        engine = TritonEngine(f"localhost:{started.grpc_port}", access=access)
        try:
            if is_ready:
                await wait_for_golden_photos(engine, bundle)
            return await engine.fetch_backend()
        finally:
            await engine.close()

    with run_start_script(triton_installation, tmp_path, {k: str(v) for k, v in settings.items()}) as started:
        access = TritonAccess(ca=authority.certificate, key_file=key_file)
        assert asyncio.run(fetch_backend(access)) == "onnxruntime-cpu"
        for missing in (TritonAccess(ca=authority.certificate), TritonAccess(key_file=key_file)):
            with pytest.raises(EngineUnavailable):
                asyncio.run(fetch_backend(missing, is_ready=False))
        with urllib.request.urlopen(f"http://127.0.0.1:{started.http_port}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200
