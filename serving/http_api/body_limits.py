"""Limits of request bodies: of one body, and of all bodies in memory."""

from collections import Counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.limits import REQUEST_LIMIT_BYTES
from serving.http_api.connections import group_address
from serving.http_api.errors import HttpRefusal

__all__ = ["BODIES_LIMIT_BYTES", "BODY_LIMIT_BYTES", "BodyLimits"]

BODY_LIMIT_BYTES = REQUEST_LIMIT_BYTES * 4 // 3 + (1 << 20)
"""Largest body: the largest message, in base64."""
BODIES_LIMIT_BYTES = 8 * BODY_LIMIT_BYTES
"""All bodies in memory together, half of them for one address. Whoever would exceed it is told to try again, so that
many slow or large uploads cannot use up the machine's memory."""
_MAX_DIGITS = 15
"""Longest Content-Length that is parsed."""


class BodyLimits:
    """Refuses a body that is too long by its header, stops reading one without that header, and counts all of them."""

    def __init__(
        self, app: ASGIApp, *, body_limit_bytes: int = BODY_LIMIT_BYTES, bodies_limit_bytes: int = BODIES_LIMIT_BYTES
    ) -> None:
        self._app = app
        self._body_limit_bytes = body_limit_bytes
        self._bodies_limit_bytes = bodies_limit_bytes
        self._num_held_bytes = 0
        self._num_held_by_network: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        num_read = 0
        network = group_address(scope["client"][0]) if scope.get("client") else ""

        async def receive_limited() -> Message:
            nonlocal num_read
            message = await receive()
            size = len(message.get("body", b""))
            num_read += size
            self._num_held_bytes += size
            self._num_held_by_network[network] += size
            if num_read > self._body_limit_bytes:
                raise self._too_large()
            is_share_used = self._num_held_by_network[network] > self._bodies_limit_bytes // 2
            if is_share_used or self._num_held_bytes > self._bodies_limit_bytes:
                raise HttpRefusal(reason="TOO_BUSY", message="too many uploads at once; try again", retry_delay_s=1)
            return message

        try:
            self._check_headers(Headers(scope=scope))
            await self._app(scope, receive_limited, send)
        except HttpRefusal as refusal:
            await refusal.to_response()(scope, receive, send)
        finally:
            self._num_held_bytes -= num_read
            self._num_held_by_network[network] -= num_read
            if not self._num_held_by_network[network]:
                del self._num_held_by_network[network]

    def _check_headers(self, headers: Headers) -> None:
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:
            # Two servers in a row could disagree about where the body ends (RFC 9112, section 6.3).
            raise HttpRefusal(
                reason="BODY_UNREADABLE",
                message="the body has both Content-Length and Transfer-Encoding; send one of them",
                headers={"Connection": "close"},
            )
        if length is not None and (len(length) > _MAX_DIGITS or int(length) > self._body_limit_bytes):
            raise self._too_large(value=length)

    def _too_large(self, **metadata: str) -> HttpRefusal:
        return HttpRefusal(
            reason="REQUEST_TOO_LARGE",
            message=f"a body may have {self._body_limit_bytes} bytes; send fewer or smaller photos",
            metadata={"limit": self._body_limit_bytes, **metadata},
        )
