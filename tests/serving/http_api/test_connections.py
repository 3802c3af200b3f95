"""The HTTP server over real sockets, with short deadlines; no gateway is needed for the page."""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
import time

import pytest

from serving.config import ServeOptions
from serving.http_api.connections import ConnectionLimits
from serving.http_api.process import HttpServer
from serving.http_api.upstream import Upstream
from serving.processes.sockets import open_listening_socket
from tests.support.certificates import Authority

HALF_HEADERS = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
HALF_BODY = (
    b"POST /v1/outcomes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
)
GET = b"GET /page.css HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def run_server(folder, tls=(None, None), **limits):
    """A port on which the server listens."""
    certificate, key = tls
    options = ServeOptions(
        bundle=folder, runtime_folder=folder, grace_period_s=2, tls_certificate=certificate, tls_key=key
    )
    listening = open_listening_socket("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = HttpServer(options, Upstream(folder), limits=ConnectionLimits(**limits))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def open_connections(port, num, data, source="127.0.0.1"):
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(num):
            connection = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
            opened.append(stack.enter_context(connection))
            connection.sendall(data)
        yield opened


def read_response(connection):
    """Status and body of a response."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def is_closed(connection):
    """Whether the server has ended a connection without a response."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("data", [b"", HALF_HEADERS, HALF_BODY], ids=["silent", "half a header", "half a body"])
def test_silent_connections_do_not_shut_out_others(tmp_path, data):
    limits = {"max_connections": 20, "header_timeout_s": 60, "body_timeout_s": 60}
    with run_server(tmp_path, **limits) as port, open_connections(port, 60, data) as silent:
        for _ in range(3):
            with open_connections(port, 1, GET) as (caller,):
                assert read_response(caller)[0] == 200
        assert all(is_closed(connection) for connection in silent[:40])


def test_the_address_with_the_most_waiting_connections_loses_first(tmp_path):
    with (
        run_server(tmp_path, max_connections=10, header_timeout_s=60) as port,
        open_connections(port, 3, HALF_HEADERS) as early,
        open_connections(port, 4, HALF_HEADERS, source="127.0.0.2"),
        open_connections(port, 1, HALF_HEADERS, source="127.0.0.3"),
        open_connections(port, 1, HALF_HEADERS, source="127.0.0.4"),
        open_connections(port, 1, HALF_HEADERS, source="127.0.0.5"),
        open_connections(port, 1, HALF_HEADERS, source="127.0.0.6"),
    ):
        for connection in early:
            connection.sendall(b"\r\n")
            assert read_response(connection)[0] == 200


def test_one_address_has_half_of_the_connections(tmp_path):
    with (
        run_server(tmp_path, max_connections=10, header_timeout_s=60) as port,
        open_connections(port, 8, HALF_HEADERS) as many,
        open_connections(port, 1, GET, source="127.0.0.2") as (other,),
    ):
        assert read_response(other)[0] == 200
        assert all(is_closed(connection) for connection in many[:3])
        for connection in many[3:]:
            connection.sendall(b"\r\n")
            assert read_response(connection)[0] == 200


def test_callers_who_do_not_read_do_not_shut_out_others(tmp_path):
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100  # more than the kernel buffers
    with run_server(tmp_path, max_connections=6) as port, open_connections(port, 12, requests):
        time.sleep(0.5)
        with open_connections(port, 1, GET) as (caller,):
            assert read_response(caller)[0] == 200


@pytest.mark.parametrize(
    ("limits", "data"), [({"header_timeout_s": 0.2}, HALF_HEADERS), ({"body_timeout_s": 0.2}, HALF_BODY)]
)
def test_what_does_not_arrive_in_time_is_408(tmp_path, limits, data):
    with run_server(tmp_path, **limits) as port, open_connections(port, 1, data) as (connection,):
        status, body = read_response(connection)
        assert (status, json.loads(body)["error"]["reason"]) == (408, "REQUEST_TIMEOUT")
        assert is_closed(connection)


def test_a_body_may_take_long_if_it_keeps_arriving(tmp_path):
    limits = {"body_timeout_s": 2, "min_body_bytes_per_s": 1}
    with run_server(tmp_path, **limits) as port, open_connections(port, 1, HALF_BODY) as (connection,):
        for _ in range(33):
            time.sleep(0.1)
            connection.sendall(b" " * 3)
        assert read_response(connection)[0] == 400  # it arrived, and is no JSON


def test_a_body_that_stops_after_a_fast_start_is_408(tmp_path):
    limits = {"body_timeout_s": 0.4, "min_body_bytes_per_s": 10}
    with run_server(tmp_path, **limits) as port, open_connections(port, 1, HALF_BODY + b" " * 90) as (connection,):
        assert read_response(connection)[0] == 408


def test_a_connection_serves_many_requests(tmp_path):
    with run_server(tmp_path, header_timeout_s=0.5) as port, open_connections(port, 1, GET) as (connection,):
        assert read_response(connection)[0] == 200
        time.sleep(1)  # longer than the deadline of headers, which begins with their first byte
        connection.sendall(GET)
        assert read_response(connection)[0] == 200
        connection.sendall(HALF_HEADERS)
        assert read_response(connection)[0] == 408


def test_what_is_not_http_is_refused_as_json(tmp_path):
    with run_server(tmp_path) as port, open_connections(port, 1, b"\x16\x03\x01 TLS\r\n\r\n") as (connection,):
        status, body = read_response(connection)
        assert (status, json.loads(body)["error"]["reason"]) == (400, "BODY_UNREADABLE")


def test_a_silent_tls_handshake_ends_and_responses_ask_for_https(tmp_path):
    authority = Authority(tmp_path, "test")
    certificate, key = authority.issue("server")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with (
        run_server(tmp_path, tls=(certificate, key), handshake_timeout_s=0.5) as port,
        open_connections(port, 3, b"\x16") as silent,
    ):
        with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, context=context)) as connection:
            connection.request("GET", "/page.css")
            response = connection.getresponse()
            assert (response.status, response.headers["Strict-Transport-Security"]) == (200, "max-age=31536000")
        assert all(is_closed(one) for one in silent)


def test_a_server_that_stops_answers_what_is_on_its_way(tmp_path):
    with contextlib.ExitStack() as stack:
        with run_server(tmp_path) as port:
            (connection,) = stack.enter_context(open_connections(port, 1, HALF_HEADERS))
            time.sleep(0.3)
            late = threading.Timer(0.3, connection.sendall, [b"\r\n"])
            late.start()
        late.join()
        status, _ = read_response(connection)
        assert status == 200
        assert is_closed(connection)
