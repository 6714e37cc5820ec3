"""Numbers of a report in words, as the length of a bar, and in JSON: any number, NaN and infinities too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

__all__ = ["from_json", "json_value", "largest_finite", "level", "number", "says_something"]

DECADES = 8
"""Orders of magnitude below the largest norm that a bar shows."""

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(value: object) -> str:
    """Return a value of the evidence as text: four significant digits, lists in brackets.

    Example:
        >>> number(1 / 3), number([1, float("nan")]), number({"x": 1e-30}), number("mul")
        ('0.3333', '[1, nan]', '{x: 1e-30}', 'mul')
    """
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{float(value):.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {number(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(number(one) for one in value) + "]"
    return str(value)


def largest_finite(norms: Iterable[float | None]) -> float:
    """Return the largest of the norms that are finite, 0 where there is none.

    Example:
        >>> largest_finite([None, 2.0, float("inf"), float("nan")])
        2.0
    """
    return max((norm for norm in norms if norm is not None and math.isfinite(norm)), default=0.0)


def level(norm: float, largest: float) -> float:
    """Return where a norm lies between nothing (0) and the largest (1), on a logarithmic scale over eight decades.

    Args:
        norm: any number; what is not finite or not positive lies at 0.
        largest: the largest finite norm of the program.

    Example:
        >>> level(1e-4, 1.0), level(0.0, 1.0), level(float("nan"), 1.0), level(5e-324, 1e308)
        (0.5, 0.0, 0.0, 0.0)
    """
    if not (math.isfinite(norm) and math.isfinite(largest)) or norm <= 0 or largest <= 0:
        return 0.0
    # The difference of two logarithms: a quotient of such numbers may be 0.
    return min(max(1 + (math.log10(norm) - math.log10(largest)) / DECADES, 0.0), 1.0)


def json_value(value: Any) -> Any:
    """Return a value as strict JSON has it: numbers it lacks as strings, records as objects, the rest as text.

    Example:
        >>> json_value({"norm": float("inf"), "shape": (2, 3)})
        {'norm': 'Infinity', 'shape': [2, 3]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        plain = float(value)
        if math.isfinite(plain):
            return plain
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(name): json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_value(getattr(value, field.name)) for field in fields(value)}
    return str(value)


def from_json(value: Any) -> Any:
    """Return a measured value as it was before :func:`json_value`.

    Example:
        >>> from_json({"norm": "Infinity", "shape": [2, 3], "op": "mul"})
        {'norm': inf, 'shape': [2, 3], 'op': 'mul'}
    """
    if isinstance(value, str):
        return _SPECIAL.get(value, value)
    if isinstance(value, Mapping):
        return {name: from_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [from_json(one) for one in value]
    return value


def says_something(value: object) -> bool:
    """Return whether a piece of evidence is worth a line: not ``None``, and not empty.

    Example:
        >>> says_something([]), says_something(0)
        (False, True)
    """
    return value is not None and not (isinstance(value, str | list | tuple | dict) and not value)
