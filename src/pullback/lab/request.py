"""A run that a form asks for: every field checked against the system before a process is started."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pullback.core.checks import check_choice
from pullback.core.errors import UsageError
from pullback.lab.registry import System, load
from pullback.lab.result import SCALES

__all__ = ["RunRequest", "choices", "is_editable", "parse_request"]

LONGEST_VALUE = 500
_PREFIX = "option."


@dataclass(frozen=True)
class RunRequest:
    """What to run: a system, a scale, a seed, and the options that differ from those of the scale."""

    slug: str
    scale: str = "smoke"
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Return the words behind ``pullback``.

        Example:
            >>> RunRequest("cosmo", seed=1, options={"sizes": (5, 10), "lr": 0.1}).words()
            ['run', 'cosmo', '--scale=smoke', '--seed=1', '--sizes=5', '--sizes=10', '--lr=0.1']
        """
        words = ["run", self.slug, f"--scale={self.scale}", f"--seed={self.seed}"]
        for name, value in self.options.items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [f"--{option}={item}" for item in (value if isinstance(value, tuple) else (value,))]
        return words


def parse_request(form: Mapping[str, str]) -> RunRequest:
    """Return the run that the fields ``system``, ``scale``, ``seed`` and ``option.<name>`` ask for.

    An empty ``option.<name>`` leaves the option as its scale has it.

    Raises:
        UsageError: a field is missing, unknown, too long, or has a value that is not allowed.
    """
    for name, text in form.items():
        if len(name) > LONGEST_VALUE or len(text) > LONGEST_VALUE:
            raise UsageError(f"{name[:40]} must have at most {LONGEST_VALUE} characters, got {len(text)}")
        if name not in ("system", "scale", "seed") and not name.startswith(_PREFIX):
            raise UsageError(f"unknown field {name[:40]!r}")
    try:
        system = load(form.get("system", ""))
        scale = form.get("scale", "smoke")
        check_choice("scale", scale, SCALES)
        seed = _convert("seed", int, form.get("seed", "0"))
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63 - 1], got {seed}")
        options = {}
        for name, text in form.items():
            option = name.removeprefix(_PREFIX)
            if name.startswith(_PREFIX) and option not in system.options:
                raise ValueError(f"{system.slug} has no option {option[:40]!r}")
            if name.startswith(_PREFIX) and text.strip():
                options[option] = _convert(option, system.options[option].type, text.strip())
        system.configure(scale, **options)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(str(error)) from error
    return RunRequest(system.slug, scale, seed, _changes(system, scale, options))


def choices(kind: Any) -> tuple[str, ...] | None:
    """Return the words that an option of this type can be, or ``None`` where it is free text.

    Example:
        >>> choices(bool), choices(Literal["a", "b"]), choices(int)
        (('true', 'false'), ('a', 'b'), None)
    """
    kind = _without_none(kind)
    if kind is bool:
        return ("true", "false")
    return tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is Literal else None


def is_editable(kind: Any) -> bool:
    """Return whether a form can give an option of this type; others are for the command line.

    Example:
        >>> is_editable(tuple[int, ...]), is_editable(dict)
        (True, False)
    """
    kind = _without_none(kind)
    if typing.get_origin(kind) is tuple:
        return all(item is Ellipsis or item in (int, float, str) for item in typing.get_args(kind))
    return kind in (int, float, str, bool) or typing.get_origin(kind) is Literal


def _convert(name: str, kind: Any, text: str) -> Any:
    """The value of that type that the text says."""
    kind = _without_none(kind)
    words = choices(kind)
    if words is not None:
        check_choice(name, text, words)
        return text == "true" if kind is bool else typing.get_args(kind)[words.index(text)]
    if kind is int:
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
            raise ValueError(f"{name} must be an integer, got {text[:40]!r}")
        return int(text)
    if kind is float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {text[:40]!r}")
        return value
    if kind is str:
        if not text.isprintable():
            raise ValueError(f"{name} must be printable text, got {text[:40]!r}")
        return text
    if is_editable(kind):
        return _convert_tuple(name, typing.get_args(kind), text)
    raise ValueError(f"{name} can only be given on the command line")


def _convert_tuple(name: str, items: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    if items[-1] is Ellipsis:
        items = (items[0],) * len(parts)
    if not parts or len(parts) != len(items):
        raise ValueError(f"{name} must be {len(items) or 'some'} values, got {text[:40]!r}")
    return tuple(_convert(name, item, part) for item, part in zip(items, parts, strict=True))


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [item for item in typing.get_args(kind) if item is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _changes(system: System, scale: str, options: Mapping[str, Any]) -> dict[str, Any]:
    usual = system.configure(scale)
    return {name: value for name, value in options.items() if getattr(usual, name) != value}
