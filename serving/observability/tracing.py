"""Traces of calls (OpenTelemetry) from the client through the gateway into Triton, connected by `traceparent`.

`opentelemetry` is imported only by `start`, or by the program that uses the client. Without it the functions of this
module do nothing, at the cost of one dictionary lookup.
"""

import logging
import os
import socket
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import vision
from vision.errors import ListingVisionError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = [
    "TraceOptions",
    "Tracing",
    "client_span",
    "read_standard_endpoint",
    "require_packages",
    "sampled_client_span",
    "set_attributes",
    "span",
    "start",
    "trace_headers",
    "trace_program",
]

_log = logging.getLogger(__name__)

SCOPE = "listing_vision"
EXPORT_TIMEOUT_S = 5.0
"""Longest export of one batch, on a thread that no call waits for."""
FLUSH_TIMEOUT_S = 2.0
"""Longest export of the last batch when a process exits."""
ENDPOINT_VARIABLE = "LISTING_VISION_OTLP_ENDPOINT"
STANDARD_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "http/protobuf"

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    endpoint: str
    """Base URL of a collector that takes OTLP over HTTP, such as http://collector:4318; `/v1/traces` is added."""
    ratio: float = 1.0
    """Share of the traced calls among those whose caller has not decided. Range [0, 1]."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ListingVisionError(
                f"--otlp-endpoint {self.endpoint!r} is not an http or https URL; give one such as http://collector:4318"
            )
        if not 0 <= self.ratio <= 1:
            raise ListingVisionError(f"--trace-ratio {self.ratio:g} is outside 0..1")

    @property
    def url(self) -> str:
        """URL to which spans are posted."""
        return f"{self.endpoint.rstrip('/')}/v1/traces"

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the options of LISTING_VISION_OTLP_ENDPOINT, else of OTEL_EXPORTER_OTLP_ENDPOINT."""
        endpoint = os.environ.get(ENDPOINT_VARIABLE) or read_standard_endpoint()
        return cls(endpoint=endpoint) if endpoint else None


class Tracing:
    """The export of this process' spans; a failed export drops spans and has no other effect."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider

    def stop(self) -> None:
        """Export the remaining spans, for `FLUSH_TIMEOUT_S` at most."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(FLUSH_TIMEOUT_S)


def require_packages() -> None:
    """Raise ListingVisionError unless the packages for traces are installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ModuleNotFoundError as error:
        raise ListingVisionError(
            f"traces need the package {error.name!r}; install listing-vision[traces], or give no --otlp-endpoint"
        ) from error


def read_standard_endpoint() -> str | None:
    """Return OTEL_EXPORTER_OTLP_ENDPOINT, or log a warning and return None if it cannot be used here.

    The variable may be set for other programs, so it is not an error.
    """
    endpoint = os.environ.get(STANDARD_VARIABLE)
    if not endpoint:
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", PROTOCOL):
        _log.warning("no traces: %s is for %s, and traces go over %s", STANDARD_VARIABLE, protocol, PROTOCOL)
        return None
    try:
        require_packages()
    except ListingVisionError as error:
        _log.warning("no traces: %s", error)
        return None
    return endpoint


def start(options: TraceOptions, service: str) -> Tracing:
    """Export the spans of this process, and add their ids to its log records.

    Args: service: name of the service, unless OTEL_SERVICE_NAME gives one.

    Raises:
        ListingVisionError: the packages for traces are not installed.
    """
    require_packages()
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or service,
            "service.version": vision.__version__,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
    )
    # shutdown_on_exit would wait half a minute for the collector when the process exits.
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(options.ratio), resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=options.url, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _add_ids_to_logs()
    return Tracing(provider)


@contextmanager
def trace_program(service: str) -> Iterator[None]:
    """Trace a short program if the environment names a collector."""
    options = TraceOptions.from_environment()
    tracing = start(options, service) if options else None
    try:
        yield
    finally:
        if tracing:
            tracing.stop()


@contextmanager
def span(name: str) -> Iterator[None]:
    """Open a span below the current one, if there is one."""
    api = _get_api()
    if api is None or not api.get_current_span().get_span_context().is_valid:
        yield
        return
    with api.get_tracer(SCOPE).start_as_current_span(name):
        yield


@contextmanager
def client_span(method: str) -> Iterator[Headers]:
    """Open a span for a call to another service; yield the headers to send."""
    api = _get_api()
    if api is None:
        yield ()
        return
    name = method.strip("/")
    attributes = {"rpc.system.name": "grpc", "rpc.method": name}
    with api.get_tracer(SCOPE).start_as_current_span(name, kind=api.SpanKind.CLIENT, attributes=attributes):
        yield _inject_headers()


def trace_headers() -> Headers:
    """Return the headers with which another service continues the current trace; empty if there is none."""
    api = _get_api()
    return _inject_headers() if api and api.get_current_span().get_span_context().is_valid else ()


@contextmanager
def sampled_client_span(method: str) -> Iterator[Headers]:
    """Like `client_span`, but without headers unless the call is sampled: for a service that traces every header."""
    api = _get_api()
    if api is None or not api.get_current_span().get_span_context().trace_flags.sampled:
        yield ()
        return
    with client_span(method) as headers:
        yield headers


def set_attributes(**attributes: str | int) -> None:
    """Set attributes of the current span, if there is one."""
    if api := _get_api():
        api.get_current_span().set_attributes({f"{SCOPE}.{name}": value for name, value in attributes.items()})


def _get_api() -> Any:
    return sys.modules.get("opentelemetry.trace")


def _inject_headers() -> Headers:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


def _add_ids_to_logs() -> None:
    """Add the ids of the current span to each log record (`vision.runtime.cli.LOG_FIELDS`)."""
    api, make = _get_api(), logging.getLogRecordFactory()

    def make_with_ids(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        context = api.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        return record

    logging.setLogRecordFactory(make_with_ids)
