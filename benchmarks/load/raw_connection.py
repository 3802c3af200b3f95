"""A connection for callers that no client library plays: HTTP/2 by hand (RFC 9113), one call at a time."""

import contextlib
import socket
import struct
from collections.abc import Mapping

__all__ = ["DATA", "RawConnection", "frame_message"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
FRAME_BYTES = 16_384


class RawConnection:
    """Sends what the service's windows allow, and nothing is copied or queued before."""

    def __init__(
        self,
        port: int,
        *,
        method: str = "ClassifyListing",
        host: str = "127.0.0.1",
        source: str = "",
        timeout_s: float = 60,
        token: str | None = None,
    ) -> None:
        self._socket = socket.create_connection((host, port), source_address=(source, 0) if source else None)
        self._headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/listing.vision.v1.ListingVisionService/{method}",
            ":authority": host,
            "te": "trailers",
            "content-type": "application/grpc",
            "grpc-timeout": f"{round(timeout_s * 1000)}m",
        }
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._stream = -1
        self._window = self._stream_window = self._initial_window = 65_535
        self._received = b""
        self._socket.sendall(PREFACE + _frame(SETTINGS))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def begin_call(self) -> None:
        self._stream += 2
        self._stream_window = self._initial_window
        self._socket.sendall(_frame(HEADERS, _encode_headers(self._headers), stream=self._stream, flags=END_HEADERS))

    def send(self, data: memoryview, *, ends: bool = False) -> int:
        """Send as much as the windows allow, and return how much; with `ends` its end is that of the call's message."""
        num_sent = 0
        while (room := min(self._window, self._stream_window, len(data) - num_sent, FRAME_BYTES)) > 0:
            is_last = ends and num_sent + room == len(data)
            payload = data[num_sent : num_sent + room]
            self._socket.sendall(_frame(DATA, payload, stream=self._stream, flags=END_STREAM if is_last else 0))
            num_sent += room
            self._window -= room
            self._stream_window -= room
        return num_sent

    def read_frame(self) -> tuple[int, bool]:
        """Wait for a frame, and return its kind, and whether the service has ended the call with it."""
        head = self._read(9)
        length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        stream = int.from_bytes(head[5:9]) & 0x7FFFFFFF
        payload = self._read(length)
        if kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload)
        elif kind == WINDOW_UPDATE and stream == self._stream:
            self._stream_window += int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            self._apply_settings(payload)
        elif kind == PING and not flags & ACK:
            self._socket.sendall(_frame(PING, payload, flags=ACK))
        elif kind == DATA and length:
            self._socket.sendall(_frame(WINDOW_UPDATE, length.to_bytes(4)))
        is_end = kind == RST_STREAM or (kind == HEADERS and bool(flags & END_STREAM))
        return kind, kind == GOAWAY or (is_end and stream == self._stream)

    def call(self, message: memoryview) -> bool:
        """Make one call with a message of `frame_message`; return whether it was answered, not refused.

        Raises:
            EOFError: the service closed the connection.
        """
        self.begin_call()
        num_sent, is_answered, is_ended = 0, False, False
        while not is_ended:
            num_sent += self.send(message[num_sent:], ends=True)
            kind, is_ended = self.read_frame()
            is_answered |= kind == DATA
        if num_sent < len(message):
            self._socket.sendall(_frame(RST_STREAM, CANCEL.to_bytes(4), stream=self._stream))
        return is_answered

    def _apply_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == 4:  # initial window
                self._stream_window += value - self._initial_window
                self._initial_window = value
        self._socket.sendall(_frame(SETTINGS, flags=ACK))

    def _read(self, num_bytes: int) -> bytes:
        while len(self._received) < num_bytes:
            part = self._socket.recv(65_536)
            if not part:
                raise EOFError("the service closed the connection")
            self._received += part
        found, self._received = self._received[:num_bytes], self._received[num_bytes:]
        return found


def frame_message(message: bytes) -> memoryview:
    """Return a message with gRPC's prefix: not compressed, and its length."""
    return memoryview(b"\0" + struct.pack(">I", len(message)) + message)


def _frame(kind: int, payload: bytes | memoryview = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return b"".join((len(payload).to_bytes(3), bytes((kind, flags)), stream.to_bytes(4), payload))


def _encode_headers(headers: Mapping[str, str]) -> bytes:
    """HPACK (RFC 7541, section 6.2.2): literals without indexing and without Huffman coding."""
    return b"".join(b"\0" + _encode_text(name) + _encode_text(value) for name, value in headers.items())


def _encode_text(text: str) -> bytes:
    assert len(text) < 127 + 128
    length = bytes([len(text)]) if len(text) < 127 else bytes([127, len(text) - 127])
    return length + text.encode()
