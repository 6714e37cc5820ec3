"""The options of a run: a frozen dataclass whose fields state their type and, with ``Annotated``, their range.

Every option, whether it comes from the command line, a form, a program or the record of a run that is resumed, goes
through :func:`conform`: the one place where values are compared with what the field declares.

Example:
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     steps: Annotated[int, at_least(1)] = 200
    ...     rate: Annotated[float, above(0), at_most(1)] = 0.1
    ...     sizes: Annotated[tuple[int, ...], at_least(2)] = (8, 16)
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import math
import operator
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union

__all__ = ["Bound", "Option", "above", "at_least", "at_most", "below", "conform", "options", "plain"]

_RELATIONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Bound:
    """A bound of a number, or of every number in a tuple, list or dictionary: metadata of an ``Annotated`` type."""

    relation: Literal[">=", ">", "<=", "<"]
    limit: float

    def holds(self, value: float) -> bool:
        """Whether the number is inside."""
        return bool(_RELATIONS[self.relation](value, self.limit))

    def __str__(self) -> str:
        return f"{self.relation} {self.limit:g}"


def at_least(limit: float) -> Bound:
    """Return the bound ``value >= limit``."""
    return Bound(">=", limit)


def above(limit: float) -> Bound:
    """Return the bound ``value > limit``."""
    return Bound(">", limit)


def at_most(limit: float) -> Bound:
    """Return the bound ``value <= limit``."""
    return Bound("<=", limit)


def below(limit: float) -> Bound:
    """Return the bound ``value < limit``."""
    return Bound("<", limit)


@dataclass(frozen=True)
class Option:
    """A field of a config.

    Attributes:
        name: of the field.
        type: without its bounds.
        default: at scale ``default``.
        help: the string literal below the field.
        declared: the type with its bounds.
    """

    name: str
    type: Any
    default: Any
    help: str
    declared: Any = field(default=None, compare=False, repr=False)

    @property
    def limits(self) -> str:
        """The bounds as text, such as ``">= 1"``; empty where there are none."""
        return " and ".join(map(str, dict.fromkeys(_bounds(self.declared))))

    def conform(self, value: Any) -> Any:
        """Return the value as the field declares it; a sequence is not empty unless its default is.

        Raises:
            ValueError, TypeError: it is not allowed.
        """
        value = conform(self.name, self.declared, value)
        if isinstance(value, tuple | list | dict) and not value and self.default:
            raise ValueError(f"{self.name} must have at least one value, got none")
        return value


def options(config: type) -> dict[str, Option]:
    """Return the fields of a config by name, in order.

    Raises:
        TypeError: a field has a type that no option can have, or a default that is not of its type.
        ValueError: a default is out of its range.
    """
    bare, declared = typing.get_type_hints(config), typing.get_type_hints(config, include_extras=True)
    help_texts = _field_docstrings(config)
    defaults = config()
    found = {}
    for one in dataclasses.fields(config):
        if one.init:
            name = one.name
            default = conform(name, declared[name], getattr(defaults, name))
            found[name] = Option(name, bare[name], default, help_texts.get(name, ""), declared[name])
    return found


def conform(name: str, kind: Any, value: Any) -> Any:
    """Return ``value`` as ``kind`` says, down to the items of what is nested.

    What JSON made of a value is put right: lists become tuples, names members of enumerations, keys integers.

    Args:
        name: of the option, for the message.
        kind: ``bool``, ``int``, ``float`` (finite), ``str``, ``Path``, an ``Enum``, ``None``, or ``Literal``,
            ``tuple``, ``list``, ``dict``, ``Annotated`` or a union of these.
        value: what was given.

    Returns:
        A value of that type.

    Raises:
        ValueError: outside of a bound, not among the choices, or not finite.
        TypeError: of another type; or ``kind`` is none of the above.

    Example:
        >>> conform("codes", tuple[tuple[int, int], ...], [[8, 4], [4, 24]])
        ((8, 4), (4, 24))
        >>> conform("steps", Annotated[int, at_least(1)], 0)
        Traceback (most recent call last):
        ValueError: steps must be >= 1, got 0
    """
    return _conform(name, kind, value, ())


def plain(value: Any) -> Any:
    """Return a value of a config as JSON has it; :func:`conform` takes it back.

    Example:
        >>> plain({"codes": ((8, 4), (4, 24))})
        {'codes': [[8, 4], [4, 24]]}
    """
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _conform(name: str, kind: Any, value: Any, bounds: tuple[Bound, ...]) -> Any:
    origin, items = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _conform(name, items[0], value, bounds + tuple(b for b in items[1:] if isinstance(b, Bound)))
    if origin in (Union, types.UnionType):
        return _conform_union(name, items, value, bounds)
    if origin is Literal:
        if not any(value == item and type(value) is type(item) for item in items):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, items))}, got {value!r}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name} must be {_name(kind)}, got {_shown(value)}")
        if origin is list or items[-1] is Ellipsis:
            items = (items[0],) * len(value)
        if len(items) != len(value):
            raise ValueError(f"{name} must be {len(items)} values, got {len(value)}")
        return origin(_conform(name, item, one, bounds) for item, one in zip(items, value, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} must be {_name(kind)}, got {_shown(value)}")
        return {_key(name, items[0], key): _conform(name, items[1], one, bounds) for key, one in value.items()}
    return _conform_leaf(name, kind, value, bounds)


def _conform_union(name: str, members: tuple[Any, ...], value: Any, bounds: tuple[Bound, ...]) -> Any:
    errors: list[Exception] = []
    for member in members:
        try:
            return _conform(name, member, value, bounds)
        except (ValueError, TypeError) as error:
            errors.append(error)
    # A value of the right type that is out of range says more than one of the wrong type.
    raise next((error for error in errors if isinstance(error, ValueError)), errors[0])


def _conform_leaf(name: str, kind: Any, value: Any, bounds: tuple[Bound, ...]) -> Any:
    if kind in (None, type(None)):
        if value is not None:
            raise TypeError(f"{name} must be None, got {_shown(value)}")
        return None
    if not isinstance(kind, type) or not issubclass(kind, bool | int | float | str | Path | enum.Enum):
        raise TypeError(f"{name} has the type {_name(kind)}, which no option can have")
    if issubclass(kind, enum.Enum):
        if not isinstance(value, kind) and value not in list(kind.__members__):
            raise ValueError(f"{name} must be one of {', '.join(kind.__members__)}, got {value!r}")
        return value if isinstance(value, kind) else kind[value]
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(name, value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise TypeError(f"{name} must be {_name(kind)}, got {_shown(value)}")
    if kind in (int, float) and not all(bound.holds(value) for bound in bounds):
        raise ValueError(f"{name} must be {' and '.join(map(str, bounds))}, got {value}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def _as_float(name: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got an integer of {value.bit_length()} bits") from None


def _key(name: str, kind: Any, key: Any) -> Any:
    """A key of a dictionary: JSON made text of a number."""
    if kind is int and isinstance(key, str) and re.fullmatch(r"-?[0-9]{1,30}", key):
        return int(key)
    return _conform(name, kind, key, ())


def _bounds(kind: Any) -> Iterator[Bound]:
    """All bounds anywhere in a type."""
    for item in typing.get_args(kind):
        if isinstance(item, Bound):
            yield item
        elif typing.get_origin(kind) is not Literal:
            yield from _bounds(item)


def _name(kind: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(kind) or (kind.__name__ if type(kind) is type else str(kind).replace("typing.", ""))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _field_docstrings(config: type) -> dict[str, str]:
    """The string literal below each field, as written in the source."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = inspect.getsource(base)
        except OSError:  # a class typed at a prompt has none
            continue
        body = ast.parse(textwrap.dedent(source)).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                texts[statement.target.id] = " ".join(inspect.cleandoc(following.value.value).split())
    return texts
