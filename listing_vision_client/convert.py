"""From messages of the contract to the dataclasses of `results`, by the names of their fields."""

import functools
import types
import typing
from collections.abc import Callable, Hashable
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf import duration_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

__all__ = ["find_field", "from_message"]

_T = TypeVar("_T")
_Reader = Callable[[Any], Any]
_DURATION = duration_pb2.Duration.DESCRIPTOR.full_name


def from_message(kind: type[_T], message: Message) -> _T:
    """Return the dataclass `kind` with the values of a message whose fields have the same names."""
    readers: dict[str, _Reader] = _create_readers(kind, message.DESCRIPTOR)  # type: ignore[arg-type]
    return kind(**{name: read(message) for name, read in readers.items()})


def find_field(descriptor: Descriptor, name: str) -> FieldDescriptor:
    """Return the field of a message that a dataclass's field bears the value of; `duration_s` is of `duration`."""
    by_name = descriptor.fields_by_name
    return by_name[name] if name in by_name else by_name[name.removesuffix("_s")]


@functools.cache
def _create_readers(kind: Hashable, descriptor: Descriptor) -> dict[str, _Reader]:
    hints: dict[str, Any] = typing.get_type_hints(kind)
    return {name: _create_reader(hint, find_field(descriptor, name)) for name, hint in hints.items()}


def _create_reader(hint: Any, field: FieldDescriptor) -> _Reader:
    """Return what reads a field out of its message; `hint` is the type of the dataclass's field."""
    name, origin = field.name, typing.get_origin(hint)
    if origin is tuple:
        convert = _create_converter(typing.get_args(hint)[0], field)
        return lambda message: tuple(map(convert, getattr(message, name)))
    if origin is types.UnionType:
        convert = _create_converter(typing.get_args(hint)[0], field)
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    convert = _create_converter(hint, field) if origin is None else dict
    return lambda message: convert(getattr(message, name))


def _create_converter(kind: Any, field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.enum_type:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        assert issubclass(kind, StrEnum)
        return lambda number: kind(names.get(number, ""))
    if field.message_type is None:
        return lambda value: value
    if field.message_type.full_name == _DURATION:
        return lambda duration: duration.ToNanoseconds() / 1e9
    return lambda message: from_message(kind, message)
