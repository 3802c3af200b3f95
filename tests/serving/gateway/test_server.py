import asyncio
from dataclasses import asdict
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from listing_vision_client import AsyncListingVisionClient, FormField
from serving.config import ServeOptions
from serving.gateway.early_rejection import SERVICE_NAME
from serving.gateway.server import GatewayServer
from tests.support.gateway import PHOTO, run_gateway
from tests.support.waiting import async_wait_until


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
    assert model.language_codes == tuple(bundle.taxonomy.language_codes)
    assert asdict(model.limits) == {
        "photo_count_limit": 20,
        "photo_bytes_limit": 16 << 20,
        "photo_pixels_limit": 50_000_000,
        "photo_side_minimum": 8,
        "request_bytes_limit": 64 << 20,
        "listing_id_length_limit": 200,
        "alternative_count_limit": 20,
        "photo_uri_length_limit": 2000,
    }
    assert (model.photo_uris_enabled, model.outcomes_enabled) == (False, False)
    assert model.suggestion_validity_s == timedelta(days=30).total_seconds()
    depths = [(one.field, one.category_depth) for one in model.guarantees]
    assert depths == [(FormField.CATEGORY, 0), (FormField.BRAND, 0)]  # the whole path, and the brand
    for guarantee, field in zip(model.guarantees, bundle.calibration.fields, strict=True):
        assert (guarantee.threshold is not None) == (field.threshold is not None)
        assert (guarantee.not_prefilled is not None) == (field.threshold is None)


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
