"""A caller that announces a message and never sends its last byte: HTTP/2 by hand, as no client library does this."""

import contextlib
import socket
import struct
import threading
from collections.abc import Mapping

__all__ = ["StalledUpload"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class StalledUpload:
    """Sends a message of a call up to its last byte, as fast as the service's windows allow."""

    def __init__(
        self,
        port: int,
        num_bytes: int,
        *,
        method: str = "ClassifyListing",
        host: str = "127.0.0.1",
        source: str = "",
        timeout_s: int = 60,
        token: str | None = None,
    ) -> None:
        self._connection = socket.create_connection((host, port), source_address=(source, 0) if source else None)
        self.num_left = num_bytes + 5 - 1
        self._num_bytes = num_bytes
        self._headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/listing.vision.v1.ListingVisionService/{method}",
            ":authority": host,
            "te": "trailers",
            "content-type": "application/grpc",
            "grpc-timeout": f"{timeout_s}S",
        }
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._windows = {0: 65_535, 1: 65_535}
        self._initial_window = 65_535
        self.is_refused = False
        """Whether the service has ended the call."""
        self.num_sent = 0

    def start(self) -> None:
        frames = [_frame(SETTINGS), _frame(HEADERS, _encode_headers(self._headers), stream=1, flags=END_HEADERS)]
        self._connection.sendall(PREFACE + b"".join(frames))
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _run(self) -> None:
        message = b"\0" + struct.pack(">I", self._num_bytes)
        try:
            while True:
                self._send_what_fits(message[self.num_sent : 5])
                self._read_frame()
        except (OSError, EOFError):
            self.is_refused = True

    def _send_what_fits(self, prefix: bytes) -> None:
        while self.num_left and (room := min(self._windows[0], self._windows[1], self.num_left, 16_384)) > 0:
            payload = (prefix + b"x" * room)[:room]
            prefix = prefix[room:]
            self._connection.sendall(_frame(DATA, payload, stream=1))
            self.num_sent += room
            self.num_left -= room
            self._windows[0] -= room
            self._windows[1] -= room

    def _read_frame(self) -> None:
        head = self._read(9)
        length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        stream = int.from_bytes(head[5:9]) & 0x7FFFFFFF
        payload = self._read(length)
        if kind == WINDOW_UPDATE:
            self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, length, 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == 4:  # initial window
                    self._windows[1] += value - self._initial_window
                    self._initial_window = value
            self._connection.sendall(_frame(SETTINGS, flags=ACK))
        elif kind == PING and not flags & ACK:
            self._connection.sendall(_frame(PING, payload, flags=ACK))
        elif kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            self.is_refused = True

    def _read(self, num_bytes: int) -> bytes:
        data = b""
        while len(data) < num_bytes:
            part = self._connection.recv(num_bytes - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def _frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _encode_headers(headers: Mapping[str, str]) -> bytes:
    """HPACK (RFC 7541, section 6.2.2): literals without indexing and without Huffman coding."""
    return b"".join(b"\0" + _encode_text(name) + _encode_text(value) for name, value in headers.items())


def _encode_text(text: str) -> bytes:
    assert len(text) < 127 + 128
    length = bytes([len(text)]) if len(text) < 127 else bytes([127, len(text) - 127])
    return length + text.encode()
