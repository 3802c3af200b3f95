"""Deadlines and limits of HTTP connections, so that silent ones cannot shut out others.

uvicorn has a deadline for idle connections alone: a request whose headers or body never arrive would keep its
connection for ever, and with it a place under uvicorn's `limit_concurrency`. Here every phase of a connection has a
deadline, one address has half of the connections at most, and a new connection that is one too many ends the oldest
waiting one of the address that has the most.
"""

import asyncio
import enum
import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.http_api.errors import error_response

__all__ = ["ConnectionLimits", "ConnectionTable", "LimitedProtocol", "group_address"]

_CLOSE_TIMEOUT_S = 5.0
"""Longest time for a peer to take the last response."""
_SHUTDOWN_DELAY_S = 0.5
"""How long a server that stops waits for a request that may be on its way."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """Deadlines, and the number of connections."""

    max_connections: int = 1024
    """In any phase; half of them for one address. h11 holds up to 64 KiB of headers for each."""
    handshake_timeout_s: float = 10.0
    """For TLS."""
    header_timeout_s: float = 10.0
    """From the connection, or the first byte of a further request, to the end of the headers."""
    body_timeout_s: float = 60.0
    """For a body that arrives more slowly than `min_body_bytes_per_s`."""
    min_body_bytes_per_s: float = 64 << 10
    """In the first `body_timeout_s`, and in each further quarter of it."""
    idle_timeout_s: int = 75
    """Between two requests. More than the 60 s of common load balancers, which would otherwise send a request to a
    connection that is being closed."""
    response_timeout_s: float = 120.0
    """From the end of the body to the last byte of the response."""


class _Phase(enum.Enum):
    HEADERS = "the headers arrive"
    BODY = "the body arrives"
    RESPONSE = "the response is computed and sent"
    IDLE = "between two requests"


class ConnectionTable:
    """The open connections, and which of them wait for their peer."""

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._networks: dict[LimitedProtocol, str] = {}
        self._counts: Counter[str] = Counter()
        self._waiting: dict[LimitedProtocol, None] = {}  # the oldest first

    def add(self, connection: "LimitedProtocol", address: str) -> None:
        """Add a connection; end another one if it is one too many, or this one if all others are being served."""
        network = group_address(address)
        is_share_used = self._counts[network] >= max(1, self._max_connections // 2)
        if is_share_used or len(self._networks) >= self._max_connections:
            victim = self._choose_victim(network if is_share_used else None)
            if victim is None:
                connection.transport.abort()
                return
            self.remove(victim)
            victim.transport.abort()
        self._networks[connection] = network
        self._counts[network] += 1

    def set_waiting(self, connection: "LimitedProtocol", is_waiting: bool) -> None:
        self._waiting.pop(connection, None)
        if is_waiting and connection in self._networks:
            self._waiting[connection] = None

    def remove(self, connection: "LimitedProtocol") -> None:
        self._waiting.pop(connection, None)
        if network := self._networks.pop(connection, None):
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]

    def _choose_victim(self, network: str | None) -> "LimitedProtocol | None":
        """Return the oldest waiting connection of a network; None: of the network that has the most of them."""
        if network is None:
            counts = Counter(self._networks[connection] for connection in self._waiting)
            network = counts.most_common(1)[0][0] if counts else None
        return next((connection for connection in self._waiting if self._networks[connection] == network), None)


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol with a deadline for each phase."""

    def __init__(self, *args: Any, limits: ConnectionLimits, table: ConnectionTable, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._table = table
        self._timer: asyncio.TimerHandle | None = None
        self._phase: tuple[_Phase, object] | None = None
        self._check_start_s = 0.0
        self._num_received_bytes = 0
        """Since `_check_start_s`."""
        self._is_shutting_down = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._table.add(self, self.client[0] if self.client else "")
        self._update_phase()

    def data_received(self, data: bytes) -> None:
        self._num_received_bytes += len(data)
        super().data_received(data)
        self._update_phase()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._table.remove(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._table.set_waiting(self, True)  # the peer does not read

    def resume_writing(self) -> None:
        super().resume_writing()
        self._table.set_waiting(self, self._find_phase() is not _Phase.RESPONSE)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(_CLOSE_TIMEOUT_S, self.transport.abort)

    def shutdown(self) -> None:
        """Close the connection after its request, or after a short time in which a request on its way may arrive."""
        if self._is_shutting_down or self._find_phase() in (_Phase.BODY, _Phase.RESPONSE):
            if not self.transport.is_closing():
                super().shutdown()
            return
        self._is_shutting_down = True
        self.loop.call_later(_SHUTDOWN_DELAY_S, self.shutdown)

    def send_400_response(self, msg: str) -> None:
        self._refuse(error_response("BODY_UNREADABLE", f"not a request of HTTP/1.1: {msg}"))

    def _find_phase(self) -> _Phase:
        if self.conn.their_state is h11.SEND_BODY:
            return _Phase.BODY
        if self.conn.their_state is not h11.IDLE:
            return _Phase.RESPONSE
        return _Phase.HEADERS if self.cycle is None or self.conn.trailing_data[0] else _Phase.IDLE

    def _update_phase(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_shutting_down and self.cycle and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        phase = self._find_phase()
        if self._phase == (phase, self.cycle):
            return
        self._phase, self._check_start_s, self._num_received_bytes = (phase, self.cycle), self.loop.time(), 0
        self._table.set_waiting(self, phase is not _Phase.RESPONSE or self.flow.write_paused)
        timeouts_s = {
            _Phase.HEADERS: self._limits.header_timeout_s,
            _Phase.BODY: self._limits.body_timeout_s,
            _Phase.RESPONSE: self._limits.response_timeout_s,
            _Phase.IDLE: None,  # uvicorn's own
        }
        self._set_timer(timeouts_s[phase])

    def _set_timer(self, timeout_s: float | None) -> None:
        self._cancel_timer()
        if timeout_s is not None:
            self._timer = self.loop.call_later(timeout_s, self._on_timeout)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        assert self._phase is not None
        phase = self._phase[0]
        is_refused = phase is _Phase.BODY and self.cycle.response_complete  # and the rest of the body is dropped
        if phase is _Phase.RESPONSE or is_refused:
            self.transport.abort()
        elif phase is _Phase.BODY and self._is_body_fast():
            self._check_start_s, self._num_received_bytes = self.loop.time(), 0
            self._set_timer(self._limits.body_timeout_s / 4)
        else:
            self._refuse(error_response("REQUEST_TIMEOUT", f"{phase.value} too slowly; send the request faster"))

    def _is_body_fast(self) -> bool:
        elapsed_s = self.loop.time() - self._check_start_s
        return self._num_received_bytes >= self._limits.min_body_bytes_per_s * elapsed_s

    def _refuse(self, response: Response) -> None:
        """Send a response of the server itself, and close the connection."""
        self._cancel_timer()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        headers = [*response.raw_headers, (b"connection", b"close")]
        events = (
            h11.Response(status_code=response.status_code, headers=headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self.loop.call_later(_CLOSE_TIMEOUT_S, self.transport.abort)


def group_address(address: str) -> str:
    """Return what one caller has: an IPv4 address, or a network of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
