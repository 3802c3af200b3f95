"""A collector that takes OTLP over HTTP, as protobuf and as JSON, and keeps the spans."""

import gzip
import json
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


@dataclass(frozen=True, kw_only=True)
class Span:
    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    is_error: bool
    attributes: dict
    format: str


class Collector:
    def __init__(self):
        self.spans: list[Span] = []
        self._received = received = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                with received:
                    collector.spans += list(_parse_spans(self.headers["Content-Type"], body))
                    received.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def wait_until(self, condition, what: str, *, seconds: float = 30) -> list[Span]:
        """Return all spans once a condition of them holds."""
        with self._received:
            is_met = self._received.wait_for(lambda: condition(self.spans), timeout=seconds)
            assert is_met, f"not within {seconds:g} s: {what}; there is {self.spans}"
            return list(self.spans)

    def wait_for_trace(self, trace_id: str, *names: str, seconds: float = 30) -> list[Span]:
        """The spans of a trace, once those of some names are among them, as many as the name is given times."""

        def select_trace(spans):
            return [span for span in spans if span.trace_id == trace_id]

        def has_all_names(spans):
            return Counter(names) <= Counter(span.name for span in select_trace(spans))

        return select_trace(self.wait_until(has_all_names, f"{names} of {trace_id}", seconds=seconds))


def _parse_spans(content_type: str, body: bytes):
    if content_type.startswith("application/json"):
        # OTLP's JSON writes ids in hex, where protobuf's own mapping has base64.
        yield from _spans(json.loads(body), "json", lambda written: written)
        return
    assert content_type == "application/x-protobuf"
    request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
    # Ids by way of the messages, for the mapping would write them in base64.
    ids = {}
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                for field in ("trace_id", "span_id", "parent_span_id"):
                    ids[json_format.MessageToDict(span).get(_CAMEL[field], "")] = getattr(span, field).hex()
    yield from _spans(json_format.MessageToDict(request), "protobuf", ids.__getitem__)


_CAMEL = {"trace_id": "traceId", "span_id": "spanId", "parent_span_id": "parentSpanId"}
_KINDS = {1: "SPAN_KIND_INTERNAL", 2: "SPAN_KIND_SERVER", 3: "SPAN_KIND_CLIENT"}


def _to_dict(attributes) -> dict:
    return {each["key"]: next(iter(each["value"].values())) for each in attributes}


def _spans(request: dict, format: str, id_of):
    for resource in request["resourceSpans"]:
        service = _to_dict(resource["resource"]["attributes"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                parent = span.get("parentSpanId", "")
                kind = span["kind"]
                yield Span(
                    service=service,
                    name=span["name"],
                    kind=_KINDS.get(kind, kind),
                    trace_id=id_of(span["traceId"]),
                    span_id=id_of(span["spanId"]),
                    parent_id=id_of(parent) if parent else "",
                    is_error=span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
                    attributes=_to_dict(span.get("attributes", [])),
                    format=format,
                )
