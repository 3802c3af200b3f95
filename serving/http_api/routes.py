"""The HTTP routes, read from the google.api.http options of the service: they stand nowhere else."""

from typing import Any, NamedTuple

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.message import Message

from listing_vision_client.protocol import listing_vision_pb2 as pb

__all__ = ["FORM_METHOD", "HttpRule", "Route", "list_routes", "read_http_rule"]

FORM_METHOD = "ClassifyListing"
"""The method that takes `multipart/form-data` too."""


class HttpRule(NamedTuple):
    verb: str
    """`GET`: the request's fields are query parameters; `POST`: they are the body."""
    path: str


class Route(NamedTuple):
    method: str
    """Name in the service."""
    rule: HttpRule
    request_class: type[Message]


def list_routes() -> list[Route]:
    """Return a route for each method of the service that has an HTTP rule."""
    service = pb.DESCRIPTOR.services_by_name["ListingVisionService"]
    return [
        Route(method.name, rule, message_factory.GetMessageClass(method.input_type))
        for method in service.methods
        if (rule := read_http_rule(method.GetOptions()))
    ]


def read_http_rule(options: Any) -> HttpRule | None:
    """Return the rule in a method's options; None if it has none.

    Raises:
        ValueError: the rule is of a kind that is not implemented.
    """
    rule = options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    if verb is None:
        return None
    path = getattr(rule, verb)
    if (verb, rule.body) not in (("get", ""), ("post", "*")) or "{" in path or rule.additional_bindings:
        raise ValueError(f"{verb} {path}: only GET, and POST with the body '*', of a fixed path are implemented")
    return HttpRule(verb.upper(), path)
