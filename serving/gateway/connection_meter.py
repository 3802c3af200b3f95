"""Bytes of messages that gRPC has received in part, by connection; gRPC itself does not tell.

The kernel counts the bytes that a TCP connection has received. Without those of the messages that are complete, they
are the bytes that wait for the rest of their message.
"""

import contextlib
import os
import socket
import struct
from dataclasses import dataclass

__all__ = ["ConnectionMeter"]

_DESCRIPTORS = "/proc/self/fd"
_BYTES_RECEIVED_OFFSET = 128
"""Offset of `tcpi_bytes_received` in `struct tcp_info` (linux/tcp.h), since Linux 4.1."""
_MAX_CONNECTIONS = 2048
"""Above it, closed connections are dropped."""
_FRAMING = 1.02
"""Bytes on the wire for each byte of a message: HTTP/2 frames of 16 KiB and TLS records add less than 1 %."""


@dataclass
class _Connection:
    descriptor: int
    num_received: int
    num_waiting: float = 0.0


class ConnectionMeter:
    """Only for TCP on Linux; other connections count as having received nothing."""

    def __init__(self) -> None:
        self._connections: dict[tuple[str, int], _Connection] = {}

    def watch(self, peer: str) -> None:
        """Begin to count on a connection, as `ServicerContext.peer` names it."""
        address = _parse_peer(peer)
        if address is None or address in self._connections:
            return
        if len(self._connections) >= _MAX_CONNECTIONS:
            for known, connection in list(self._connections.items()):
                self._update(known, connection)  # drops those that are closed
        descriptor = _find_descriptor(address)
        received = None if descriptor is None else _read_num_received(descriptor, address)
        if descriptor is not None and received is not None:
            self._connections[address] = _Connection(descriptor, received)

    def count_message(self, peer: str, num_bytes: int) -> None:
        """Note that a message is complete."""
        address = _parse_peer(peer)
        if address in self._connections:
            connection = self._connections[address]
            self._update(address, connection)
            # Never below 0: rounding must not add up to a credit.
            connection.num_waiting = max(0.0, connection.num_waiting - _FRAMING * num_bytes)

    def measure(self, peer: str) -> int:
        """Return the bytes that wait on a connection for the rest of their message."""
        address = _parse_peer(peer)
        if address not in self._connections:
            return 0
        self._update(address, self._connections[address])
        return int(self._connections[address].num_waiting) if address in self._connections else 0

    def discard(self, peer: str, num_bytes: float) -> None:
        """Note that bytes will not become a message, because their call has ended."""
        address = _parse_peer(peer)
        if address in self._connections:
            connection = self._connections[address]
            connection.num_waiting = max(0.0, connection.num_waiting - num_bytes)

    def _update(self, address: tuple[str, int], connection: _Connection) -> None:
        received = _read_num_received(connection.descriptor, address)
        if received is None:  # closed
            del self._connections[address]
            return
        connection.num_waiting += received - connection.num_received
        connection.num_received = received


def _parse_peer(peer: str) -> tuple[str, int] | None:
    """Return host and port of `ipv4:HOST:PORT` or `ipv6:%5BHOST%5D:PORT`; None for other kinds."""
    kind, _, rest = peer.partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.replace("%5B", "").replace("%5D", "").strip("[]"), int(port)


def _find_descriptor(address: tuple[str, int]) -> int | None:
    if not os.path.isdir(_DESCRIPTORS):
        return None
    # A new connection often has the highest number.
    for descriptor in sorted(map(int, os.listdir(_DESCRIPTORS)), reverse=True):
        with contextlib.suppress(OSError):
            is_socket = os.readlink(f"{_DESCRIPTORS}/{descriptor}").startswith("socket:")
            if is_socket and _get_peer(descriptor) == address:
                return descriptor
    return None


def _get_peer(descriptor: int) -> tuple[str, int] | None:
    connection = socket.socket(fileno=descriptor)  # asks the kernel for its family
    try:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        host, port = connection.getpeername()[:2]
        return str(host).removeprefix("::ffff:"), int(port)
    finally:
        connection.detach()  # the descriptor is gRPC's


def _read_num_received(descriptor: int, address: tuple[str, int]) -> int | None:
    """Return the bytes that the connection has received; None if it is closed."""
    try:
        if _get_peer(descriptor) != address:
            return None
        connection = socket.socket(fileno=descriptor)
        try:
            raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED_OFFSET + 8)
        finally:
            connection.detach()
        return int(struct.unpack_from("<Q", raw, _BYTES_RECEIVED_OFFSET)[0])
    except (OSError, struct.error):
        return None
