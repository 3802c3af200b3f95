"""gRPC channels to a Triton: its address, and what one on another machine requires."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from vision.errors import ListingVisionError

__all__ = ["TritonAccess"]

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Reconnects to a restarted Triton within seconds, not after gRPC's default of two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # gRPC sends calls to the proxy of http_proxy, loopback included; a Triton is near and never behind one.
    ("grpc.enable_http_proxy", 0),
]
_KEY_PATTERN = re.compile(r"([a-z0-9_.-]+)=([\x21-\x7e]+)\s*")


@dataclass(frozen=True, kw_only=True)
class TritonAccess:
    """What a gateway needs to call a Triton beyond its address; nothing for one of the same user."""

    ca: Path | None = None
    """PEM file of the CA of Triton's certificate; None: plain text."""
    key_file: Path | None = None
    """File of a line NAME=VALUE, as in Triton's `--grpc-restricted-protocol=…:NAME=VALUE`."""

    @classmethod
    def from_environment(cls) -> Self:
        """Return the access that LISTING_VISION_TRITON_CA and LISTING_VISION_TRITON_KEY_FILE name."""
        ca, key_file = (os.environ.get(f"LISTING_VISION_TRITON_{name}") for name in ("CA", "KEY_FILE"))
        return cls(ca=Path(ca) if ca else None, key_file=Path(key_file) if key_file else None)

    def open_channel(self, address: str) -> grpc.aio.Channel:
        """Raises ListingVisionError: the CA's file cannot be read."""
        if self.ca is None:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(root_certificates=_read(self.ca, "--triton-ca"))
        return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)

    def build_headers(self) -> tuple[tuple[str, str], ...]:
        """Return the header that Triton requires for its restricted protocols, if any.

        Raises:
            ListingVisionError: the key's file cannot be read, or contains something else.
        """
        if self.key_file is None:
            return ()
        found = _KEY_PATTERN.fullmatch(_read(self.key_file, "--triton-key-file").decode(errors="replace"))
        if not found:
            raise ListingVisionError(
                f"--triton-key-file {self.key_file} is not one line NAME=VALUE, NAME in lower case"
            )
        return ((f"triton-grpc-protocol-{found[1]}", found[2]),)

    def check(self) -> None:
        """Raises ListingVisionError: a file cannot be used."""
        self.build_headers()
        if self.ca and b"BEGIN CERTIFICATE" not in _read(self.ca, "--triton-ca"):
            raise ListingVisionError(f"--triton-ca {self.ca} contains no certificate in PEM")


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ListingVisionError(f"{option} {path} cannot be read: {error.strerror}") from error
