"""Generate the OpenAPI document of the HTTP/JSON service from the contract's descriptors and comments.

Limits are read from the comments, in the forms that they have there: `Range [0, 1]`, `At most 200 characters`,
`1 to 20`, `always set`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from scripts.openapi_errors import build_error_components, build_error_responses
from scripts.openapi_schemas import SchemaBuilder, read_limits
from serving.api.limits import DEFAULT_TIMEOUT_S, MAX_REQUEST_ID_CHARS, MAX_TIMEOUT_S
from serving.http_api.form_requests import PHOTO_NAMES
from serving.http_api.routes import FORM_METHOD, HttpRule, read_http_rule

__all__ = ["build_openapi"]

_PACKAGE = "listing.vision.v1"
_HEADERS = (
    {
        "name": "x-timeout-ms",
        "in": "header",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": round(1000 * MAX_TIMEOUT_S)},
        "description": f"Deadline of the request in milliseconds; {DEFAULT_TIMEOUT_S:.0f} s if it is absent.",
    },
    {
        "name": "x-request-id",
        "in": "header",
        "schema": {"type": "string", "maxLength": MAX_REQUEST_ID_CHARS},
        "description": "The caller's own id of the request, for logs. Printable ASCII.",
    },
    {
        "name": "traceparent",
        "in": "header",
        "schema": {"type": "string"},
        "description": "W3C trace context: the trace that the service's spans belong to.",
    },
)


def build_openapi(image: bytes, *, version: str) -> dict[str, Any]:
    """Return the document.

    Args:
        image: serialized FileDescriptorSet of the contract, with imports and comments.
        version: version of the project.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(image).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    comments = {name: text for file in files if file.package == _PACKAGE for name, text in _read_comments(file)}
    service = pool.FindServiceByName(f"{_PACKAGE}.ListingVisionService")
    routes = {method: rule for method in service.methods if (rule := read_http_rule(method.GetOptions()))}
    builder = SchemaBuilder(comments)
    for method, rule in routes.items():
        if rule.verb == "POST":
            builder.add_message(method.input_type, is_request=True)
        builder.add_message(method.output_type, is_request=False)
    reasons = [pool.FindEnumTypeByName(f"{_PACKAGE}.{name}") for name in ("ErrorReason", "PhotoErrorReason")]
    for enum in reasons:
        builder.add_enum(enum, is_request=False)
    components = build_error_components(reasons[0], comments)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "listing-vision",
            "version": version,
            "description": comments[service.full_name],
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            rule.path: {rule.verb.lower(): _build_operation(method, rule, builder, comments)}
            for method, rule in sorted(routes.items(), key=lambda item: item[1].path)
        },
        "components": {
            **components,
            "schemas": dict(sorted({**builder.schemas, **components["schemas"]}.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _read_comments(file: Any) -> Iterator[tuple[str, str]]:
    """Yield the full name and the comment of each message, field, enum, value, service and method."""
    by_path = {tuple(place.path): " ".join(place.leading_comments.split()) for place in file.source_code_info.location}
    # The numbers are those of the fields of FileDescriptorProto and of what it consists of.
    groups = ((4, file.message_type, 2, "field"), (5, file.enum_type, 2, "value"), (6, file.service, 2, "method"))
    for number, elements, child_number, children in groups:
        for index, element in enumerate(elements):
            yield f"{file.package}.{element.name}", by_path.get((number, index), "")
            for at, child in enumerate(getattr(element, children)):
                path = (number, index, child_number, at)
                yield f"{file.package}.{element.name}.{child.name}", by_path.get(path, "")


def _build_operation(
    method: Any, rule: HttpRule, builder: SchemaBuilder, comments: Mapping[str, str]
) -> dict[str, Any]:
    description = comments[method.full_name]
    response = {"$ref": f"#/components/schemas/{method.output_type.name}"}
    operation: dict[str, Any] = {
        "operationId": method.name[0].lower() + method.name[1:],
        "summary": re.split(r"(?<=\.) ", description, maxsplit=1)[0],
        "description": description,
        "parameters": list(_HEADERS),
        "responses": {
            "200": {
                "description": comments[method.output_type.full_name],
                "content": {"application/json": {"schema": response}},
            },
            **build_error_responses(method.name, rule.verb, comments),
        },
    }
    if rule.verb == "GET":
        operation["parameters"] += [
            {
                "name": field.json_name,
                "in": "query",
                "schema": builder.build_field(field, is_request=True),
                "description": comments[f"{method.input_type.full_name}.{field.name}"],
            }
            for field in method.input_type.fields
        ]
        return operation
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{method.input_type.name}"}}}
    if method.name == FORM_METHOD:
        content["multipart/form-data"] = {"schema": _build_form(method.input_type, builder, comments)}
    operation["requestBody"] = {"required": True, "content": content}
    return operation


def _build_form(message: Any, builder: SchemaBuilder, comments: Mapping[str, str]) -> dict[str, Any]:
    """Return the schema of a form: a file for each photo, and the scalar fields."""
    properties, required = {}, []
    for field in message.fields:
        comment = comments[f"{message.full_name}.{field.name}"]
        if field.name in PHOTO_NAMES:
            photo = {"type": "string", "contentMediaType": "application/octet-stream"}
            schema = {"type": "array", "items": photo, **read_limits(field, comment)}
        else:
            schema = builder.build_field(field, is_request=True)
        properties[field.name] = schema | {"description": comment}
        behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        if field_behavior_pb2.REQUIRED in behaviors:
            required.append(field.name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
