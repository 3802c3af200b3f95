"""Bytes that wait on a real TCP connection for the rest of their message."""

import socket
import sys

import pytest

from serving.gateway.connection_meter import ConnectionMeter
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is read on Linux alone")


@pytest.fixture(params=["127.0.0.1", "::1", "::"], ids=["IPv4", "IPv6", "IPv4 on a socket of both"])
def connection(request):
    """A client's socket, the service's, and the name that gRPC gives to the peer."""
    family = socket.AF_INET if request.param == "127.0.0.1" else socket.AF_INET6
    try:
        listener = socket.create_server((request.param, 0), family=family, dualstack_ipv6=request.param == "::")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("::1" if request.param == "::1" else "127.0.0.1", port))
        server, _ = listener.accept()
        with client, server:
            port = client.getsockname()[1]
            peer = f"ipv6:%5B::1%5D:{port}" if request.param == "::1" else f"ipv4:127.0.0.1:{port}"
            yield client, server, peer


def test_what_came_of_an_incomplete_message_is_counted(connection):
    client, _, peer = connection
    meter = ConnectionMeter()
    meter.watch(peer)
    assert meter.measure(peer) == 0
    client.sendall(b"x" * 50_000)
    wait_until(lambda: meter.measure(peer) == 50_000)
    meter.count_message(peer, 49_000)
    assert 0 <= meter.measure(peer) < 1000


def test_rounding_earns_no_credit(connection):
    client, _, peer = connection
    meter = ConnectionMeter()
    meter.watch(peer)
    meter.count_message(peer, 1 << 30)
    client.sendall(b"x" * 1000)
    wait_until(lambda: meter.measure(peer) == 1000)
    meter.discard(peer, 400)
    assert meter.measure(peer) == 600


def test_a_closed_connection_counts_nothing(connection):
    client, server, peer = connection
    meter = ConnectionMeter()
    meter.watch(peer)
    client.sendall(b"x" * 1000)
    wait_until(lambda: meter.measure(peer) == 1000)
    server.close()
    assert meter.measure(peer) == 0


@pytest.mark.parametrize("peer", ["unix:/run/x.sock", "ipv4:127.0.0.1:1", "unknown", ""])
def test_other_connections_count_nothing(peer):
    meter = ConnectionMeter()
    meter.watch(peer)
    meter.count_message(peer, 10)
    meter.discard(peer, 10)
    assert meter.measure(peer) == 0
