"""Limits of the wire contract, known to the service and the HTTP API; the client defines its own."""

from listing_vision_client.limits import DEFAULT_TIMEOUT_S, MESSAGE_LIMIT_BYTES, REQUEST_LIMIT_BYTES

__all__ = [
    "DEFAULT_ALTERNATIVES",
    "DEFAULT_TIMEOUT_S",
    "HTTP_PEER_HEADER",
    "MAX_ALTERNATIVES",
    "MAX_LISTING_ID_CHARS",
    "MAX_PHOTOS",
    "MAX_REQUEST_ID_CHARS",
    "MAX_TIMEOUT_S",
    "MAX_URI_CHARS",
    "MESSAGE_LIMIT_BYTES",
    "REQUEST_LIMIT_BYTES",
]

MAX_PHOTOS = 20
"""Photos of one listing."""
MAX_LISTING_ID_CHARS = 200
MAX_REQUEST_ID_CHARS = 100
"""A longer `x-request-id` is cut."""
MAX_ALTERNATIVES = 20
DEFAULT_ALTERNATIVES = 5
HTTP_PEER_HEADER = "x-listing-vision-http-peer"
"""Address of an HTTP caller, which the HTTP process tells the gateways over their local sockets."""
MAX_URI_CHARS = 2000
"""Length of a photo's URI."""
MAX_TIMEOUT_S = 60.0
"""Longest timeout that a caller over HTTP can ask for."""
