import asyncio
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from serving.inference.health import wait_for_golden_photos
from serving.inference.model_names import MODEL_NAME
from serving.inference.triton import TritonEngine
from serving.observability.tracing import TraceOptions
from serving.triton.process import LocalTriton
from tests.conftest import ROOT
from tests.support.waiting import wait_until
from vision.errors import EngineUnavailable


def test_a_running_server_has_a_process_per_instance_and_metrics(bundle, running_triton):
    async def wait():
        engine = TritonEngine(running_triton.address)
        try:
            await wait_for_golden_photos(engine, bundle)
        finally:
            await engine.close()

    asyncio.run(wait())
    assert running_triton.is_running()
    pids = running_triton.list_model_pids(MODEL_NAME)
    assert len(pids) == running_triton.options.num_instances
    assert running_triton.list_all_model_pids() == pids
    assert running_triton.list_model_pids("listing") == frozenset()  # only the whole name counts
    wait_until(lambda: b"nv_inference_request_success" in fetch(running_triton.metrics_url), "metrics")


def fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read()
    except OSError:  # Triton opens its ports one after another
        return b""


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(bundle, triton_installation):
    triton = LocalTriton(bundle, triton_installation)
    try:
        with pytest.raises(EngineUnavailable, match="exited with status None while starting"):
            triton.wait_until_listening()
        (triton.repository / MODEL_NAME / "config.pbtxt").write_text("no such field: 1")
        triton.start()
        with pytest.raises(EngineUnavailable, match=r"exited with status [1-9][\s\S]*failed to load all models"):
            triton.wait_until_listening()
    finally:
        triton.stop()
    assert not triton.repository.exists()
    assert not triton.log_path.exists()
    triton.restart()
    assert not triton.is_running()  # a restart that comes after the stop starts nothing


def test_what_a_killed_owner_left_is_removed_by_the_next_one(bundle, triton_installation):
    program = """
import os, pathlib, signal
from serving.processes.temporary_folders import TemporaryFolder
folder = TemporaryFolder("listing-vision-triton-", longest_name="grpc:0").path
region = pathlib.Path(f"/dev/shm/listing_vision_{os.getpid()}_{folder.name[-8:]}_region")
region.touch()
print(folder, region, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    left = [Path(path) for path in killed.stdout.split()]
    assert [path.exists() for path in left] == [True, True]
    LocalTriton(bundle, triton_installation).stop()
    assert [path.exists() for path in left] == [False, False]


@pytest.mark.parametrize(("version", "is_traced"), [("2.51", False), ("2.60", True)])
def test_a_version_that_crashes_while_tracing_does_not_trace(bundle, triton_installation, version, is_traced):
    installation = replace(triton_installation, version=version)
    triton = LocalTriton(bundle, installation, traces=TraceOptions(endpoint="http://127.0.0.1:1", ratio=1.0))
    try:
        triton.start()
        command = Path(f"/proc/{triton.pid}/cmdline")
        wait_until(lambda: b"--model-repository" in command.read_bytes(), "it has begun")
        assert (b"--trace-config" in command.read_bytes()) == is_traced
    finally:
        triton.stop()


def test_the_installed_version_is_one_that_crashes_while_tracing(triton_installation):
    assert triton_installation.version == "2.51"
