"""Signed names of suggestions: an outcome that carries one joins the suggestion that the form showed.

A suggestion id is a JSON Web Token (RFC 7519) with HMAC-SHA256, so that replicas share nothing but a key.
"""

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from listing_vision_client.protocol import listing_vision_pb2 as pb
from vision.errors import ListingVisionError

__all__ = ["SuggestionClaims", "SuggestionSigner", "load_signing_keys", "write_random_key"]

MIN_KEY_BYTES = 32
"""Length of the hash, as RFC 7518, section 3.2, requires."""
MAX_ID_CHARS = 4000
_ALGORITHM = "HS256"
_CLAIM_NAMES = ("listing", "caller", "model", "weights", "calibration", "taxonomy")


@dataclass(frozen=True, kw_only=True)
class SuggestionClaims:
    """What a suggestion id says of its suggestion."""

    uid: str
    """16 hexadecimal digits, drawn for each suggestion."""
    listing_id: str
    caller: str
    """Name of the caller that got it; empty where callers need no token."""
    model: pb.ModelVersion


class SuggestionSigner:
    def __init__(self, keys: Sequence[bytes], *, validity_s: float) -> None:
        """Args:
        keys: the first one signs, all verify; at least one.
        validity_s: how long an id is valid.
        """
        self._keys = keys
        self.validity_s = validity_s

    @classmethod
    def with_random_key(cls, *, validity_s: float) -> "SuggestionSigner":
        return cls([secrets.token_bytes(MIN_KEY_BYTES)], validity_s=validity_s)

    def sign(self, *, listing_id: str, caller: str, model: pb.ModelVersion) -> tuple[str, str]:
        """Return the suggestion id and its uid."""
        now_s, uid = int(time.time()), secrets.token_hex(8)
        values = (listing_id, caller, model.name, model.version, model.calibration_version, model.taxonomy_version)
        claims = {"jti": uid, "exp": now_s + int(self.validity_s), **dict(zip(_CLAIM_NAMES, values, strict=True))}
        return jwt.encode(claims, self._keys[0], algorithm=_ALGORITHM), uid

    def verify(self, suggestion_id: str, *, caller: str) -> "tuple[pb.SuggestionIdStatus, SuggestionClaims | None]":
        """Return whether an id is valid for a caller, and what it says if it is."""
        if not suggestion_id:
            return pb.SUGGESTION_ID_STATUS_MISSING, None
        if len(suggestion_id) > MAX_ID_CHARS:
            return pb.SUGGESTION_ID_STATUS_INVALID, None
        for key in self._keys:
            try:
                raw = jwt.decode(
                    suggestion_id, key, algorithms=[_ALGORITHM], options={"require": ["exp", "jti", *_CLAIM_NAMES]}
                )
            except jwt.ExpiredSignatureError:
                return pb.SUGGESTION_ID_STATUS_EXPIRED, None
            except jwt.InvalidTokenError:
                continue
            claims = _parse_claims(raw)
            if claims.caller != caller:
                return pb.SUGGESTION_ID_STATUS_OTHER_CALLER, None
            return pb.SUGGESTION_ID_STATUS_VALID, claims
        return pb.SUGGESTION_ID_STATUS_INVALID, None


def _parse_claims(raw: dict[str, Any]) -> SuggestionClaims:
    listing_id, caller, name, version, calibration, taxonomy = (raw[claim] for claim in _CLAIM_NAMES)
    model = pb.ModelVersion(name=name, version=version, calibration_version=calibration, taxonomy_version=taxonomy)
    return SuggestionClaims(uid=raw["jti"], listing_id=listing_id, caller=caller, model=model)


def write_random_key(path: Path) -> None:
    """Write a drawn key to a new file that its owner alone can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(MIN_KEY_BYTES) + "\n")


def load_signing_keys(path: Path) -> list[bytes]:
    """Return the keys of a file, one a line: the first one signs, all verify.

    Raises:
        ListingVisionError: the file cannot be read, or a key is too short.
    """
    try:
        keys = [line.strip() for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ListingVisionError(f"--suggestion-key {path}: {error.strerror}") from error
    too_short = next((number for number, key in enumerate(keys, 1) if len(key) < MIN_KEY_BYTES), None)
    if not keys or too_short:
        what = f"key {too_short} is too short" if too_short else "it has no key"
        raise ListingVisionError(
            f"--suggestion-key {path}: {what}; give a line of at least {MIN_KEY_BYTES} characters, such as "
            "`openssl rand -hex 32` prints"
        )
    return keys
