"""Fetch photos from URIs below the prefixes that the operator allows, and from nowhere else (SSRF protection).

Whoever may name a URI would otherwise have the service ask what only it can reach. So: a list of prefixes, https alone,
names resolved once and only to public addresses, redirects held against the list again, limits of bytes and time.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from serving.api.limits import MAX_URI_CHARS
from serving.api.status import FieldViolation, Refusal
from vision.errors import ListingVisionError, PhotoError, PhotoFetchTimedOut, PhotoNotFetched, PhotoTooManyBytes

__all__ = ["PhotoFetcher", "PublicResolver", "check_prefixes", "parse_prefix", "parse_uri"]

MAX_REDIRECTS = 3
FETCH_TIMEOUT_S = 5.0
"""Timeout of one photo, redirects included."""
CONNECT_TIMEOUT_S = 2.0
_MAX_CONCURRENT_FETCHES = 16
"""Photos that one gateway process fetches at a time."""
_OBJECT_STORES = ("gs", "s3")
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRYABLE_STATUSES = (408, 429)
"""These, and all from 500 on, say that the server had no time or failed."""
_PLAIN_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
# Characters that servers and proxies interpret differently. (Not by IGNORECASE: under it a long s is an s.)
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f-\U0010ffff\\]|%(?![0-9a-fA-F]{2})")
# Control characters, dots, slashes, semicolons, percent signs, backslashes: some servers decode a path before they
# split it. A query is not split, and signed URLs have escaped slashes there.
_AMBIGUOUS_PATH = re.compile(r"%([01][0-9a-fA-F]|2[5eEfF]|3[bB]|5[cC]|7[fF])")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that IANA has allocated to public addresses. The rest includes NAT64 (64:ff9b::/96), which leads to IPv4
addresses behind a translator, IPv4-compatible (::/96), unique local (fc00::/7) and site-local addresses."""
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's host: metadata, keys, DNS
            "192.0.0.0/24",  # IANA's special purposes; Oracle's metadata
            "192.88.99.0/24",  # relays of 6to4, deprecated by RFC 7526
        ),
    )
)
"""Public in IANA's registry, at least in part. Other metadata services are at link-local, shared or unique local
addresses."""


class _AddressNotPublic(OSError):
    pass


class _Location(NamedTuple):
    scheme: str
    host: str
    path: str
    query: str

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}" + (f"?{self.query}" if self.query else "")


class PublicResolver(AbstractResolver):
    """Resolves a name to its addresses if all are public; aiohttp connects to exactly these."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results = []
        for kind, _, protocol, _, address in found:
            if not self.is_public(str(address[0])):
                raise _AddressNotPublic(f"{host} is at an address that is not public")
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=kind,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        return results

    def is_public(self, address: str) -> bool:
        ip: Any = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
        if ip.version == 6 and ip not in _GLOBAL_UNICAST:
            return False
        return bool(ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC))

    async def close(self) -> None:
        """Nothing is held."""


class PhotoFetcher:
    """Create it inside the running loop, and close it."""

    def __init__(
        self,
        prefixes: Sequence[str],
        *,
        max_bytes: int,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Args:
        prefixes: `https://host/path/`, `gs://bucket/path/` or `s3://bucket/path/`.
        max_bytes: largest photo.
        resolver: for tests; default: public addresses alone.
        ssl_context: for tests; default: the machine's.

        Raises:
            ListingVisionError: a prefix is malformed, or its package is missing.
        """
        self._prefixes = [parse_prefix(text) for text in prefixes]
        self._max_bytes = max_bytes
        self._fetch_slots = asyncio.Semaphore(_MAX_CONCURRENT_FETCHES)
        connector = aiohttp.TCPConnector(
            resolver=resolver or PublicResolver(),
            use_dns_cache=False,
            limit=_MAX_CONCURRENT_FETCHES,
            ssl=ssl_context or True,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
            auto_decompress=False,
        )
        self._stores: dict[str, Any] = {}

    def check(self, uris: Mapping[str, str]) -> None:
        """Check URIs by the path of their field.

        Raises:
            Refusal: PHOTO_URI_NOT_ALLOWED, naming each field; nothing is fetched then.
        """
        wrong = {field: objection for field, uri in uris.items() if (objection := self._find_objection(uri))}
        if wrong:
            reason = "PHOTO_URI_NOT_ALLOWED"
            raise Refusal(
                reason=reason,
                message="; ".join(f"{field}: {objection}" for field, objection in wrong.items()),
                violations=[
                    FieldViolation(field=field, reason=reason, description=objection)
                    for field, objection in wrong.items()
                ],
            )

    async def fetch(self, uri: str) -> bytes | PhotoError:
        """Return the bytes of one photo that passed `check`, or its error; never raises a PhotoError.

        PhotoFetchTimedOut where a retry may help: its server did not answer in time, failed, or cannot be reached.
        """
        location = parse_uri(uri)
        assert location
        try:
            async with self._fetch_slots, asyncio.timeout(FETCH_TIMEOUT_S):
                if location.scheme == "https":
                    return await self._fetch_https(location)
                return await asyncio.to_thread(self._fetch_from_store, location)
        except PhotoError as error:
            return error
        # Clients of object stores raise their own types; their messages may contain the URI.
        except Exception as error:
            return _to_photo_error(error)

    async def close(self) -> None:
        await self._session.close()

    async def _fetch_https(self, location: _Location) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            # As it was given: a signature would not hold for escapes that are decoded and encoded again.
            url = yarl.URL.build(
                scheme="https", host=location.host, path=location.path, query_string=location.query, encoded=True
            )
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read_body(response)
                uri = urljoin(location.uri, response.headers.get("Location", ""))
            following = parse_uri(uri)
            if following is None or self._find_objection(uri):
                raise PhotoNotFetched("the photo's URI leads to another one that is not allowed")
            location = following
        raise PhotoNotFetched(f"the photo's URI leads on more than {MAX_REDIRECTS} times")

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status >= 500 or response.status in _RETRYABLE_STATUSES:
            raise PhotoFetchTimedOut(f"the photo's server answered {response.status}; try again")
        if response.status != 200:
            raise PhotoNotFetched(f"the photo's server answered {response.status}")
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_many_bytes()
        body = bytearray()
        async for part in response.content.iter_chunked(1 << 16):
            body += part
            if len(body) > self._max_bytes:
                raise self._too_many_bytes()
        return bytes(body)

    def _fetch_from_store(self, location: _Location) -> bytes:
        store = self._get_store(location.scheme)
        if store.info(location.uri)["size"] > self._max_bytes:
            raise self._too_many_bytes()
        return bytes(store.cat_file(location.uri))

    def _get_store(self, scheme: str) -> Any:
        if scheme not in self._stores:
            import fsspec

            self._stores[scheme] = fsspec.filesystem(scheme)
        return self._stores[scheme]

    def _too_many_bytes(self) -> PhotoTooManyBytes:
        return PhotoTooManyBytes(f"the photo has more than {self._max_bytes >> 20} MiB; send a smaller one")

    def _find_objection(self, uri: str) -> str:
        """Return why a URI must not be fetched; empty if it may."""
        if len(uri) > MAX_URI_CHARS:
            return f"{len(uri)} characters exceed the limit of {MAX_URI_CHARS}"
        location = parse_uri(uri)
        if location is None:
            return "it is no https, gs or s3 URI in plain form"
        if any(location[:2] == p[:2] and location.path.startswith(p.path) for p in self._prefixes):
            return ""
        return "it is below none of the prefixes that the operator allows"


def check_prefixes(prefixes: Sequence[str]) -> None:
    """Raises ListingVisionError: a prefix is malformed, or its package is missing."""
    for text in prefixes:
        parse_prefix(text)


def parse_uri(uri: str) -> _Location | None:
    """Return the parsed URI, scheme and host in lower case; None if parsers may disagree about it."""
    if _AMBIGUOUS.search(uri) or "#" in uri:
        return None
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return None
    host = parts.netloc if parts.scheme in _OBJECT_STORES else (parts.hostname or "")
    plain = (
        parts.scheme in ("https", *_OBJECT_STORES)
        and _PLAIN_HOST.fullmatch(host)
        and "@" not in parts.netloc
        and port in (None, 443)
        and not _AMBIGUOUS_PATH.search(parts.path)
        and not _has_dot_segments(parts.path)
    )
    return _Location(parts.scheme, host, parts.path or "/", parts.query) if plain else None


def _has_dot_segments(path: str) -> bool:
    # Some servers cut parameters off a segment before they resolve it: `..;/` leads up there.
    return any(segment.partition(";")[0] in (".", "..") for segment in path.split("/"))


def _to_photo_error(error: Exception) -> PhotoError:
    if isinstance(error, TimeoutError):
        return PhotoFetchTimedOut(f"the photo did not come within {FETCH_TIMEOUT_S:g} s; try again")
    if _may_succeed_later(error):
        return PhotoFetchTimedOut(f"the photo's server cannot be reached ({type(error).__name__}); try again")
    return PhotoNotFetched(f"the photo cannot be fetched ({type(error).__name__}); send its bytes")


def _may_succeed_later(error: Exception) -> bool:
    if isinstance(error, aiohttp.ClientConnectorError):  # before any connection: the name, the route, the port
        cause = error.os_error
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_AGAIN
        if isinstance(cause, (_AddressNotPublic, ssl.SSLError)):
            return False
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError, FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)):
        return True
    status = getattr(error, "code", None)  # gcsfs.retry.HttpError
    return isinstance(status, int) and (status >= 500 or status in _RETRYABLE_STATUSES)


def parse_prefix(text: str) -> _Location:
    location = parse_uri(text)
    if location is None or "?" in text or not location.path.endswith("/"):
        raise ListingVisionError(
            f"--photo-uris {text!r}: give https://HOST/PATH/, gs://BUCKET/PATH/ or s3://BUCKET/PATH/, ending in a slash"
        )
    if location.scheme == "https" and _is_ip_address(location.host):
        raise ListingVisionError(f"--photo-uris {text!r}: give a name, not an address")
    if location.scheme in _OBJECT_STORES:
        import fsspec

        try:
            fsspec.get_filesystem_class(location.scheme)
        except ImportError as error:
            raise ListingVisionError(f"--photo-uris {text!r}: {error}") from error
    return location


def _is_ip_address(host: str) -> bool:
    try:
        socket.inet_aton(host)  # also 127.1 and 0x7f000001, which some readers take for addresses
    except OSError:
        return False
    return True
