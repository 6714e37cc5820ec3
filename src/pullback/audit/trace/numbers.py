"""Python numbers that remember from which traced value they came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["TracedFloat", "TracedInt", "origin_of", "traced"]


def _lift(name: str) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        base: Any = float if isinstance(self, TracedFloat) else int
        result = getattr(base, name)(self, *others)
        if type(result) not in (float, int):
            return result
        nodes = origin_of(self)
        for other in others:
            nodes += origin_of(other)
        return traced(result, nodes)

    method.__name__ = name
    return method


class TracedFloat(float):
    """A float with the indices of the trace nodes that it depends on; equal to, and printed as, the plain number."""

    nodes: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class TracedInt(int):
    """An int with the indices of the trace nodes that it depends on."""

    nodes: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
for _name in [f"__{side}{op}__" for op in _BINARY for side in ("", "r")] + ["__neg__", "__pos__", "__abs__"]:
    setattr(TracedFloat, _name, _lift(_name))
    setattr(TracedInt, _name, _lift(_name))


def origin_of(value: Any) -> tuple[int, ...]:
    """Return the trace nodes behind a number, empty for a plain one."""
    return value.nodes if isinstance(value, TracedFloat | TracedInt) else ()


def traced(value: Any, nodes: tuple[int, ...]) -> Any:
    """Return ``value`` (a float, an int, or nested lists of them) carrying ``nodes``; anything else unchanged."""
    if type(value) is float or type(value) is int:
        carrier = TracedFloat(value) if type(value) is float else TracedInt(value)
        carrier.nodes = tuple(dict.fromkeys(nodes))[:16]
        return carrier
    if type(value) is list:
        return [traced(v, nodes) for v in value]
    return value
