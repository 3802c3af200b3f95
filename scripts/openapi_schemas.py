"""Schemas of messages, fields and enums for the OpenAPI document."""

import re
from collections.abc import Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor

__all__ = ["SchemaBuilder", "read_limits"]

_SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    # proto3's JSON writes 64 bits as text.
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64", "pattern": r"^-?\d+$"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
}
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$", "examples": ["0.012s"]},
}


class SchemaBuilder:
    """Collects the schemas of messages and of all that they consist of, in `schemas` by name."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        """Args: comments: by the full name of what they are about."""
        self.schemas: dict[str, Any] = {}
        self._comments = comments

    def add_message(self, message: Any, *, is_request: bool) -> None:
        if message.name in self.schemas:
            return
        schema: dict[str, Any] = {"description": self._comments[message.full_name]}
        self.schemas[message.name] = schema
        choices = [oneof for oneof in message.oneofs if not _is_synthetic(oneof)]
        plain = [field for field in message.fields if field.containing_oneof not in choices]
        if plain or not choices:
            schema |= {
                "type": "object",
                "properties": {field.json_name: self._build_property(field, is_request=is_request) for field in plain},
                "required": [field.json_name for field in plain if self._is_required(field, is_request=is_request)],
            }
        for oneof in choices:  # a message of the contract has one at most
            schema["oneOf"] = [
                {
                    "type": "object",
                    "properties": {field.json_name: self._build_property(field, is_request=is_request)},
                    "required": [field.json_name],
                }
                for field in oneof.fields
            ]
        if is_request:  # an unknown field is refused, but a response may have fields that were added
            schema["unevaluatedProperties"] = False
        self.schemas[message.name] = schema

    def add_enum(self, enum: Any, *, is_request: bool) -> None:
        """Add an enum: the values that a request may have, or those that a response may have today and any string."""
        values = [value for value in enum.values if is_request or value.number != 0]
        meanings = [f"- `{value.name}`: {self._comments[f'{enum.full_name}.{value.name}']}" for value in values]
        known = {"type": "string", "enum": [value.name for value in values]}
        schema = known if is_request else {"anyOf": [known, {"type": "string"}]}
        description = "\n".join([self._comments[enum.full_name], "", *meanings])
        self.schemas[enum.name] = {**schema, "description": description}

    def build_field(self, field: Any, *, is_request: bool) -> dict[str, Any]:
        """Return a field's schema; what it refers to is added."""
        limits = read_limits(field, self._comments.get(f"{field.containing_type.full_name}.{field.name}", ""))
        if field.message_type and field.message_type.GetOptions().map_entry:
            value = self.build_field(field.message_type.fields_by_name["value"], is_request=is_request)
            return {"type": "object", "additionalProperties": value}
        if field.message_type and field.message_type.full_name in _WELL_KNOWN:
            schema = _WELL_KNOWN[field.message_type.full_name]
        elif field.message_type:
            self.add_message(field.message_type, is_request=is_request)
            schema = {"$ref": f"#/components/schemas/{field.message_type.name}"}
        elif field.enum_type:
            self.add_enum(field.enum_type, is_request=is_request)
            schema = {"$ref": f"#/components/schemas/{field.enum_type.name}"}
        else:
            schema = _SCALARS[field.type]
        if not field.is_repeated:
            return {**schema, **limits}
        item_limits = {key: limits.pop(key) for key in ("minimum", "maximum") if key in limits}
        return {"type": "array", "items": {**schema, **item_limits}, **limits}

    def _build_property(self, field: Any, *, is_request: bool) -> dict[str, Any]:
        comment = self._comments[f"{field.containing_type.full_name}.{field.name}"]
        return {**self.build_field(field, is_request=is_request), "description": comment}

    def _is_required(self, field: Any, *, is_request: bool) -> bool:
        """In a request what must be given; in a response what JSON always has, default values included."""
        if is_request:
            return field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        comment = self._comments[f"{field.containing_type.full_name}.{field.name}"]
        return not field.has_presence or "always set" in comment


def read_limits(field: Any, comment: str) -> dict[str, Any]:
    """Return the limits of a field that its comment states."""
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_INT32):
        if found := re.search(r"Range \[(-?\d+), (\d+)\]", comment):
            return {"minimum": int(found[1]), "maximum": int(found[2])}
    elif field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        if found := re.search(r"at most (\d+) characters", comment, re.IGNORECASE):
            return {"maxLength": int(found[1])}
    elif field.is_repeated and (found := re.search(r", (\d+) to (\d+)\.", comment)):
        return {"minItems": int(found[1]), "maxItems": int(found[2])}
    return {}


def _is_synthetic(oneof: Any) -> bool:
    """Return whether it stands for an `optional` field."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"
