"""Connections that end by themselves, over a real channel."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from listing_vision_client import AsyncListingVisionClient
from serving.config import ServeOptions
from serving.gateway.server import GatewayServer, list_connection_age_options
from tests.support.helpers import create_scene, encode_image

READY = grpc.ChannelConnectivity.READY


def test_a_connection_is_made_anew_and_no_call_fails_by_it(bundle):
    async def count_calls_until_reconnect():
        options = ServeOptions(
            bundle=bundle.folder, port=0, in_process=True, isolate=False, drain_s=0, connection_age_s=0.2
        )
        server = GatewayServer(options)
        await server.start()
        num_answered = 0
        try:
            address = f"127.0.0.1:{server.port}"
            async with grpc.aio.insecure_channel(address) as channel, AsyncListingVisionClient(address) as client:
                await channel.channel_ready()
                ended = asyncio.ensure_future(channel.wait_for_state_change(READY))
                while not ended.done():
                    await client.classify([encode_image(create_scene())])
                    num_answered += 1
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
                return num_answered, health.status, channel.get_state()
        finally:
            await server.stop()

    num_answered, status, state = asyncio.run(asyncio.wait_for(count_calls_until_reconnect(), 60))
    assert num_answered
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert state == READY


def test_by_default_connections_last():
    assert list_connection_age_options(ServeOptions(bundle="any").connection_age_s) == []
