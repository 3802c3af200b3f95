"""A JSON Web Key Set (RFC 7517): fetched or read within limits, and its keys that may verify signatures."""

import http.client
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from serving.processes.sockets import is_loopback
from vision.errors import ListingVisionError

__all__ = ["ALGORITHMS", "fetch_key_set", "parse_key_set", "read_key_set", "require_safe_url"]

_log = logging.getLogger(__name__)

ALGORITHMS = frozenset({"ES256", "EdDSA", "RS256"})
"""Algorithms with public keys only: with HS256, a shared secret, anyone who knows a public key could sign with it."""
MIN_RSA_BITS = 2048
"""NIST SP 800-131A."""
MAX_BYTES = 256 << 10
TIMEOUT_S = 5.0
"""For the whole fetch of a key set."""


def parse_key_set(raw: bytes, name: str) -> Mapping[str, jwt.PyJWK]:
    """The usable keys by their id (`kid`); keys of other kinds or uses are ignored.

    Raises:
        ListingVisionError: it is not a key set, or has no usable key.
    """
    try:
        entries = json.loads(raw)["keys"]
        found = {jwk["kid"]: key for jwk in reversed(entries) if (key := _parse_usable_key(jwk))}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ListingVisionError(f"{name} is not a JSON Web Key Set: {type(error).__name__}") from error
    if not found:
        raise ListingVisionError(
            f"{name} has no key to verify tokens with: a public key with a `kid`, for {', '.join(sorted(ALGORITHMS))}"
        )
    return found


def _parse_usable_key(jwk: Mapping[str, Any]) -> jwt.PyJWK | None:
    key_id = jwk.get("kid")
    if not isinstance(key_id, str) or jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        return None
    if "d" in jwk:
        _log.warning("JWKS: key %r is a private key and is ignored; whoever can read it can sign tokens", key_id)
        return None
    try:
        key = jwt.PyJWK.from_dict(dict(jwk))
    except jwt.PyJWTError as error:
        # Its message may hold the key.
        _log.warning("JWKS: key %r is ignored: %s", key_id, type(error).__name__)
        return None
    if key.algorithm_name not in ALGORITHMS:
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
        _log.warning("JWKS: key %r is ignored: %d bits are too few", key_id, key.key.key_size)
        return None
    return key


def read_key_set(path: Path) -> bytes:
    """Read a key set. Raises ListingVisionError: it cannot be read, or is too large."""
    try:
        with path.open("rb") as file:
            return _read_bounded(file, str(path), time.monotonic() + TIMEOUT_S)
    except OSError as error:
        raise ListingVisionError(f"JWKS {path} cannot be read: {error.strerror}") from error


def require_safe_url(url: str) -> None:
    """Raise ListingVisionError for a URL whose response could be altered on its way."""
    parts = urllib.parse.urlsplit(url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not safe or not parts.hostname or parts.username or parts.password:
        raise ListingVisionError(
            f"--jwks {parts.scheme}://{parts.hostname}: give an https URL without user and password, or a path; http "
            "is allowed for this machine only"
        )


def fetch_key_set(url: str) -> bytes:
    """Fetch the key set at a URL; a redirect is an error.

    Raises:
        ListingVisionError: it cannot be fetched in time, or is too large.
    """
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if urllib.parse.urlsplit(url).scheme == "http":
        handlers.append(urllib.request.ProxyHandler({}))  # plain text must not leave this machine through a proxy
    deadline_s = time.monotonic() + TIMEOUT_S
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as response:
            return _read_bounded(response, url, deadline_s)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ListingVisionError(f"JWKS {url} cannot be fetched: {error}") from error


def _read_bounded(source: BufferedIOBase, name: str, deadline_s: float) -> bytes:
    found = b""
    while chunk := source.read1(16 << 10):
        found += chunk
        if len(found) > MAX_BYTES:
            raise ListingVisionError(f"JWKS {name} is larger than {MAX_BYTES >> 10} KiB")
        if time.monotonic() > deadline_s:
            raise ListingVisionError(f"JWKS {name} was not received within {TIMEOUT_S:g} s")
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Return None, which makes the redirect an error."""
