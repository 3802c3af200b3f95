"""Parse `multipart/form-data` (RFC 7578) to a ClassifyListingRequest.

The whole body is in memory and is split at its boundaries at once: no part is copied letter by letter, and a form that
ends early is refused rather than classified with the photos that arrived.
"""

import re
from email.message import Message as Headers
from email.parser import BytesHeaderParser
from typing import Any, NamedTuple

from listing_vision_client.errors import FieldViolation
from serving.http_api.errors import HttpRefusal
from serving.http_api.json_requests import find_field, parse_text, refuse_fields

__all__ = ["MAX_PARTS", "PHOTO_NAMES", "parse_form"]

PHOTO_NAMES = ("photos", "photos[]", "photo")
MAX_PARTS = 100
"""More photos than a listing may have are left to the gateway to refuse; a form of very many parts is not read."""
_MAX_HEADER_BYTES = 16 << 10


class _Part(NamedTuple):
    name: str
    content: bytes


def parse_form(body: bytes, content_type: str, message: Any) -> None:
    """Set the fields of a ClassifyListingRequest from a form: photos, with or without a file name, and text fields.

    Raises:
        HttpRefusal: the form cannot be read, or has a field that is unknown or wrong.
    """
    violations: list[FieldViolation] = []
    seen = set()
    for part in _split(body, _read_boundary(content_type)):
        if part.name in PHOTO_NAMES:
            message.photos.add(content=part.content)
            continue
        field = find_field(message, part.name)
        name = part.name[:100]
        if field is None:
            known = ", ".join(["photos", *(one.name for one in message.DESCRIPTOR.fields if not one.is_repeated)])
            description = f"is no field of the form; known are: {known}"
            violations.append(FieldViolation(field=name, reason="FIELD_UNKNOWN", description=description))
        elif field.name in seen:
            description = "is given more than once"
            violations.append(FieldViolation(field=name, reason="FIELD_INVALID", description=description))
        else:
            seen.add(field.name)
            violations += parse_text(part.content.decode("utf-8", "replace"), field, message, name)
    refuse_fields(violations, message)


def _read_boundary(content_type: str) -> bytes:
    headers = Headers()
    headers["content-type"] = content_type
    boundary = headers.get_param("boundary")
    if not isinstance(boundary, str) or not re.fullmatch(r"[ -~]{1,200}", boundary):
        raise _unreadable("its content type has no boundary")
    return boundary.encode()


def _split(body: bytes, boundary: bytes) -> list[_Part]:
    delimiter = rb"\r\n--" + re.escape(boundary) + rb"(?=--|[ \t]*\r\n)"
    pieces = re.split(delimiter, b"\r\n" + body, maxsplit=MAX_PARTS + 1)
    if len(pieces) > MAX_PARTS + 1 and not pieces[-1].startswith(b"--"):
        raise _unreadable(f"it has more than {MAX_PARTS} parts")
    parts: list[_Part] = []
    for piece in pieces[1:]:  # the first one is before the first boundary
        if piece.startswith(b"--"):
            return parts
        head, blank_line, content = piece.lstrip(b" \t")[2:].partition(b"\r\n\r\n")
        if not blank_line or len(head) > _MAX_HEADER_BYTES:
            raise _unreadable("a part has no headers, or too long ones")
        name = BytesHeaderParser().parsebytes(head).get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise _unreadable("a part has no name")
        parts.append(_Part(name, content))
    raise _unreadable("it ends before its last boundary")


def _unreadable(detail: str) -> HttpRefusal:
    return HttpRefusal(reason="BODY_UNREADABLE", message=f"the form cannot be read: {detail}")
