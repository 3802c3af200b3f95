"""Connections that send and return raw bytes, over gRPC; other protocols have the same interface."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from listing_vision_client.errors import read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb

__all__ = ["CLASSIFY_METHOD", "CallError", "Connect", "Connection", "connect_grpc"]

CLASSIFY_METHOD = f"/{pb.DESCRIPTOR.services_by_name['ListingVisionService'].full_name}/ClassifyListing"
CONNECT_TIMEOUT_S = 10.0

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Channels to one address share a connection otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    # Every response is counted, so gRPC must not retry.
    ("grpc.enable_retries", 0),
    # Reconnect at once, so that recovery times do not include gRPC's backoff.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
]


# Not frozen: Python itself writes an exception's traceback and cause.
@dataclass(kw_only=True, eq=False)
class CallError(Exception):
    """A call that ended with an error."""

    code: str
    """Name of the gRPC status code."""
    reason: str = ""
    """Reason of the service, such as `TOO_BUSY`; empty when gRPC itself ended the call."""

    def __str__(self) -> str:
        return f"{self.code}/{self.reason}" if self.reason else self.code


class Connection(Protocol):
    async def call(self, request: bytes, timeout_s: float) -> bytes:
        """Return the serialised response to a serialised request.

        Raises:
            CallError: with `DEADLINE_EXCEEDED` after `timeout_s`.
        """
        ...

    async def close(self) -> None: ...


Connect = Callable[[str], Awaitable[Connection]]
"""Opens a new connection to HOST:PORT; raises OSError where no server listens."""


async def connect_grpc(address: str, token: str | None = None) -> Connection:
    """Connect to a gateway; every call has the token, where one is given.

    Raises:
        ConnectionError: no server listens.
    """
    channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await channel.channel_ready()
    except TimeoutError:
        await channel.close()
        raise ConnectionError(f"no server responds at {address} within {CONNECT_TIMEOUT_S:g} s") from None
    return _GrpcConnection(channel, token)


class _GrpcConnection:
    def __init__(self, channel: grpc.aio.Channel, token: str | None) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        # Without serialisers bytes go out and come in as they are.
        self._classify: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY_METHOD)

    async def call(self, request: bytes, timeout_s: float) -> bytes:
        try:
            return await self._classify(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise CallError(code=error.code().name, reason=read_error_details(error).reason) from error

    async def close(self) -> None:
        await self._channel.close()
