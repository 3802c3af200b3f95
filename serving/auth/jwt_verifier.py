"""Bearer tokens that an identity provider signs: JWTs (RFC 7519), verified with the keys that it publishes (RFC
7517)."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jwt

from serving.auth.file_watcher import FileWatcher
from serving.auth.jwks import fetch_key_set, parse_key_set, read_key_set, require_safe_url
from vision.errors import ListingVisionError
from vision.runtime.files import write_atomically

__all__ = ["JwtOptions", "JwtVerifier"]

_log = logging.getLogger(__name__)

LEEWAY_S = 30.0
"""Allowed difference between the provider's clock and ours."""
MIN_FETCH_INTERVAL_S = 30.0
"""Between two fetches, whatever tokens name: a caller may send a thousand with keys that do not exist."""
KEY_SET_TTL_S = 300.0
"""A key that the provider has withdrawn stays valid for at most this time."""
KEY_WAIT_TIMEOUT_S = 6.0
"""How long a call waits for keys if its token names an unknown one."""
TOKEN_CACHE_TTL_S = 60.0
"""How long a valid token is not verified again, unless it expires before."""
MAX_CACHED_TOKENS = 10_000
MAX_TOKEN_CHARS = 8192
"""gRPC's limit for the headers of a call."""
MAX_CALLER_CHARS = 200
_REQUIRED_CLAIMS = ("exp", "iss", "aud", "sub")


@dataclass(frozen=True, kw_only=True)
class JwtOptions:
    """Which tokens are valid."""

    jwks: str
    """URL (https, or http to this machine) or path of the keys, as a JSON Web Key Set."""
    audience: str
    """What a token must be issued for (`aud`)."""
    issuer: str
    """Who must have issued it (`iss`)."""
    cache_path: Path | None = None
    """Where fetched keys are stored for a process that starts while the provider is down; None: nowhere."""


class _Keys(Protocol):
    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """The key of this id; the same object as long as the key set does not change."""
        ...


class JwtVerifier:
    """Identifies callers by the `sub` of a token that the provider has signed.

    The key determines the algorithm, one of `serving.auth.jwks.ALGORITHMS`, and not the token's header. Use it in one
    running loop.
    """

    def __init__(
        self,
        options: JwtOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
            clock: times the fetches of keys.
            wall_clock: times the expiry of tokens.

        Raises:
            ListingVisionError: there are no keys.
        """
        self._options = options
        self._wall_clock = wall_clock
        self._keys: _Keys = (
            _FetchedKeys(options, clock) if "://" in options.jwks else _FileKeys(Path(options.jwks), clock)
        )
        self._token_cache: OrderedDict[bytes, _VerifiedToken] = OrderedDict()

    async def identify_caller(self, token: str) -> str | None:
        """The caller's name; None: the token is not valid, for whatever reason."""
        if len(token) > MAX_TOKEN_CHARS:
            return None
        # Anything that a stranger may send, such as deeply nested JSON, is treated like no token.
        try:
            return await self._verify_cached(token)
        except Exception as error:
            _log.debug("a token is not valid: %s", type(error).__name__)
            return None

    async def _verify_cached(self, token: str) -> str | None:
        key_id = jwt.get_unverified_header(token).get("kid")
        key = await self._keys.find(key_id) if key_id else None
        if key is None:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        found = self._token_cache.get(digest)
        # Another object means that the key has been replaced or withdrawn.
        if found is None or found.key is not key or self._wall_clock() >= found.expires_s:
            found = self._verify(token, key)
            self._cache_token(digest, found)
        return found.caller

    def _verify(self, token: str, key: jwt.PyJWK) -> "_VerifiedToken":
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self._options.audience,
            issuer=self._options.issuer,
            leeway=LEEWAY_S,
            options={"require": list(_REQUIRED_CLAIMS)},
        )
        caller = claims["sub"]
        if not (0 < len(caller) <= MAX_CALLER_CHARS and caller.isprintable()):
            raise jwt.InvalidTokenError("sub")
        return _VerifiedToken(caller, key, min(self._wall_clock() + TOKEN_CACHE_TTL_S, float(claims["exp"]) + LEEWAY_S))

    def _cache_token(self, digest: bytes, found: "_VerifiedToken") -> None:
        self._token_cache[digest] = found
        self._token_cache.move_to_end(digest)
        while len(self._token_cache) > MAX_CACHED_TOKENS:
            self._token_cache.popitem(last=False)


class _VerifiedToken(NamedTuple):
    caller: str
    key: jwt.PyJWK
    """The key that verified it."""
    expires_s: float
    """In time of the wall clock."""


class _FileKeys:
    """Keys of a file, reloaded when it changes; a file that cannot be used is logged, and the old keys stay."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._watcher = FileWatcher(path, clock=clock)
        self._keys_by_id = parse_key_set(read_key_set(path), str(path))

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        if self._watcher.has_changed():
            try:
                self._keys_by_id = parse_key_set(read_key_set(self._path), str(self._path))
            except ListingVisionError as error:
                _log.warning("%s; the old keys stay", error)
        return self._keys_by_id.get(key_id)


class _FetchedKeys:
    """Keys of a URL, fetched again every few minutes and when a token names an unknown key.

    While the provider is down the last keys stay.
    """

    def __init__(self, options: JwtOptions, clock: Callable[[], float]) -> None:
        require_safe_url(options.jwks)
        self._url, self._cache_path = options.jwks, options.cache_path
        self._fetch_task: asyncio.Task[None] | None = None
        self._clock = clock
        self._last_fetch_s = clock()
        self._raw = self._load_initial()
        self._keys_by_id = parse_key_set(self._raw, self._url)

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        is_known = key_id in self._keys_by_id
        if self._is_due(KEY_SET_TTL_S if is_known else MIN_FETCH_INTERVAL_S):
            self._last_fetch_s = self._clock()
            self._fetch_task = asyncio.create_task(self._refresh())
        if self._fetch_task and not is_known:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._fetch_task), KEY_WAIT_TIMEOUT_S)
        return self._keys_by_id.get(key_id)

    def _is_due(self, age_s: float) -> bool:
        return self._fetch_task is None and self._clock() - self._last_fetch_s >= age_s

    async def _refresh(self) -> None:
        try:
            raw = await asyncio.to_thread(fetch_key_set, self._url)
            if raw != self._raw:
                self._keys_by_id = parse_key_set(raw, self._url)
                self._raw = raw
                self._write_cache(raw)
                _log.info("JWKS %s has changed: %d keys", self._url, len(self._keys_by_id))
        except (ListingVisionError, OSError) as error:
            _log.warning("%s; the old keys stay", error)
        finally:
            self._fetch_task = None

    def _load_initial(self) -> bytes:
        try:
            raw = fetch_key_set(self._url)
            parse_key_set(raw, self._url)
        except ListingVisionError as error:
            if self._cache_path is None or not self._cache_path.is_file():
                raise
            _log.warning("%s; the keys of an earlier fetch are used", error)
            return self._cache_path.read_bytes()
        self._write_cache(raw)
        return raw

    def _write_cache(self, raw: bytes) -> None:
        if self._cache_path:
            write_atomically(self._cache_path, raw)
