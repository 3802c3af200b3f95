"""Limits of the wire contract that a caller meets before the service does; `serving.api.limits` has the others."""

__all__ = ["DEFAULT_TIMEOUT_S", "EXPLAIN_TIMEOUT_S", "MESSAGE_LIMIT_BYTES", "REQUEST_LIMIT_BYTES"]

REQUEST_LIMIT_BYTES = 64 << 20
"""Size of all photos of a request together; photos as phones make them are 2 to 5 MB each."""
MESSAGE_LIMIT_BYTES = 2 * REQUEST_LIMIT_BYTES
"""Size of a message that gRPC receives. gRPC refuses a larger one itself, without a reason; between the two limits the
service refuses it and names the limit."""
DEFAULT_TIMEOUT_S = 10.0
"""Timeout of a call by the client library or over HTTP that sets none."""
EXPLAIN_TIMEOUT_S = 60.0
"""Timeout of an explanation that sets none: it costs as much as several dozen photos."""
