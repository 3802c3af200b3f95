"""The client library: one long-lived channel, limits and retries set, errors with their reason.

In a program that is traced with OpenTelemetry each call is a span, and the service continues its trace.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import grpc

from listing_vision_client.errors import CallFailed, read_error_details
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.api.limits import DEFAULT_TIMEOUT_S, MESSAGE_LIMIT_BYTES
from serving.client.stream import ListingResult, StreamedListings
from serving.observability import tracing

__all__ = ["Access", "AsyncListingVisionClient", "CallFailed", "ClientTls", "ListingToClassify", "ListingVisionClient"]

_CLASSIFY_METHOD = "/listing.vision.v1.ListingVisionService/ClassifyListing"
_MODEL_METHOD = "/listing.vision.v1.ListingVisionService/GetModel"

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "listing.vision.v1.ListingVisionService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                # A gateway that stops ends calls that it has not started with CANCELLED (grpc.aio); a
                # caller's own cancellation is never retried.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    # Above the default of 256 KiB gRPC commits a call at once and never retries it.
    ("grpc.per_rpc_retry_buffer_size", MESSAGE_LIMIT_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 30_000),
]


class ListingToClassify(NamedTuple):
    """One listing to classify on a stream."""

    photos: Sequence[bytes]
    """Encoded photos."""
    listing_id: str = ""
    num_alternatives: int | None = None


def _build_request(photos: Sequence[bytes], listing_id: str, num_alternatives: int | None) -> pb.ClassifyListingRequest:
    return pb.ClassifyListingRequest(
        listing_id=listing_id,
        photos=[pb.Photo(content=photo) for photo in photos],
        alternative_count=num_alternatives,
    )


def _to_call_failed(error: grpc.RpcError) -> CallFailed:
    code, message = error.code(), error.details() or ""
    details = read_error_details(error)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and not details.reason:
        message = f"{message}; a request may hold {MESSAGE_LIMIT_BYTES >> 20} MiB: send fewer or smaller photos"
    return CallFailed(code=code, message=message, details=details)


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """TLS of a caller: whom it trusts, and its own certificate."""

    ca: Path | None = None
    """PEM of the CA that signed the service's certificate; None: gRPC's default trust."""
    certificate: Path | None = None
    """PEM of the caller's own certificate, with `key`, if the service requires one (mTLS)."""
    key: Path | None = None

    def create_credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError: a file cannot be read."""
        read = [path.read_bytes() if path else None for path in (self.ca, self.key, self.certificate)]
        return grpc.ssl_channel_credentials(*read)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Credentials that a service requires of its callers."""

    tls: ClientTls | None = None
    """None: plain text."""
    token: str | None = None
    """Bearer token; readable on the network without TLS."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read LISTING_VISION_TOKEN, LISTING_VISION_CA, LISTING_VISION_CLIENT_CERTIFICATE, LISTING_VISION_CLIENT_KEY;
        LISTING_VISION_TLS=1 speaks TLS with the default trust."""
        found = [os.environ.get(f"LISTING_VISION_{name}") for name in ("CA", "CLIENT_CERTIFICATE", "CLIENT_KEY")]
        ca, certificate, key = (Path(value) if value else None for value in found)
        use_tls = any(found) or os.environ.get("LISTING_VISION_TLS") == "1"
        tls = ClientTls(ca=ca, certificate=certificate, key=key) if use_tls else None
        return cls(tls=tls, token=os.environ.get("LISTING_VISION_TOKEN"))

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """Metadata of every call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []


class ListingVisionClient:
    """Blocking client, safe to share between threads. Close it, or use it in a `with`."""

    def __init__(self, address: str, access: Access | None = None) -> None:
        """Args: access: None: plain text and no token."""
        access = access or Access()
        self._metadata = access.metadata
        self._channel = (
            grpc.secure_channel(address, access.tls.create_credentials(), options=_OPTIONS)
            if access.tls
            else grpc.insecure_channel(address, options=_OPTIONS)
        )
        self._stub = pb_grpc.ListingVisionServiceStub(self._channel)

    def classify(
        self,
        photos: Sequence[bytes],
        *,
        listing_id: str = "",
        num_alternatives: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> pb.ClassifyListingResponse:
        """Return the suggestion for one listing's encoded photos.

        Raises:
            CallFailed: with the service's reason.
        """
        request = _build_request(photos, listing_id, num_alternatives)
        try:
            with tracing.client_span(_CLASSIFY_METHOD) as headers:
                response: pb.ClassifyListingResponse = self._stub.ClassifyListing(
                    request, timeout=timeout_s, metadata=[*self._metadata, *headers]
                )
            return response
        except grpc.RpcError as error:
            raise _to_call_failed(error) from error

    def classify_stream(
        self, listings: Iterable[ListingToClassify], *, timeout_s: float | None = None
    ) -> Iterator[ListingResult[ListingToClassify]]:
        """Yield the result of each listing as soon as it is known, in any order; both sides are lazy.

        Listings are taken as fast as the service reads them. A temporary refusal is retried after the delay
        that the service names, five times at most; a final refusal is yielded as an error.

        Args:
            listings: to classify.
            timeout_s: timeout of the whole stream; None: none.

        Raises:
            CallFailed: the stream itself failed; listings without a result may be sent on another one.
        """
        streamed = StreamedListings(
            listings, lambda one: _build_request(one.photos, one.listing_id, one.num_alternatives)
        )
        # No span: it would stay open while the caller does something else.
        headers = [*self._metadata, *tracing.trace_headers()]
        responses = self._stub.ClassifyListings(streamed.iter_requests(), timeout=timeout_s, metadata=headers)
        try:
            yield from streamed.iter_results(responses)
        except grpc.RpcError as error:
            raise _to_call_failed(error) from error
        finally:
            responses.cancel()

    def get_model(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> pb.GetModelResponse:
        """Return the serving model. Raises CallFailed."""
        try:
            with tracing.client_span(_MODEL_METHOD) as headers:
                response: pb.GetModelResponse = self._stub.GetModel(
                    pb.GetModelRequest(), timeout=timeout_s, metadata=[*self._metadata, *headers]
                )
            return response
        except grpc.RpcError as error:
            raise _to_call_failed(error) from error

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncListingVisionClient:
    """Client for asyncio; create it inside the running loop. Close it, or use it in an `async with`."""

    def __init__(self, address: str, access: Access | None = None) -> None:
        """As `ListingVisionClient`."""
        access = access or Access()
        self._metadata = access.metadata
        self._channel = (
            grpc.aio.secure_channel(address, access.tls.create_credentials(), options=_OPTIONS)
            if access.tls
            else grpc.aio.insecure_channel(address, options=_OPTIONS)
        )
        self._stub = pb_grpc.ListingVisionServiceStub(self._channel)

    async def classify(
        self,
        photos: Sequence[bytes],
        *,
        listing_id: str = "",
        num_alternatives: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> pb.ClassifyListingResponse:
        """As `ListingVisionClient.classify`."""
        request = _build_request(photos, listing_id, num_alternatives)
        try:
            with tracing.client_span(_CLASSIFY_METHOD) as headers:
                response: pb.ClassifyListingResponse = await self._stub.ClassifyListing(
                    request, timeout=timeout_s, metadata=[*self._metadata, *headers]
                )
            return response
        except grpc.aio.AioRpcError as error:
            raise _to_call_failed(error) from error

    async def get_model(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> pb.GetModelResponse:
        """As `ListingVisionClient.get_model`."""
        try:
            with tracing.client_span(_MODEL_METHOD) as headers:
                response: pb.GetModelResponse = await self._stub.GetModel(
                    pb.GetModelRequest(), timeout=timeout_s, metadata=[*self._metadata, *headers]
                )
            return response
        except grpc.aio.AioRpcError as error:
            raise _to_call_failed(error) from error

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
