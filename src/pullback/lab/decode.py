"""JSON that anybody may have written, as dataclasses: every value is compared with its field's type, or refused.

JSON has no NaN and infinities: they are the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"`` there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Union

__all__ = ["DecodeError", "decode", "encode", "read_json"]

LARGEST_FILE = 256 * 2**20
"""Bytes of a record: ten million recorded values."""

DEEPEST = 32
"""Levels of nesting of what has no type of its own."""

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class DecodeError(ValueError):
    """A value is not of the type that is expected in its place; the message names the place."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{place.removeprefix('.') or 'it'} {problem}")
        self.problem, self.place = problem, place


def read_json(path: Path) -> Any:
    """Return what a file holds.

    Raises:
        FileNotFoundError: there is none.
        DecodeError: it is no regular file, cannot be read, is larger than ``LARGEST_FILE``, or is no JSON.
    """
    try:
        # Without O_NONBLOCK a named pipe in its place would be waited for.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise DecodeError("is no file")
            if state.st_size > LARGEST_FILE:
                raise DecodeError(f"is larger than {LARGEST_FILE >> 20} MiB")
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror}") from error
    try:
        return json.loads(content, parse_constant=_no_constant)
    except RecursionError:
        raise DecodeError("is nested too deeply") from None
    except ValueError as error:  # also bytes that are no text, and integers of thousands of digits
        raise DecodeError(f"is no JSON: {error}") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def encode(value: Any) -> Any:
    """Return a value as strict JSON has it: no NaN, no infinity, no half of a surrogate pair.

    Example:
        >>> encode({"gap": float("inf"), "sizes": (1, 2)})
        {'gap': 'Infinity', 'sizes': [1, 2]}
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {encode(str(key)): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, value: Any) -> Any:
    """Return ``value``, which came from JSON, as ``kind``.

    Args:
        kind: a dataclass, ``str``, ``int`` (64 bits), ``float``, ``bool``, ``None``, ``Any``, or a ``list``, ``tuple``,
            ``dict`` or union of these.
        value: as ``json.loads`` returns it.

    Raises:
        DecodeError: it is something else, somewhere.

    Example:
        >>> decode(dict[str, list[float]], {"loss": [1, "NaN"]})
        {'loss': [1.0, nan]}
        >>> decode(dict[str, list[float]], {"loss": [1, "x"]})
        Traceback (most recent call last):
        pullback.lab.decode.DecodeError: loss[1] must be a number, got 'x'
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_fields(kind, value)
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value)
    if origin in (list, tuple):
        item = typing.get_args(kind)[0]
        found = [_within(f"[{index}]", item, one) for index, one in enumerate(_expect(list, value))]
        return found if origin is list else tuple(found)
    if origin is dict:
        item = typing.get_args(kind)[1]
        return {
            _text(key): _within(f".{ascii(key)[1:-1][:40]}", item, one) for key, one in _expect(dict, value).items()
        }
    if kind is Any:
        return _decode_any(value, DEEPEST)
    return _LEAVES[type(None) if kind is None else kind](value)


def _within(place: str, kind: Any, value: Any) -> Any:
    try:
        return decode(kind, value)
    except DecodeError as error:
        raise DecodeError(error.problem, f"{place}{error.place}") from None


@cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Name to (type, whether it has a default)."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is not missing or field.default_factory is not missing)
        for field in dataclasses.fields(kind)
    }


def _decode_fields(kind: type, value: Any) -> Any:
    fields = _fields(kind)
    given = _expect(dict, value)
    for name in given:
        if name not in fields:
            raise DecodeError(f"has an unknown entry {_shown(name)}")
    for name, (_, optional) in fields.items():
        if name not in given and not optional:
            raise DecodeError(f"lacks {name!r}")
    return kind(**{name: _within(f".{name}", fields[name][0], one) for name, one in given.items()})


def _decode_union(kinds: tuple[Any, ...], value: Any) -> Any:
    errors = []
    for kind in kinds:
        try:
            return decode(kind, value)
        except DecodeError as error:
            errors.append(error)
    raise errors[0]


def _decode_any(value: Any, levels: int) -> Any:
    if levels == 0:
        raise DecodeError("is nested too deeply")
    if isinstance(value, dict):
        return {_text(key): _decode_any(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode_any(item, levels - 1) for item in value]
    if isinstance(value, str):
        return _SPECIAL.get(value) if value in _SPECIAL else _text(value)
    return _integer(value) if type(value) is int else value


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise DecodeError(f"must be {'a list' if kind is list else 'an object'}, got {_shown(value)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DecodeError(f"must be text, got {_shown(value)}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DecodeError("holds half of a surrogate pair")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise DecodeError(f"must be an integer of 64 bits, got {_shown(value)}")
    return value


def _number(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int and abs(value) < 2**1000:
        return float(value)
    if isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    raise DecodeError(f"must be a number, got {_shown(value)}")


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise DecodeError(f"must be true or false, got {_shown(value)}")
    return value


def _nothing(value: Any) -> None:
    if value is not None:
        raise DecodeError(f"must be null, got {_shown(value)}")


_LEAVES = {str: _text, int: _integer, float: _number, bool: _boolean, type(None): _nothing}


def _shown(value: Any) -> str:
    if type(value) is int and abs(value) >= 2**63:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return ascii(value)[:60]
