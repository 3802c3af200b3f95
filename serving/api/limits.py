"""Limits of the wire contract, known to the service, the HTTP API and the client library."""

__all__ = [
    "DEFAULT_ALTERNATIVES",
    "DEFAULT_TIMEOUT_S",
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
REQUEST_LIMIT_BYTES = 64 << 20
"""Size of all photos of a request together; photos as phones make them are 2 to 5 MB each."""
MESSAGE_LIMIT_BYTES = 2 * REQUEST_LIMIT_BYTES
"""Size of a message that gRPC receives. gRPC refuses a larger one itself, without a reason; between the two limits the
service refuses it and names the limit."""
MAX_URI_CHARS = 2000
"""Length of a photo's URI."""
DEFAULT_TIMEOUT_S = 10.0
"""Timeout of a call by the client library or over HTTP that sets none."""
MAX_TIMEOUT_S = 60.0
"""Longest timeout that a caller over HTTP can ask for."""
