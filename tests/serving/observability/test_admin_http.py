"""The status port: pages, what is not there, and a port that is taken."""

import socket
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress

import pytest

from serving.observability.admin_http import MAX_CONNECTIONS, HttpResponse, StatusServer
from tests.support.waiting import wait_until


@pytest.fixture
def server():
    pages = {
        "/healthz": lambda: HttpResponse(200, "text/plain", b"alive\n"),
        "/readyz": lambda: HttpResponse(503, "text/plain", b"not ready\n"),
    }
    server = StatusServer("127.0.0.1", 0, pages)
    yield server
    server.close()


def fetch(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_pages_are_served_with_their_code_and_type(server):
    assert fetch(server, "/healthz") == (200, "text/plain", b"alive\n")
    assert fetch(server, "/healthz?verbose") == (200, "text/plain", b"alive\n")
    assert fetch(server, "/readyz") == (503, "text/plain", b"not ready\n")
    assert fetch(server, "/else") == (404, "text/plain", b"pages: /healthz, /readyz\n")


def test_a_taken_port_is_named(server):
    with pytest.raises(OSError, match=rf"127\.0\.0\.1:{server.port}: .*; choose another --status-port"):
        StatusServer("127.0.0.1", server.port, {})


def test_connections_that_never_end_their_request_shut_nobody_out(server):
    num_before = threading.active_count()
    address = ("127.0.0.1", server.port)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(3 * MAX_CONNECTIONS)
        ]

        def are_oldest_closed():
            for connection in opened:
                with suppress(OSError):
                    connection.sendall(b"X")  # else each is closed as idle
            return threading.active_count() <= num_before + MAX_CONNECTIONS

        assert fetch(server, "/healthz") == (200, "text/plain", b"alive\n")
        wait_until(are_oldest_closed, "the oldest connections closed", timeout_s=30)
        assert fetch(server, "/healthz") == (200, "text/plain", b"alive\n")
