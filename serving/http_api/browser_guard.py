"""Refuse what a browser sends for another site, and tell browsers how far to trust the responses."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http_api.errors import HttpRefusal
from serving.processes.sockets import is_loopback

__all__ = ["BrowserGuard", "SecurityHeaders", "list_allowed_hosts"]

_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_HSTS = "max-age=31536000"
_DEFAULT_PORT = re.compile(r":(80|443)$")
"""Origins leave it out; a proxy may add it to `Host`."""
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def list_allowed_hosts(listen_host: str, hosts: Iterable[str]) -> frozenset[str] | None:
    """Return the names, beside those of loopback, by which the service may be called; None: any name.

    A service that only this machine reaches is called by other names where a page of another site has its own name
    resolve to this machine (DNS rebinding).
    """
    names = frozenset(host.lower() for host in hosts)
    return names if names or is_loopback(listen_host) else None


class BrowserGuard:
    """Refuses requests to a foreign host, and requests with effects that another site's page makes a browser send.

    Programs send neither `Origin` nor `Sec-Fetch-Site` and are not concerned.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: frozenset[str] | None) -> None:
        """Args: allowed_hosts: see `list_allowed_hosts`."""
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._find_refusal(scope["method"], Headers(scope=scope))):
            await refusal.to_response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _find_refusal(self, method: str, headers: Mapping[str, str]) -> HttpRefusal | None:
        host = headers.get("host", "")
        if not self._is_allowed(host):
            return _refuse(f"the host {host[:100]!r} is not served here; --http-hosts allows it")
        if method in _SAFE_METHODS:
            return None
        if headers.get("sec-fetch-site") == "cross-site":
            return _refuse("a browser sent this request for another site")
        origin = headers.get("origin")
        if origin is not None and not self._is_own_origin(origin, host):
            return _refuse(f"a browser sent this request for the site {origin[:100]!r}; --http-hosts allows its host")
        return None

    def _is_allowed(self, host: str) -> bool:
        if self._allowed_hosts is None:
            return True
        name = _strip_port(host)
        return name in self._allowed_hosts or is_loopback(name)

    def _is_own_origin(self, origin: str, host: str) -> bool:
        """Whether it has the request's host; the scheme may differ where something in front speaks TLS."""
        _, _, origin_host = origin.lower().rpartition("://")
        return origin_host == _DEFAULT_PORT.sub("", host.lower()) or _strip_port(origin_host) in (
            self._allowed_hosts or ()
        )


class SecurityHeaders:
    """Adds headers to every response."""

    def __init__(self, app: ASGIApp, *, has_tls: bool) -> None:
        self._app = app
        self._headers = {**_SECURITY_HEADERS, **({"strict-transport-security": _HSTS} if has_tls else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _refuse(message: str) -> HttpRefusal:
    return HttpRefusal(reason="CROSS_SITE_REQUEST", message=message)


def _strip_port(host: str) -> str:
    name = host.lower()
    with suppress(ValueError):
        ipaddress.ip_address(name)  # IPv6 without brackets has colons of its own
        return name
    head, colon, port = name.rpartition(":")
    return head if colon and port.isdigit() else name
