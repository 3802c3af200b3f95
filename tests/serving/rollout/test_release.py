import asyncio
import contextlib

import pytest

from listing_vision_client import CallFailed
from serving.inference.in_process import InProcessEngine
from serving.inference.shared_check import SharedCheck
from serving.rollout.circuit_breaker import FAILURE_THRESHOLD
from serving.rollout.release import ServedRelease
from tests.support.gateway import PHOTO, FailingEngine, run_gateway
from tests.support.waiting import async_wait_until
from vision.errors import EngineBroken, EngineUnavailable


def test_a_model_that_fails_call_after_call_is_not_asked_any_more_until_its_golden_photos_are_right(bundle):
    async def call():
        async with run_gateway(bundle, health_interval_s=60) as (gateway_server, client):
            release = gateway_server.router.stable
            failing = FailingEngine(EngineUnavailable("away"))
            real, release.engine = release.engine, failing
            reasons = []
            for _ in range(FAILURE_THRESHOLD + 3):
                with pytest.raises(CallFailed) as caught:
                    await client.classify([PHOTO])
                reasons.append(caught.value.reason)
            asked = failing.calls
            with pytest.raises(CallFailed):
                await client.classify([PHOTO])
            await async_wait_until(lambda: not release.is_healthy)
            release.engine = real
            await async_wait_until(lambda: release.is_healthy)
            return reasons, asked, len((await client.classify([PHOTO])).photos)

    reasons, asked, answered = asyncio.run(call())
    assert set(reasons) == {"MODEL_UNAVAILABLE"}
    # The client tries each call three times; the golden photos are asked for meanwhile.
    assert asked < 3 * len(reasons)
    assert answered == 1


class Model:
    """What the engines of several gateways call."""

    def __init__(self):
        self.error, self.is_hung, self.is_slow_to_stop = None, False, False
        self.num_golden_photos = self.num_hung = 0


class GatewayEngine(InProcessEngine):
    def __init__(self, bundle, model):
        super().__init__(bundle)
        self._model = model
        self.is_connected, self.num_backends = True, 0

    async def infer_golden(self, photos_nhwc):
        self._model.num_golden_photos += 1
        if self._model.is_hung:
            self._model.num_hung += 1
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(10 * self._model.is_slow_to_stop):
                    await asyncio.sleep(0)
        if self._model.error:
            raise self._model.error
        return await super().infer_golden(photos_nhwc)

    async def fetch_backend(self):
        self.num_backends += 1
        if not self.is_connected:
            raise EngineUnavailable("no connection")
        return await super().fetch_backend()


@contextlib.asynccontextmanager
async def watch_releases(bundle, path, *, num_gateways=4):
    """The release of several gateways of one Triton, all healthy."""
    model = Model()
    releases = [
        ServedRelease(
            bundle.release,
            bundle,
            GatewayEngine(bundle, model),
            None,
            health_interval_s=0.1,
            shared_check=SharedCheck(path, timeout_s=60),
            on_change=lambda _: None,
        )
        for _ in range(num_gateways)
    ]
    for release in releases:
        await release.wait_until_healthy()
        release.watch()
    model.num_golden_photos = 0
    try:
        yield model, releases
    finally:
        for release in releases:
            await release.close()


def test_gateways_take_turns_to_send_golden_photos_and_each_asks_for_the_backend(bundle, tmp_path):
    async def run():
        async with watch_releases(bundle, tmp_path / "check") as (model, releases):
            await async_wait_until(lambda: min(release.engine.num_backends for release in releases) >= 10)
            assert all(release.is_healthy for release in releases)
            return model.num_golden_photos, sum(release.engine.num_backends for release in releases)

    num_golden_photos, num_checks = asyncio.run(run())
    assert 2 * num_golden_photos < num_checks


@pytest.mark.parametrize("fault", ["wrong", "hung"])
def test_each_gateway_finds_that_the_model_fails_and_recovers(bundle, tmp_path, monkeypatch, fault):
    monkeypatch.setattr("serving.rollout.release.GOLDEN_TIMEOUT_S", 0.2)

    async def run():
        async with watch_releases(bundle, tmp_path / "check") as (model, releases):
            model.error, model.is_hung = EngineBroken("wrong"), fault == "hung"
            await async_wait_until(lambda: not any(release.is_healthy for release in releases))
            assert all(release.breaker.is_open for release in releases)
            model.error, model.is_hung = None, False
            await async_wait_until(lambda: all(release.is_healthy for release in releases))

    asyncio.run(run())


def test_a_gateway_without_a_connection_is_unhealthy_alone(bundle, tmp_path):
    async def run():
        async with watch_releases(bundle, tmp_path / "check") as (_, releases):
            releases[0].engine.is_connected = False
            await async_wait_until(lambda: not releases[0].is_healthy)
            assert all(release.is_healthy for release in releases[1:])

    asyncio.run(run())


def test_a_gateway_whose_calls_fail_sends_a_golden_photo_of_its_own(bundle, tmp_path):
    async def run():
        async with watch_releases(bundle, tmp_path / "check", num_gateways=1) as (model, [release]):
            model.error = EngineBroken("wrong")
            release.breaker.open()
            await async_wait_until(lambda: not release.is_healthy)
            assert model.num_golden_photos >= 2

    asyncio.run(run())


def test_a_release_that_was_stopped_before_closes_once_its_check_has_ended(bundle, tmp_path):
    async def run():
        async with watch_releases(bundle, tmp_path / "check", num_gateways=1) as (model, [release]):
            model.is_hung = model.is_slow_to_stop = True
            await async_wait_until(lambda: model.num_hung)
            release.stop_watching()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
