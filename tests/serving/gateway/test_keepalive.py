"""A quiet stream stays open, since gateway and client agree on how often a ping is allowed; an idle connection ends."""

import asyncio
import socket
import threading

import pytest

from listing_vision_client import CallFailed, ListingToClassify, ListingVisionClient
from tests.support.gateway import PHOTO, run_gateway

PING_MS = 100


def classify_before_and_after_a_quiet_time(bundle, quiet_s):
    async def run():
        async with run_gateway(bundle, isolate=False) as (server, _):
            is_answered, is_ended = threading.Event(), threading.Event()

            def listings():
                yield ListingToClassify([PHOTO], listing_id="before")
                is_answered.wait(60)  # until then gRPC may repeat the stream on another connection
                is_ended.wait(quiet_s)
                yield ListingToClassify([PHOTO], listing_id="after")

            def read():
                options = [("grpc.keepalive_time_ms", PING_MS)]
                with ListingVisionClient(f"127.0.0.1:{server.port}", channel_options=options) as client:
                    found = []
                    try:
                        for result in client.classify_stream(listings()):
                            found.append(result.suggestion.listing_id)
                            is_answered.set()
                    finally:
                        is_ended.set()
                    return found

            return await asyncio.to_thread(read)

    return asyncio.run(run())


def test_a_quiet_stream_that_is_kept_alive_stays_open(bundle, monkeypatch):
    monkeypatch.setattr("serving.gateway.server.MIN_PING_INTERVAL_MS", PING_MS // 2)
    assert classify_before_and_after_a_quiet_time(bundle, quiet_s=3.0) == ["before", "after"]


def test_pings_more_often_than_a_gateway_allows_end_the_connection(bundle):
    # So the test above shows that the gateway's option has an effect. The quiet time is a limit here: connections that
    # were ended before the first answer have made the client ping less often, each time half as often.
    with pytest.raises(CallFailed, match="Too many pings"):
        classify_before_and_after_a_quiet_time(bundle, quiet_s=60.0)


def test_a_connection_without_calls_is_closed(bundle, monkeypatch):
    monkeypatch.setattr("serving.gateway.server.MAX_CONNECTION_IDLE_MS", 200)

    def read_until_closed(port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))  # SETTINGS
            received = b""
            while chunk := connection.recv(4096):
                received += chunk
            return received

    async def run():
        async with run_gateway(bundle, isolate=False) as (server, _):
            return await asyncio.to_thread(read_until_closed, server.port)

    assert asyncio.run(run()).endswith(b"connection idle")
