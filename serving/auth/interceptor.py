"""Who may call, and over what: certificates that are read again when they change, bearer tokens, a quota a caller."""

import hashlib
import ipaddress
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import grpc

from serving.api.status import Refusal, abort
from serving.observability.metrics import CALLS
from vision.errors import ListingVisionError

__all__ = [
    "CALLER",
    "AuthInterceptor",
    "FileWatcher",
    "PhotoQuota",
    "ServerTls",
    "StaticTokenVerifier",
    "TokenVerifier",
    "is_loopback",
]

_log = logging.getLogger(__name__)

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Name of the caller of the call that is being answered; empty where nobody needs one."""

_CHECK_INTERVAL_S = 1.0
_PUBLIC_METHOD_PREFIX = "/grpc.health.v1.Health/"
"""Load balancers have no token."""
_BEARER = "bearer "


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


class FileWatcher:
    """Contents of files that are replaced while they are used; looked at once a second at most."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._last_check_s = 0.0
        self._stamp: tuple[tuple[int, int], ...] | None = None

    def has_changed(self) -> bool:
        """Whether they differ from when this was last asked."""
        now_s = time.monotonic()
        if self._stamp is not None and now_s - self._last_check_s < _CHECK_INTERVAL_S:
            return False
        self._last_check_s = now_s
        try:
            stamp = tuple((found.st_mtime_ns, found.st_size) for found in (path.stat() for path in self._paths))
        except OSError as error:
            _log.warning("%s; what was read before goes on", error)
            return False
        before, self._stamp = self._stamp, stamp
        return stamp != before


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """A server's certificate; with `client_ca` callers must have one too, signed by it (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def create_credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files: a new certificate holds from the next connection on.

        What cannot be used, half written or not fitting its key, is warned of, and the old one stays.

        Raises:
            ListingVisionError: they cannot be used to begin with.
        """
        paths = [path for path in (self.certificate, self.key, self.client_ca) if path]
        watcher = FileWatcher(*paths)
        watcher.has_changed()
        try:
            first = self._load_configuration()
        except (OSError, ssl.SSLError) as error:
            raise ListingVisionError(
                f"TLS certificate {self.certificate} with key {self.key} cannot be used: {error}"
            ) from error

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            if not watcher.has_changed():
                return None
            try:
                found = self._load_configuration()
            except (OSError, ssl.SSLError) as error:
                _log.warning("TLS certificate %s cannot be used, the old one stays: %s", self.certificate, error)
                return None
            _log.info("TLS certificate %s was read again", self.certificate)
            return found

        # None says that nothing has changed, which the stubs do not know.
        return grpc.dynamic_ssl_server_credentials(
            first, cast(Any, fetch), require_client_authentication=bool(self.client_ca)
        )

    def _load_configuration(self) -> grpc.ServerCertificateConfiguration:
        # Raises where they are no certificate and key, or not each other's.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        client_ca = None
        if self.client_ca:
            context.load_verify_locations(self.client_ca)
            client_ca = self.client_ca.read_bytes()
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], client_ca)


class TokenVerifier(Protocol):
    """Tells callers by their bearer tokens."""

    async def identify_caller(self, token: str) -> str | None:
        """The caller's name; None: nobody's token."""
        ...


class StaticTokenVerifier:
    """Tokens of a file: a line a caller, its name and the SHA-256 of its token in hex; read again when it changes.

    `printf %s "$TOKEN" | sha256sum` makes the second word. Who reads the file learns no token.
    """

    def __init__(self, path: Path) -> None:
        """Raises ListingVisionError: it cannot be used."""
        self._path = path
        self._watcher = FileWatcher(path)
        self._watcher.has_changed()
        self._callers = self._load_tokens()

    async def identify_caller(self, token: str) -> str | None:
        if self._watcher.has_changed():
            try:
                self._callers = self._load_tokens()
            except ListingVisionError as error:
                _log.warning("%s; the old tokens stay", error)
        # What is looked up is a hash: how long that takes tells nothing of any token.
        return self._callers.get(hashlib.sha256(token.encode()).hexdigest())

    def _load_tokens(self) -> Mapping[str, str]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ListingVisionError(f"token file {self._path} cannot be read: {error}") from error
        callers = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or len(words[1]) != 64 or set(words[1].lower()) - set("0123456789abcdef"):
                raise ListingVisionError(f"token file {self._path}, line {number}: not a name and a SHA-256 in hex")
            callers[words[1].lower()] = words[0]
        if not callers:
            raise ListingVisionError(f"token file {self._path} names no caller")
        return callers


class PhotoQuota:
    """So many photos a second for each caller, with a burst of a few seconds' worth."""

    BURST_S = 5.0
    MAX_TRACKED_CALLERS = 10_000
    """Callers; beyond it those are forgotten whose quota is whole again anyway. Whoever signs tokens names them."""

    def __init__(self, photos_per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = photos_per_s
        self._clock = clock
        self._remaining: dict[str, tuple[float, float]] = {}
        """By caller: photos left, and when that was."""

    def consume(self, caller: str, num_photos: int) -> None:
        """Raises Refusal: QUOTA_EXCEEDED, with the time after which to try again."""
        now_s, burst = self._clock(), self._rate * self.BURST_S
        remaining, last_s = self._remaining.get(caller, (burst, now_s))
        remaining = min(burst, remaining + (now_s - last_s) * self._rate)
        # A listing larger than the burst is let in when the burst is whole, or it would never be.
        if remaining < min(num_photos, burst):
            self._remaining[caller] = remaining, now_s
            raise Refusal(
                reason="QUOTA_EXCEEDED",
                message=f"caller {caller!r} may send {self._rate:g} photos a second; try later",
                retry_after_s=(min(num_photos, burst) - remaining) / self._rate,
            )
        self._remaining[caller] = remaining - num_photos, now_s
        if len(self._remaining) > self.MAX_TRACKED_CALLERS:
            self._remaining = {
                name: bucket
                for name, bucket in self._remaining.items()
                if now_s - bucket[1] < self._compute_refill_s(bucket[0])
            }

    def _compute_refill_s(self, remaining: float) -> float:
        return self.BURST_S - remaining / self._rate


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED, without a detail and before any photo is read, to whoever has no valid token."""

    def __init__(self, *verifiers: TokenVerifier) -> None:
        """Args: verifiers: asked one after another."""
        self._verifiers = verifiers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        if handler_call_details.method.startswith(_PUBLIC_METHOD_PREFIX):
            return await continuation(handler_call_details)
        caller = await self._identify_caller(handler_call_details)
        if caller is None:
            CALLS.labels("UNAUTHENTICATED", "").inc()
            return _UNAUTHENTICATED_HANDLER
        CALLER.set(caller)
        return await continuation(handler_call_details)

    async def _identify_caller(self, details: grpc.HandlerCallDetails) -> str | None:
        for name, value in details.invocation_metadata or ():
            if name == "authorization" and isinstance(value, str) and value.lower().startswith(_BEARER):
                token = value[len(_BEARER) :].strip()
                for verifier in self._verifiers:
                    if caller := await verifier.identify_caller(token):
                        return caller
                return None
        return None


async def _reject(requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
    await abort(context, Refusal(reason="UNAUTHENTICATED", message="unauthenticated"))


_UNAUTHENTICATED_HANDLER: "grpc.RpcMethodHandler[Any, Any]" = grpc.stream_stream_rpc_method_handler(_reject)
