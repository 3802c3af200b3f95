"""Types of the fields of settings that come from TOML, JSON or a command line, checked against their declarations."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["describe_wrong_type", "find_wrong_type"]


def find_wrong_type(settings: Any) -> tuple[str, str] | None:
    """Name and remedy of the first field whose value is not of its declared type; None when all are."""
    for field in fields(settings):
        if wrong := describe_wrong_type(type(settings), field.name, getattr(settings, field.name)):
            return field.name, wrong
    return None


def describe_wrong_type(cls: type, name: str, value: object) -> str | None:
    """What to give instead of a value that is not of the declared type of the field; None when it is.

    A float takes whole numbers too, and only finite ones.
    """
    return _describe(get_type_hints(cls)[name], value)


def _describe(kind: Any, value: object) -> str | None:
    if kind in _SCALARS:
        fits, remedy = _SCALARS[kind]
        return None if fits(value) else remedy
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return None if value in args else f"use one of {', '.join(map(repr, args))}"
    if origin in (UnionType, Union):  # `Literal["a"] | None` makes the older one
        found = [_describe(each, value) for each in args if each is not NoneType]
        return None if value is None or None in found else found[0]
    if origin is tuple:
        is_whole = isinstance(value, tuple) and all(isinstance(each, args[0]) for each in value)
        return None if is_whole else f"use a tuple of {args[0].__name__}"
    raise TypeError(f"no check for fields of the type {kind}")


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite_number(value: object) -> bool:
    # A whole number may be too large for a float, of which math.isfinite makes an OverflowError.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_SCALARS: Mapping[type, tuple[Callable[[object], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "use true or false, in lower case as in TOML"),
    int: (_is_whole_number, "use a whole number"),
    float: (_is_finite_number, "use a finite number, such as 0.5 or 1e-3"),
    str: (lambda value: isinstance(value, str), "use a text, in quotes as in TOML"),
}
