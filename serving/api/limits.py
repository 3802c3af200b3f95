"""Limits of the wire contract, known to the service, the HTTP API and the client library."""

__all__ = [
    "DEFAULT_ALTERNATIVES",
    "DEFAULT_TIMEOUT_S",
    "MAX_ALTERNATIVES",
    "MAX_LISTING_ID_CHARS",
    "MAX_PHOTOS",
    "MAX_REQUEST_ID_CHARS",
    "MAX_TIMEOUT_S",
    "MESSAGE_LIMIT_BYTES",
]

MAX_PHOTOS = 20
"""Photos of one listing."""
MAX_LISTING_ID_CHARS = 200
MAX_REQUEST_ID_CHARS = 100
"""A longer `x-request-id` is cut."""
MAX_ALTERNATIVES = 20
DEFAULT_ALTERNATIVES = 5
MESSAGE_LIMIT_BYTES = 64 << 20
"""Size of a request at both ends; photos as phones make them are 2 to 5 MB each."""
DEFAULT_TIMEOUT_S = 10.0
"""Timeout of a call by the client library or over HTTP that sets none."""
MAX_TIMEOUT_S = 60.0
"""Longest timeout that a caller over HTTP can ask for."""
