"""Parse JSON bodies and query parameters to request messages, strictly, naming each field that is wrong.

`google.protobuf.json_format` alone is not enough: it drops letters that are not base64, so that a damaged photo would
be classified as another photo, and it names the field of an error in its text only.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from listing_vision_client.errors import FieldViolation
from serving.http_api.errors import HttpRefusal

__all__ = ["find_field", "parse_json", "parse_query", "parse_text", "refuse_fields"]

_BASE64_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
_DATA_URL = re.compile(r"data:image/[^,;]{1,100}(;[^,;]{1,100})*;base64,", re.IGNORECASE)
_MAX_VIOLATIONS = 20
_MAX_NAME_CHARS = 100
_EXPECTED = {
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_STRING: "a string",
    FieldDescriptor.CPPTYPE_MESSAGE: "an object",
}


def parse_json(body: bytes, message: Message) -> None:
    """Set a message's fields from a body.

    Raises:
        HttpRefusal: the body is not the message in proto3 JSON.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_refuse_duplicates)
    # ValueError is the superclass of what the readers of text, JSON and large numbers raise.
    except (ValueError, RecursionError) as error:
        detail = str(error)[:200] or type(error).__name__
        raise HttpRefusal(reason="BODY_UNREADABLE", message=f"the body is not JSON: {detail}") from error
    if not isinstance(value, dict):
        raise HttpRefusal(reason="BODY_UNREADABLE", message="the body is not a JSON object")
    refuse_fields(_parse_object(value, message, ""), message)


def parse_query(parameters: Iterable[tuple[str, str]], message: Message) -> None:
    """Set a message's fields from query parameters.

    Raises:
        HttpRefusal: a parameter is unknown, given twice, or has a wrong value.
    """
    violations, seen = [], set()
    for name, text in parameters:
        field = find_field(message, name)
        if field is None or field.is_repeated or field.message_type:
            violations.append(_unknown(name, message))
        elif field.name in seen:
            violations.append(_invalid(name, "is given more than once"))
        else:
            seen.add(field.name)
            violations += parse_text(text, field, message, name)
    refuse_fields(violations, message)


def parse_text(text: str, field: FieldDescriptor, message: Message, name: str) -> list[FieldViolation]:
    """Set a scalar field from a text that is not JSON: `5` is a number, `true` a bool. Return what is wrong."""
    value = {"true": True, "false": False}.get(text, text) if field.cpp_type == field.CPPTYPE_BOOL else text
    return _parse_scalar(value, field, message, name)


def find_field(message: Message, name: str) -> FieldDescriptor | None:
    """Return the field by its name in the proto or in JSON."""
    fields: Sequence[FieldDescriptor] = message.DESCRIPTOR.fields  # type: ignore[assignment]  # the stubs have two classes
    return next((field for field in fields if name in (field.name, field.json_name)), None)


def refuse_fields(violations: Sequence[FieldViolation], message: Message) -> None:
    """Raises HttpRefusal: there are violations."""
    if violations:
        first = violations[0]
        raise HttpRefusal(
            reason="BODY_UNREADABLE",
            message=f"not a {message.DESCRIPTOR.name}: {first.field}: {first.description}",
            violations=violations[:_MAX_VIOLATIONS],
        )


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _parse_object(value: dict[str, Any], message: Message, prefix: str) -> list[FieldViolation]:
    violations: list[FieldViolation] = []
    seen = set()
    for key, item in value.items():
        path = f"{prefix}{key[:_MAX_NAME_CHARS].encode(errors='replace').decode()}"  # JSON can name half a character
        field = find_field(message, key)
        if field is None:
            violations.append(_unknown(path, message))
        elif field.name in seen:
            violations.append(_invalid(path, "is given more than once"))
        elif item is not None:  # null is the default value
            seen.add(field.name)
            violations += _parse_field(item, field, message, path)
    return violations


def _parse_field(item: Any, field: FieldDescriptor, message: Message, path: str) -> list[FieldViolation]:
    oneof = field.containing_oneof
    if oneof and (other := message.WhichOneof(oneof.name)):
        return [_invalid(path, f"give it or {other}, not both")]
    if not field.message_type:
        return _parse_scalar(item, field, message, path)
    if not field.is_repeated:
        child = getattr(message, field.name)
        child.SetInParent()
        return _parse_object(item, child, f"{path}.") if isinstance(item, dict) else [_expected(path, field)]
    if not isinstance(item, list):
        return [_invalid(path, "must be an array")]
    violations: list[FieldViolation] = []
    for index, element in enumerate(item):
        child = getattr(message, field.name).add()
        if isinstance(element, dict):
            violations += _parse_object(element, child, f"{path}[{index}].")
        else:
            violations.append(_expected(f"{path}[{index}]", field))
    return violations


def _parse_scalar(value: Any, field: FieldDescriptor, message: Message, path: str) -> list[FieldViolation]:
    if field.type == field.TYPE_BYTES:
        if not isinstance(value, str):
            return [_invalid(path, "must be a string of base64")]
        value, fault = _clean_base64(value)
        if fault:
            return [_invalid(path, fault)]
    try:
        json_format.ParseDict({field.json_name: value}, message)
    except json_format.ParseError:
        return [_expected(path, field)]
    return []


def _clean_base64(text: str) -> tuple[str, str]:
    """Return the text without a prefix as of a data URL, and what is wrong with it."""
    if prefix := _DATA_URL.match(text):
        text = text[prefix.end() :]
    encoded = text.encode("utf-8", "surrogatepass")
    letters = encoded.rstrip(b"=")
    num_padding = len(encoded) - len(letters)
    if foreign := letters.translate(None, _BASE64_LETTERS):
        position = next(i for i, letter in enumerate(letters) if letter in foreign)
        return text, f"is not base64: the byte at {position} is none of its letters"
    if len(letters) % 4 == 1 or num_padding not in (0, -len(letters) % 4):
        return text, "is not base64: letters are missing at its end"
    return text, ""


def _unknown(path: str, message: Message) -> FieldViolation:
    known = ", ".join(field.json_name for field in message.DESCRIPTOR.fields) or "none"
    return FieldViolation(field=path, reason="FIELD_UNKNOWN", description=f"is no field; known are: {known}")


def _expected(path: str, field: FieldDescriptor) -> FieldViolation:
    if field.enum_type:
        return _invalid(path, f"must be one of {', '.join(value.name for value in field.enum_type.values)}")
    return _invalid(path, f"must be {_EXPECTED[field.cpp_type]}")


def _invalid(path: str, description: str) -> FieldViolation:
    return FieldViolation(field=path, reason="FIELD_INVALID", description=description)
