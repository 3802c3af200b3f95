"""Channels to the service: addresses, credentials, and the options that retries, balancing and keep-alive need."""

import ipaddress
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from listing_vision_client.limits import MESSAGE_LIMIT_BYTES

__all__ = [
    "SERVICE_NAME",
    "Access",
    "Address",
    "CallHook",
    "ChannelOptions",
    "ClientTls",
    "Headers",
    "build_options",
    "build_target",
    "is_local",
]

SERVICE_NAME = "listing.vision.v1.ListingVisionService"

Address = str | Sequence[str]
"""`HOST:PORT`, any gRPC target (`dns:///vision.example:50051`, `ipv4:10.0.0.1:50051,10.0.0.2:50051`,
`unix:/run/vision`), or several `IP:PORT` of one family, in one string with commas or as a sequence. Calls go round all
addresses."""
ChannelOptions = Sequence[tuple[str, Any]]
Headers = Sequence[tuple[str, str]]
CallHook = Callable[[str], AbstractContextManager[Headers]]
"""Called with the method of each attempt, such as `/listing.vision.v1.ListingVisionService/GetModel`. The context is
open during the call, and yields headers to send: where a tracer opens its span."""

_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": SERVICE_NAME}],
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
    ],
    # The budget of retries: a failure takes 1 token of 200, a success gives 0.1 back, and below 100 nothing is retried.
    # A service that is away gets 100 retries at most, one that fails now and then a retry for every tenth success. The
    # kill of one gateway may fail 100 calls at once before retries stop.
    "retryThrottling": {"maxTokens": 200, "tokenRatio": 0.1},
}
_OPTIONS = {
    "grpc.max_send_message_length": MESSAGE_LIMIT_BYTES,
    "grpc.max_receive_message_length": MESSAGE_LIMIT_BYTES,
    # Above the default of 256 KiB gRPC commits a call at once and never retries it.
    "grpc.per_rpc_retry_buffer_size": MESSAGE_LIMIT_BYTES,
    "grpc.service_config": json.dumps(_SERVICE_CONFIG),
    # A connection that a firewall has dropped is noticed after 40 s; gateways allow a ping every 10 s. Pings without
    # data are not limited in number: a quiet stream sends no data.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.max_pings_without_data": 0,
    # A gateway process that is replaced resets the connections that it has not accepted. The default connects again
    # after 1 s, when all retries of a call have failed.
    "grpc.initial_reconnect_backoff_ms": 100,
    # A gateway that was away is in use again after 10 s; the default is two minutes.
    "grpc.max_reconnect_backoff_ms": 10_000,
}


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
    def metadata(self) -> Headers:
        """Metadata of every call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []


def build_target(address: Address) -> str:
    """Return gRPC's target for an address or several.

    Raises:
        ValueError: several addresses that gRPC cannot call together.
    """
    if isinstance(address, str) and address.split(":", 1)[0] in _SCHEMES:
        return address
    addresses = address.split(",") if isinstance(address, str) else list(address)
    if len(addresses) == 1:
        return addresses[0]
    families = {_get_family(one) for one in addresses}
    if len(families) != 1 or None in families:
        raise ValueError(
            f"addresses {', '.join(addresses) or '(none)'}: several must be IP:PORT, all IPv4 or all IPv6; "
            "or give one name that DNS resolves to all of them"
        )
    return f"ipv{families.pop()}:{','.join(addresses)}"


def is_local(target: str) -> bool:
    """Return whether a target is this machine: loopback or a Unix socket."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    names = rest.rsplit("/", 1)[-1] if scheme in _SCHEMES else target
    return all(_is_loopback(_get_host(one)) for one in names.split(","))


def build_options(target: str, options: ChannelOptions) -> ChannelOptions:
    """Return the options of a channel; those of the caller replace ours of the same name."""
    # grpcio heeds http_proxy even for 127.0.0.1.
    local = {"grpc.enable_http_proxy": 0} if is_local(target) else {}
    return list({**_OPTIONS, **local, **dict(options)}.items())


def _get_host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def _get_family(address: str) -> int | None:
    try:
        return ipaddress.ip_address(_get_host(address)).version
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_get_family(host) is not None and ipaddress.ip_address(host).is_loopback)
