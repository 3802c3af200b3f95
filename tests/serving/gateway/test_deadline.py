import asyncio

import grpc
import pytest

from listing_vision_client import CallFailed
from tests.support.gateway import PHOTO, FailingEngine, classify_with_engine, run_gateway, stop_decoders
from tests.support.waiting import async_wait_until
from vision.errors import EngineUnavailable


def cancel_before_decode(bundle, stop_early):
    """What the engine was asked for by a call that ended while its photo was still to be decoded."""

    async def call():
        async with run_gateway(bundle, health_interval_s=60) as (gateway_server, client):
            inner, release = gateway_server, gateway_server.router.stable
            real, release.engine = release.engine, FailingEngine(EngineUnavailable("never asked"))
            async with stop_decoders(gateway_server):
                with pytest.raises((CallFailed, asyncio.CancelledError)):
                    await stop_early(client, inner)
                await async_wait_until(lambda: inner.admission.num_photos == 0)
                waiting = gateway_server.router.stable.decoders.num_waiting
            release.engine, failing = real, release.engine
            answered = await client.classify([PHOTO])
            return failing.calls, waiting, len(answered.photos)

    return asyncio.run(call())


def test_work_whose_deadline_has_passed_is_dropped_before_the_model(bundle):
    async def use_short_deadline(client, inner):
        await client.classify([PHOTO] * 6, timeout_s=0.3)

    calls, _, answered = cancel_before_decode(bundle, use_short_deadline)
    assert (calls, answered) == (0, 1)


def test_work_whose_caller_has_gone_is_dropped_before_the_model(bundle):
    async def cancel_call(client, inner):
        call = asyncio.create_task(client.classify([PHOTO] * 6))
        await async_wait_until(lambda: inner.admission.num_photos == 6)
        call.cancel()
        await call

    calls, _, answered = cancel_before_decode(bundle, cancel_call)
    assert (calls, answered) == (0, 1)


def test_a_deadline_ends_the_call(bundle):
    with pytest.raises(CallFailed) as caught:
        classify_with_engine(bundle, FailingEngine(EngineUnavailable("late"), seconds=5), timeout_s=0.3)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
