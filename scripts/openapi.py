"""Generate the OpenAPI document of the HTTP/JSON service from the proto's descriptors and comments."""

import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

__all__ = ["openapi"]

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
_ROUTES = {
    "ClassifyListing": ("post", "/v1/listings:classify"),
    "GetModel": ("get", "/v1/model"),
    "ExplainPhoto": ("post", "/v1/photos:explain"),
    "ReportOutcome": ("post", "/v1/outcomes"),
}
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
_VERSION = {
    "name": "version",
    "in": "query",
    "schema": {"type": "string"},
    "description": "As `taxonomyVersion` of an answer; that of `GET /v1/model` where it is absent.",
}
_NAMED = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "parentId": {"type": ["string", "null"]},
            "names": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
}
_TAXONOMY = {
    "type": "object",
    "properties": {"version": {"type": "string"}, "categories": _NAMED, "brands": _NAMED},
}


def openapi(root: Path, proto: str, version: str) -> dict[str, Any]:
    """Return the document.

    Args:
        root: folder of the proto files.
        proto: path of the service's file in it.
        version: version of the project.
    """
    file = _described(root, proto)
    comments = {tuple(place.path): _text(place.leading_comments) for place in file.source_code_info.location}
    schemas: dict[str, Any] = {"Error": _ERROR, "Taxonomy": _TAXONOMY}
    for number, message in enumerate(file.message_type):
        schemas[message.name] = _message(message, number, comments)
    for number, enum in enumerate(file.enum_type):
        schemas[enum.name] = {
            "type": "string",
            "enum": [value.name for value in enum.value],
            "description": comments.get((_ENUM_PATH, number), ""),
        }
    paths: dict[str, Any] = {
        "/v1/taxonomy": {
            "get": _operation(
                "GetTaxonomy", "Ids and names of categories and brands, in all languages.", None, "Taxonomy"
            )
        }
    }
    paths["/v1/taxonomy"]["get"]["parameters"].append(_VERSION)
    (service,) = file.service
    for number, method in enumerate(service.method):
        if method.name in _ROUTES:
            verb, path = _ROUTES[method.name]
            asked = method.input_type.rpartition(".")[2] if verb == "post" else None
            said = comments.get((_SERVICE_PATH, 0, 2, number), "")
            paths[path] = {verb: _operation(method.name, said, asked, method.output_type.rpartition(".")[2])}
    content = paths["/v1/listings:classify"]["post"]["requestBody"]["content"]
    content["multipart/form-data"] = {"schema": _FORM}
    return {
        "openapi": "3.1.0",
        "info": {"title": "listing-vision", "version": version, "description": comments.get((_SERVICE_PATH, 0), "")},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _described(root: Path, proto: str) -> descriptor_pb2.FileDescriptorProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set"
        arguments = ["protoc", f"-I{root}", f"--descriptor_set_out={path}", "--include_source_info", proto]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    return file


def _text(comment: str) -> str:
    return " ".join(comment.split())


def _message(message: Any, number: int, comments: dict[tuple[int, ...], str]) -> dict[str, Any]:
    properties = {}
    for at, field in enumerate(message.field):
        properties[field.json_name] = _field(field) | {"description": comments.get((_MESSAGE_PATH, number, 2, at), "")}
    return {"type": "object", "properties": properties, "description": comments.get((_MESSAGE_PATH, number), "")}


def _field(field: Any) -> dict[str, Any]:
    if field.type in (_FIELD.TYPE_MESSAGE, _FIELD.TYPE_ENUM):
        schema = {"$ref": f"#/components/schemas/{field.type_name.rpartition('.')[2]}"}
    else:
        schema = _SCALARS[field.type]
    return {"type": "array", "items": schema} if field.label == _FIELD.LABEL_REPEATED else dict(schema)


def _operation(name: str, description: str, asked: str | None, answer: str) -> dict[str, Any]:
    def holding(schema: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

    operation: dict[str, Any] = {
        "operationId": name[0].lower() + name[1:],
        "description": description,
        "parameters": [_TIMEOUT, _REQUEST_ID],
        "responses": {
            "200": {"description": "The answer.", "content": holding(answer)},
            "default": {"description": "Why there is none.", "content": holding("Error")},
        },
    }
    if asked:
        operation["requestBody"] = {"required": True, "content": holding(asked)}
    return operation
