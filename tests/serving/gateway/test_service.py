"""The gateway over a real channel, its engine in process; engines that misbehave stand in where nothing else can."""

import asyncio
import contextlib
import os
import signal

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api import responses
from serving.api.limits import MESSAGE_LIMIT_BYTES
from serving.client import AsyncListingVisionClient, CallFailed
from serving.config import ServeOptions
from serving.gateway.early_rejection import CLASSIFY_METHOD, SERVICE_NAME
from serving.gateway.server import GatewayServer
from serving.protocol import listing_vision_pb2 as pb
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.rollout.circuit_breaker import FAILURE_THRESHOLD
from tests.support.gateway import PHOTO, BusyAdmission, FailingEngine, call_gateway, run_gateway, stop_decoders
from tests.support.helpers import list_decoder_pids
from tests.support.waiting import async_wait_until
from training.data.synthetic import draw_photo
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable


def test_a_listing_is_answered(bundle):
    photos = [draw_photo(product, 1, np.random.default_rng(product)) for product in (0, 0, 6)]
    response = call_gateway(bundle, photos, listing_id="listing-7", num_alternatives=3)
    assert response.listing_id == "listing-7"
    ids = [step.category_id for step in response.category_path]
    assert ids == [category.id for category in bundle.taxonomy.ancestry(ids[-1])]
    probabilities = [step.probability for step in response.category_path]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(response.alternatives) == 3
    assert response.alternatives[0].category_id == ids[-1]
    assert all(result.HasField("recognition") for result in response.photos)
    assert len(response.photos) == 3
    assert response.brand.kind in (pb.BRAND_KIND_BRAND, pb.BRAND_KIND_NO_BRAND)
    assert response.model.version == bundle.info.model_version
    for step in response.category_path:
        assert step.outcome in (pb.SUGGESTION_OUTCOME_FILL, pb.SUGGESTION_OUTCOME_SUGGEST)
        assert bool(step.explanation) == (step.outcome == pb.SUGGESTION_OUTCOME_SUGGEST)


def test_one_photo_is_answered_like_a_listing_of_that_photo(bundle):
    one, three = call_gateway(bundle, [PHOTO]), call_gateway(bundle, [PHOTO] * 3)
    assert [s.category_id for s in one.category_path] == [s.category_id for s in three.category_path]
    np.testing.assert_allclose(one.category_path[0].probability, three.category_path[0].probability, rtol=1e-5)


def test_a_bad_photo_is_reported_and_the_rest_answered(bundle):
    response = call_gateway(bundle, [b"", PHOTO, PHOTO[:-500], b"text"])
    reasons = [result.error.reason for result in response.photos if result.HasField("error")]
    assert reasons == [pb.PHOTO_ERROR_REASON_EMPTY, pb.PHOTO_ERROR_REASON_TRUNCATED, pb.PHOTO_ERROR_REASON_NOT_AN_IMAGE]
    assert response.photos[1].HasField("recognition")
    alone = call_gateway(bundle, [PHOTO])
    assert response.category_path == alone.category_path


@pytest.mark.parametrize(
    ("photos", "options", "reason", "violations"),
    [
        ([], {}, "NO_PHOTOS", {"photos": "give 1 to 20 photos"}),
        ([PHOTO] * 21, {}, "TOO_MANY_PHOTOS", {"photos": "21 photos exceed the limit of 20"}),
        (
            [PHOTO],
            {"listing_id": "x" * 201},
            "LISTING_ID_TOO_LONG",
            {"listing_id": "201 characters exceed the limit of 200"},
        ),
        (
            [PHOTO],
            {"num_alternatives": 21},
            "ALTERNATIVE_COUNT_OUT_OF_RANGE",
            {"alternative_count": "21 is outside 0..20"},
        ),
        (
            [PHOTO],
            {"num_alternatives": -1},
            "ALTERNATIVE_COUNT_OUT_OF_RANGE",
            {"alternative_count": "-1 is outside 0..20"},
        ),
    ],
)
def test_bad_requests_name_the_field(bundle, photos, options, reason, violations):
    with pytest.raises(CallFailed) as caught:
        call_gateway(bundle, photos, **options)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.reason, caught.value.violations) == (reason, violations)


def test_twenty_photos_are_taken(bundle):
    assert len(call_gateway(bundle, [PHOTO] * 20).photos) == 20


def test_no_usable_photo_names_each(bundle):
    with pytest.raises(CallFailed) as caught:
        call_gateway(bundle, [b"", b"text"])
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "NO_USABLE_PHOTO"
    assert caught.value.violations.keys() == {"photos[0].content", "photos[1].content"}
    assert caught.value.violations["photos[1].content"].startswith("PHOTO_NOT_AN_IMAGE: ")


def test_a_message_over_the_limit_is_refused_at_both_ends(bundle):
    with pytest.raises(CallFailed, match="64 MiB: send fewer or smaller photos") as caught:
        call_gateway(bundle, [b"x" * MESSAGE_LIMIT_BYTES])
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED

    async def unlimited_sender():
        async with run_gateway(bundle) as (gateway_server, _):
            address = f"127.0.0.1:{gateway_server.port}"
            async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
                stub = pb_grpc.ListingVisionServiceStub(channel)
                photos = [pb.Photo(content=b"x" * MESSAGE_LIMIT_BYTES)]
                await stub.ClassifyListing(pb.ClassifyListingRequest(photos=photos))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        asyncio.run(unlimited_sender())
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_every_photo_error_has_a_name_on_the_wire():
    from vision import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PhotoError)]
    names = {responses.to_wire_error_reason(kind("x")) for kind in kinds}
    on_the_wire = {v.name for v in pb.PhotoErrorReason.DESCRIPTOR.values} - {"PHOTO_ERROR_REASON_UNSPECIFIED"}
    assert names == on_the_wire


def classify_with_engine(bundle, engine, photos=(PHOTO,), **options):
    async def call():
        async with run_gateway(bundle, health_interval_s=60) as (gateway_server, client):
            release = gateway_server.router.stable
            real, release.engine = release.engine, engine
            try:
                return await client.classify(photos, **options)
            finally:
                release.engine = real

    return asyncio.run(call())


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


def test_what_no_one_foresaw_is_internal_and_tells_nothing(bundle):
    with pytest.raises(CallFailed) as caught:
        classify_with_engine(bundle, FailingEngine(ZeroDivisionError("secret")))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(caught.value)


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
    reasons = [photo.error.reason for photo in answered.photos if photo.HasField("error")]
    assert reasons == [pb.PHOTO_ERROR_REASON_DECODER_CRASHED] * num_victims
    assert answered.category_path


def test_decoding_on_threads_answers_alike(bundle):
    async def call():
        async with run_gateway(bundle, isolate=False) as (_, client):
            return await client.classify([PHOTO, b"text"])

    answered, expected = asyncio.run(call()), call_gateway(bundle, [PHOTO, b"text"])
    for response in (answered, expected):
        response.ClearField("stage_times")
    assert answered == expected


def test_a_call_of_several_megabytes_is_retried(bundle):
    class UnavailableOnce(FailingEngine):
        async def infer(self, photos_nhwc):
            self.calls += 1
            if self.calls == 1:
                raise EngineUnavailable("a moment")
            return await self.error.infer(photos_nhwc)

    async def call():
        async with run_gateway(bundle, health_interval_s=60) as (gateway_server, client):
            release = gateway_server.router.stable
            real = release.engine
            release.engine = engine = UnavailableOnce(real)
            padded = PHOTO + b"\0" * (3 << 20)
            answer = await client.classify([padded])
            release.engine = real
            return engine.calls, len(answer.photos)

    assert asyncio.run(call()) == (2, 1)


def test_a_deadline_ends_the_call(bundle):
    with pytest.raises(CallFailed) as caught:
        classify_with_engine(bundle, FailingEngine(EngineUnavailable("late"), seconds=5), timeout_s=0.3)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_full_gateway_refuses_at_once_with_a_delay(bundle):
    async def call():
        admission = BusyAdmission(is_busy=False, max_photos=3)
        async with run_gateway(bundle, admission=admission) as (_, client):
            with pytest.raises(CallFailed) as caught:
                await client.classify([PHOTO] * 4)
            assert (await client.classify([PHOTO] * 3)).photos
            return caught.value

    failed = asyncio.run(call())
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
    status = failed.__cause__.trailing_metadata()
    packed = dict(status)["grpc-status-details-bin"]
    assert error_details_pb2.RetryInfo.DESCRIPTOR.full_name.encode() in packed


async def call_without_a_message(address: str) -> tuple[grpc.StatusCode, str]:
    """The status of a call whose message is only begun to be sent when the server has ended it, or not at all."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_unary(CLASSIFY_METHOD)(timeout=10)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await call.code()
        if not call.done():
            await call.done_writing()
        return await call.code(), await call.details()


def test_a_full_gateway_refuses_by_the_headers_without_reading_photos(bundle):
    async def call():
        async with run_gateway(bundle) as (gateway_server, client):
            admission = gateway_server.admission
            admission.num_photos = admission.max_photos
            refused = await call_without_a_message(f"127.0.0.1:{gateway_server.port}")
            with pytest.raises(CallFailed) as caught:
                await client.classify([PHOTO])
            admission.num_photos = 0
            return refused, caught.value, await call_without_a_message(f"127.0.0.1:{gateway_server.port}")

    refused, with_photo, let_in = asyncio.run(call())
    assert refused[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "photos are in flight" in refused[1]
    assert with_photo.reason == "TOO_BUSY"
    assert let_in == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")


def test_health_and_model_description(bundle):
    async def call():
        async with run_gateway(bundle) as (gateway_server, client):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway_server.port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                states = [
                    (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
                    for name in ("", SERVICE_NAME)
                ]
            return states, await client.get_model()

    states, model = asyncio.run(call())
    assert states == [health_pb2.HealthCheckResponse.SERVING] * 2
    assert model.category_count == bundle.info.num_categories
    assert (model.photo_count_limit, model.photo_bytes_limit) == (20, 16 << 20)
    assert [promise.field for promise in model.promises] == [field.name for field in bundle.calibration.fields]
    for promise, field in zip(model.promises, bundle.calibration.fields, strict=True):
        assert promise.HasField("threshold") == (field.threshold is not None)


def test_calls_in_flight_are_finished_when_it_stops(bundle):
    async def call():
        gateway_server = GatewayServer(ServeOptions(bundle=bundle.folder, port=0, in_process=True))
        await gateway_server.start()
        async with AsyncListingVisionClient(f"127.0.0.1:{gateway_server.port}") as client:
            await client.get_model()
            calls = [asyncio.create_task(client.classify([PHOTO] * 20)) for _ in range(4)]
            await async_wait_until(lambda: gateway_server.admission.num_photos)
            await gateway_server.stop()
            return await asyncio.gather(*calls)

    answered = asyncio.run(call())
    assert [len(answer.photos) for answer in answered] == [20] * 4


def test_a_taken_port_is_named(bundle):
    async def call():
        async with run_gateway(bundle) as (gateway_server, _):
            second = GatewayServer(ServeOptions(bundle=bundle.folder, port=gateway_server.port, in_process=True))
            with pytest.raises(
                OSError, match=f"cannot listen on 127.0.0.1:{gateway_server.port}.*choose another --port"
            ):
                await second.start()

    asyncio.run(call())
