"""Generate the OpenAPI document of the HTTP/JSON service from the contract's descriptors and comments."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

__all__ = ["Route", "build_openapi", "read_route"]

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS: dict[int, dict[str, Any]] = {
    _FIELD.TYPE_STRING: {"type": "string"},
    _FIELD.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _FIELD.TYPE_BOOL: {"type": "boolean"},
    _FIELD.TYPE_INT32: {"type": "integer", "format": "int32"},
    # proto3's JSON writes 64 bits as text.
    _FIELD.TYPE_INT64: {"type": "string", "format": "int64"},
    _FIELD.TYPE_FLOAT: {"type": "number", "format": "float"},
    _FIELD.TYPE_DOUBLE: {"type": "number", "format": "double"},
}
_MESSAGE_PATH, _ENUM_PATH, _SERVICE_PATH = 4, 5, 6
"""Field numbers of google.protobuf.FileDescriptorProto in the paths of source locations."""
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$", "examples": ["1.5s"]},
}
_PACKAGE = "listing.vision.v1"
_FORM = {
    "type": "object",
    "required": ["photos"],
    "properties": {
        "photos": {
            "type": "array",
            "minItems": 1,
            "maxItems": 20,
            "items": {"type": "string", "contentMediaType": "application/octet-stream"},
            "description": "The photos' files.",
        },
        "listing_id": {"type": "string", "maxLength": 200},
        "alternative_count": {"type": "integer", "minimum": 0, "maximum": 20},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "status", "reason", "message"],
            "properties": {
                "code": {"type": "integer", "description": "The HTTP status."},
                "status": {"type": "string", "description": "The gRPC status."},
                "reason": {"type": "string", "description": "Stable, for machines."},
                "message": {"type": "string", "description": "For people."},
                "violations": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
                    },
                },
                "retryDelayMs": {"type": "integer", "description": "After which to try again."},
            },
        }
    },
}
_TIMEOUT = {
    "name": "x-timeout-ms",
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 60000},
    "description": "How long the answer may take; 10 seconds where it is absent.",
}
_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "schema": {"type": "string", "maxLength": 100},
    "description": "The caller's own id of the request, for logs.",
}


def build_openapi(image: bytes, *, version: str) -> dict[str, Any]:
    """Return the document.

    Args:
        image: serialized FileDescriptorSet of the contract, with imports and comments.
        version: version of the project.
    """
    files = [f for f in descriptor_pb2.FileDescriptorSet.FromString(image).file if f.package == _PACKAGE]
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    description = ""
    for file in files:
        comments = {tuple(place.path): _join_lines(place.leading_comments) for place in file.source_code_info.location}
        for number, message in enumerate(file.message_type):
            if message.name.startswith("ClassifyListings"):  # of the stream, which is not served over HTTP
                continue
            schemas[message.name] = _message_schema(message, number, comments)
        for number, enum in enumerate(file.enum_type):
            schemas[enum.name] = {
                "type": "string",
                "enum": [value.name for value in enum.value],
                "description": comments.get((_ENUM_PATH, number), ""),
            }
        for service in file.service:
            description = comments[_SERVICE_PATH, 0]
            for number, method in enumerate(service.method):
                route = read_route(method)
                if route:
                    paths[route.path] = {
                        route.verb: _operation(method, route, comments.get((_SERVICE_PATH, 0, 2, number), ""), files)
                    }
    content = paths["/v1/listings:classify"]["post"]["requestBody"]["content"]
    content["multipart/form-data"] = {"schema": _FORM}
    return {
        "openapi": "3.1.0",
        "info": {"title": "listing-vision", "version": version, "description": description},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


class Route(NamedTuple):
    verb: str
    """`get` or `post`."""
    path: str


def read_route(method: descriptor_pb2.MethodDescriptorProto) -> Route | None:
    """Return the google.api.http option of a method; None if it has none."""
    rule = method.options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return Route(verb, getattr(rule, verb)) if verb else None


def _join_lines(comment: str) -> str:
    return " ".join(comment.split())


def _message_schema(message: Any, number: int, comments: dict[tuple[int, ...], str]) -> dict[str, Any]:
    properties = {}
    maps = {f".{_PACKAGE}.{message.name}.{nested.name}": nested for nested in message.nested_type}
    for at, field in enumerate(message.field):
        schema = _map_schema(maps[field.type_name]) if field.type_name in maps else _field_schema(field)
        properties[field.json_name] = schema | {"description": comments.get((_MESSAGE_PATH, number, 2, at), "")}
    return {"type": "object", "properties": properties, "description": comments.get((_MESSAGE_PATH, number), "")}


def _map_schema(entry: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": _field_schema(entry.field[1])}


def _field_schema(field: Any) -> dict[str, Any]:
    if field.type_name in _WELL_KNOWN:
        schema = _WELL_KNOWN[field.type_name]
    elif field.type in (_FIELD.TYPE_MESSAGE, _FIELD.TYPE_ENUM):
        schema = {"$ref": f"#/components/schemas/{field.type_name.rpartition('.')[2]}"}
    else:
        schema = _SCALARS[field.type]
    return {"type": "array", "items": schema} if field.label == _FIELD.LABEL_REPEATED else dict(schema)


def _operation(method: Any, route: Route, description: str, files: Sequence[Any]) -> dict[str, Any]:
    def json_content(schema: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

    request, response = (name.rpartition(".")[2] for name in (method.input_type, method.output_type))
    operation: dict[str, Any] = {
        "operationId": method.name[0].lower() + method.name[1:],
        "description": description,
        "parameters": [_TIMEOUT, _REQUEST_ID],
        "responses": {
            "200": {"description": "The answer.", "content": json_content(response)},
            "default": {"description": "Why there is none.", "content": json_content("Error")},
        },
    }
    if route.verb == "post":
        operation["requestBody"] = {"required": True, "content": json_content(request)}
    else:
        (message,) = (m for file in files for m in file.message_type if m.name == request)
        operation["parameters"] += [
            {"name": field.json_name, "in": "query", "schema": _field_schema(field)} for field in message.field
        ]
    return operation
