import asyncio
import os
import signal
from dataclasses import replace

import grpc
import pytest

from listing_vision_client import CallFailed, PhotoErrorReason
from tests.support.gateway import PHOTO, FailingEngine, call_gateway, classify_with_engine, run_gateway, stop_decoders
from tests.support.helpers import list_decoder_pids
from tests.support.waiting import async_wait_until
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable


def test_no_usable_photo_names_each(bundle):
    with pytest.raises(CallFailed) as caught:
        call_gateway(bundle, [b"", b"text"])
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "NO_USABLE_PHOTO"
    violations = {one.field: one.reason for one in caught.value.details.violations}
    assert violations == {"photos[0].content": "PHOTO_EMPTY", "photos[1].content": "PHOTO_NOT_AN_IMAGE"}
    assert caught.value.details.metadata == {"photo_count": "2"}


def test_a_model_that_is_away_is_unavailable_and_nothing_internal_is_told(bundle):
    with pytest.raises(CallFailed, match="try again") as caught:
        classify_with_engine(bundle, FailingEngine(EngineUnavailable("secret host:8001")))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
    assert "secret" not in str(caught.value)


def test_a_model_that_answers_nonsense_is_internal(bundle):
    with pytest.raises(CallFailed) as caught:
        classify_with_engine(bundle, FailingEngine(EngineBroken("x")))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "MODEL_BROKEN")


def test_a_full_queue_is_busy_not_away(bundle):
    with pytest.raises(CallFailed) as caught:
        classify_with_engine(bundle, FailingEngine(EngineBusy("Exceeds maximum queue size")))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")


def test_photos_that_crash_a_decoder_cost_an_error_each(bundle):
    async def call():
        async with run_gateway(bundle) as (gateway_server, client):
            victims = list_decoder_pids(gateway_server.router.stable.decoders)
            async with stop_decoders(gateway_server):
                asked = asyncio.create_task(client.classify([PHOTO] * (1 + len(victims))))
                await async_wait_until(lambda: gateway_server.router.stable.decoders.num_waiting == 1)
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)
                return await asked, len(victims)

    answered, num_victims = asyncio.run(call())
    reasons = [photo.error.reason for photo in answered.photos if photo.error]
    assert reasons == [PhotoErrorReason.DECODER_CRASHED] * num_victims
    assert answered.category_path


def test_decoding_on_threads_answers_alike(bundle):
    async def call():
        async with run_gateway(bundle, isolate=False) as (_, client):
            return await client.classify([PHOTO, b"text"])

    answered, expected = (
        replace(suggestion, stage_times=(), suggestion_id="")
        for suggestion in (asyncio.run(call()), call_gateway(bundle, [PHOTO, b"text"]))
    )
    assert answered == expected
