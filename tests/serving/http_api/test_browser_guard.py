import asyncio

import pytest
from starlette.responses import PlainTextResponse

from serving.http_api.browser_guard import BrowserGuard, SecurityHeaders, list_allowed_hosts


def call(app, method="POST", **headers):
    """Status and headers of a response."""
    sent = []

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "headers": raw}
    asyncio.run(app(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def guard(listen_host, *hosts):
    return BrowserGuard(PlainTextResponse("ok"), allowed_hosts=list_allowed_hosts(listen_host, hosts))


@pytest.mark.parametrize(
    ("listen_host", "hosts", "host", "status"),
    [
        ("127.0.0.1", (), "127.0.0.1:8080", 200),
        ("127.0.0.1", (), "localhost", 200),
        ("::1", (), "[::1]:8080", 200),
        ("127.0.0.1", (), "evil.example:8080", 403),
        ("127.0.0.1", (), "127.0.0.1.evil.example", 403),
        ("127.0.0.1", (), "", 403),
        ("127.0.0.1", ("Shop.example",), "shop.EXAMPLE:8080", 200),
        ("0.0.0.0", (), "anything.example", 200),
        ("0.0.0.0", ("shop.example",), "other.example", 403),
        ("0.0.0.0", ("shop.example",), "127.0.0.1", 200),
    ],
)
def test_only_known_hosts_are_served(listen_host, hosts, host, status):
    for method in ("GET", "POST"):
        assert call(guard(listen_host, *hosts), method, host=host)[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8080"}, 200),
        ({"origin": "https://127.0.0.1:8080", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": "http://127.0.0.1:9090"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "none"}, 200),
    ],
)
def test_requests_with_effects_come_from_the_own_page(headers, status):
    app = guard("127.0.0.1")
    assert call(app, "POST", host="127.0.0.1:8080", **headers)[0] == status
    assert call(app, "GET", host="127.0.0.1:8080", **headers)[0] == 200


def test_the_default_port_may_be_left_out():
    app = guard("0.0.0.0")
    assert call(app, host="shop.example:443", origin="https://shop.example")[0] == 200
    assert call(app, host="shop.example:8443", origin="https://shop.example")[0] == 403


def test_an_allowed_host_may_be_the_origin_of_a_proxy():
    app = guard("0.0.0.0", "shop.example", "gateway.internal")
    assert call(app, host="gateway.internal", origin="https://shop.example")[0] == 200
    assert call(app, host="gateway.internal", origin="https://other.example")[0] == 403


@pytest.mark.parametrize("has_tls", [False, True])
def test_browsers_are_told_to_use_nothing_but_https_where_there_is_tls(has_tls):
    status, headers = call(SecurityHeaders(PlainTextResponse("ok"), has_tls=has_tls), "GET")
    assert status == 200
    assert (b"strict-transport-security" in headers) == has_tls
    assert headers[b"x-content-type-options"] == b"nosniff"
