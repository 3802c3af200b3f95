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
from tests.support.clock import ManualClock
from tests.support.waiting import async_wait_until
from vision.errors import EngineBroken, EngineUnavailable


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


class _ModelProcessesOfTriton:
    """Stands for a Triton whose processes all run."""

    def __init__(self, num_instances):
        self.options = RepositoryOptions(backend="python", instances=num_instances)
        self.models = [MODEL_NAME]
        self.address = "127.0.0.1:1"
        self.pid = 1
        self.num_checks = 0

    def start(self): ...

    def stop(self): ...

    def wait_until_listening(self): ...

    def is_running(self):
        return True

    def list_model_pids(self, name):
        self.num_checks += 1
        return frozenset(range(self.options.num_instances))


def test_golden_photos_are_sent_to_every_instance_and_one_an_interval_on_average(bundle, monkeypatch):
    clock, sent = ManualClock(now_s=100.0), []

    async def check_golden_photos(*arguments, **options):
        sent.append(clock())
        if len(sent) == 9:
            raise EngineUnavailable("one instance does not answer")

    async def answer(*arguments, **options): ...

    monkeypatch.setattr(watchdog_module, "check_golden_photos", check_golden_photos)
    monkeypatch.setattr(watchdog_module, "wait_for_golden_photos", answer)
    monkeypatch.setattr(watchdog_module, "RECHECK_INTERVAL_S", 0.001)
    _, metrics = create_metrics()
    triton = _ModelProcessesOfTriton(num_instances=4)

    async def check_processes_again():
        before = triton.num_checks
        await async_wait_until(lambda: triton.num_checks > before + 10, "ten checks of the processes")

    async def run():
        watchdog = TritonWatchdog(triton, bundle, health_interval_s=0.001, clock=clock, **metrics)
        try:
            await watchdog.start()
            watchdog.watch()
            await check_processes_again()
            assert sent == [100.0] * 4
            clock.advance(0.005)
            await check_processes_again()
            assert len(sent) == 8
            clock.advance(0.005)  # one fails: all are checked again, before their time
            await check_processes_again()
            assert len(sent) == 16
            assert watchdog.problems == []
        finally:
            await watchdog.stop()

    asyncio.run(run())


def test_a_reload_that_takes_too_long_is_not_begun_again(bundle, triton_installation, monkeypatch):
    """The reload is under way when its caller gives up, as on a busy machine; its processes are found later."""
    monkeypatch.setattr(watchdog_module, "RELOAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(watchdog_module, "KILL_REPLACED_AFTER_S", 1.0)
    # On a busy machine the new processes may need longer than that to answer; only the processes are to count here.
    monkeypatch.setattr(watchdog_module, "RELOAD_THRESHOLD", 10_000)
    monkeypatch.setattr(watchdog_module, "RESTART_THRESHOLD", 10_000)
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
            await async_wait_until(lambda: is_replaced() and degraded[-1] == (0, 0), "a healthy model")
            await asyncio.sleep(3)  # another reload would begin meanwhile
            assert is_replaced()
        finally:
            await watchdog.stop()

    asyncio.run(run())
    assert registry.get_sample_value("restarts_total", {"component": "model"}) == 1
    assert max(num_processes) <= 4
    assert (1, 1) in degraded
