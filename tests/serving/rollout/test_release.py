import asyncio

import pytest

from listing_vision_client import CallFailed
from serving.rollout.circuit_breaker import FAILURE_THRESHOLD
from tests.support.gateway import PHOTO, FailingEngine, run_gateway
from tests.support.waiting import async_wait_until
from vision.errors import EngineUnavailable


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
