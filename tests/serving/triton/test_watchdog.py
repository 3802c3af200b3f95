import asyncio
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import prometheus_client
import pytest

from serving.inference.model_names import MODEL_NAME
from serving.triton import watchdog as watchdog_module
from serving.triton.config import RepositoryOptions
from serving.triton.process import LocalTriton
from serving.triton.watchdog import TritonWatchdog
from tests.support.waiting import async_wait_until
from vision.errors import EngineBroken


def list_shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"listing_vision_{os.getpid()}_*")}


def create_metrics():
    registry = prometheus_client.CollectorRegistry()
    restarts = prometheus_client.Counter("restarts", "", ["component"], registry=registry)
    return registry, {"restarts": restarts, "degraded": prometheus_client.Gauge("degraded", "", registry=registry)}


@pytest.fixture
def wrong_bundle(bundle, other_bundle, tmp_path):
    """A bundle with the golden photos of another model."""
    folder = shutil.copytree(other_bundle.folder, tmp_path / "wrong")
    shutil.copyfile(bundle.folder / "golden.safetensors", folder / "golden.safetensors")
    return replace(other_bundle, folder=folder)


def test_models_are_reloaded_added_and_removed_and_triton_is_restarted(
    bundle, other_bundle, wrong_bundle, triton_installation
):
    registry, metrics = create_metrics()
    triton = LocalTriton(bundle, triton_installation, RepositoryOptions(backend="python", instances=1))
    main, other = MODEL_NAME, "other_model"

    def count_restarts(component):
        return registry.get_sample_value("restarts_total", {"component": component}) or 0

    async def replace_killed_model(watchdog):
        before = triton.list_model_pids(main)
        assert len(before) == 1
        os.kill(*before, signal.SIGKILL)
        await async_wait_until(lambda: triton.list_model_pids(main) - before, "another model process")
        await watchdog.wait_until_healthy(main)
        assert count_restarts("model") == 1

    async def add_and_remove(watchdog):
        with pytest.raises(EngineBroken):
            await watchdog.add(other, wrong_bundle)
        assert triton.models == [main]
        await watchdog.add(other, other_bundle)
        await watchdog.wait_until_healthy(other)
        assert triton.models == [main, other]
        assert triton.list_model_pids(other)
        await watchdog.remove(other)
        assert triton.models == [main]
        assert not (triton.repository / other).exists()
        await async_wait_until(lambda: not triton.list_model_pids(other), "no process of the removed model")

    async def restart_killed_triton(watchdog):
        pid, address = triton.pid, watchdog.address
        os.kill(pid, signal.SIGKILL)
        await async_wait_until(lambda: triton.pid not in (pid, None), "another Triton")
        await watchdog.wait_until_healthy(main)
        assert watchdog.address == address
        assert (count_restarts("model"), count_restarts("triton")) == (1, 1)

    async def run():
        watchdog = TritonWatchdog(triton, bundle, health_interval_s=0.2, **metrics)
        try:
            await watchdog.start()
            watchdog.watch()
            await replace_killed_model(watchdog)
            await add_and_remove(watchdog)
            await restart_killed_triton(watchdog)
            assert b"nv_inference_request_success" in await asyncio.to_thread(watchdog.fetch_metrics)
        finally:
            await watchdog.stop()
        assert watchdog.fetch_metrics() == b""

    memory_before = list_shared_memory()
    asyncio.run(run())
    assert not triton.is_running()
    assert triton.list_all_model_pids() == frozenset()
    assert not triton.repository.exists()
    assert list_shared_memory() <= memory_before


def test_a_reload_that_takes_too_long_is_not_begun_again(bundle, triton_installation, monkeypatch):
    """The reload is under way when its caller gives up, as on a busy machine; its processes are found later."""
    monkeypatch.setattr(watchdog_module, "RELOAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(watchdog_module, "KILL_REPLACED_AFTER_S", 1.0)
    registry, metrics = create_metrics()
    triton = LocalTriton(bundle, triton_installation, RepositoryOptions(backend="python", instances=2))
    num_processes, degraded = [], []

    async def run():
        watchdog = TritonWatchdog(triton, bundle, health_interval_s=0.2, **metrics)
        try:
            await watchdog.start()
            before = triton.list_model_pids(MODEL_NAME)
            watchdog.watch()
            os.kill(min(before), signal.SIGKILL)

            def is_replaced():
                num_processes.append(len(triton.list_model_pids(MODEL_NAME)))
                degraded.append((registry.get_sample_value("degraded"), len(watchdog.problems)))
                return not triton.list_model_pids(MODEL_NAME) & before and num_processes[-1] == 2

            await async_wait_until(is_replaced, "two other processes")
            await asyncio.sleep(3)  # another reload would begin meanwhile
            assert is_replaced()
            assert degraded[-1] == (0, 0)
        finally:
            await watchdog.stop()

    asyncio.run(run())
    assert registry.get_sample_value("restarts_total", {"component": "model"}) == 1
    assert max(num_processes) <= 4
    assert (1, 1) in degraded
