"""A minimal HTTP/1.1 client, so that it takes no more of the machine than gRPC's."""

import asyncio
import re

from benchmarks.load import CallError

__all__ = ["HttpConnection"]

_HEAD_LIMIT_BYTES = 1 << 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CODES = {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}

Socket = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpConnection:
    """One socket per call in flight, kept open for the next, since HTTP/1.1 carries one call at a time."""

    def __init__(self, address: str, path: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/octet-stream\r\nContent-Length: "
        ).encode()
        self._idle: list[Socket] = []

    async def call(self, request: bytes, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                status, body = await self._exchange(request)
        except TimeoutError as error:
            raise CallError(code="DEADLINE_EXCEEDED") from error
        except (OSError, EOFError) as error:
            raise CallError(code="UNAVAILABLE") from error
        if status != 200:
            raise CallError(code=_CODES.get(status, f"HTTP_{status}"))
        return body

    async def close(self) -> None:
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()
            await writer.wait_closed()

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = self._idle.pop() if self._idle else await self._open()
        try:
            writer.write(self._head + str(len(request)).encode() + b"\r\n\r\n")
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            assert length, f"the peer gives no content-length: {head!r}"
            body = await reader.readexactly(int(length.group(1)))
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1]), body

    async def _open(self) -> Socket:
        return await asyncio.open_connection(self._host, self._port, limit=_HEAD_LIMIT_BYTES)
