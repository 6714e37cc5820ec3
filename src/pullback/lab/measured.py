"""Numbers that remember what was measured, and comparisons that remember their numbers.

A :class:`Measured` is a float. It computes as one, and carries along the measurements that it was computed from; a
comparison gives a :class:`Verdict`, which is true or false and knows the numbers behind it. So a claim needs no second
list of its numbers::

    lab.claim("...", ours["exact match"] >= base["exact match"] + 0.08)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pullback.lab.result import spread

__all__ = ["Measured", "Verdict", "mean"]


class Measured(float):
    """A float with its name, its values over replicates and the measurements it was computed from.

    Sums, differences, products, quotients, powers and absolute values of measured numbers are measured numbers, also
    replicate by replicate where both have the same number of them. ``max`` and ``min`` return one of their arguments
    and so its name.

    Attributes:
        name: what was measured, or the expression that was computed.
        of: the arm it belongs to.
        unit: such as ``"s"``.
        values: one value a replicate; empty where there is one measurement.
        sources: the measurements that it was computed from, by their full names; itself where it is one.

    Example:
        >>> ours, base = Measured(0.7, "accuracy", "ours"), Measured(0.6, "accuracy", "base")
        >>> f"{ours / base:.2f}"
        '1.17'
        >>> verdict = ours >= base + 0.08
        >>> bool(verdict), verdict.numbers
        (True, {'accuracy (ours)': 0.7, 'accuracy (base)': 0.6})
    """

    name: str
    of: str
    unit: str
    values: tuple[float, ...]
    sources: Mapping[str, Measured]

    def __new__(
        cls,
        value: float,
        name: str,
        of: str = "",
        *,
        unit: str = "",
        values: Iterable[float] = (),
        sources: Mapping[str, Measured] | None = None,
    ) -> Measured:
        """Return the number ``value`` with what is known about it."""
        self = super().__new__(cls, value)
        self.name, self.of, self.unit, self.values = name, of, unit, tuple(values)
        self.sources = {self.label: self} if sources is None else sources
        return self

    @property
    def label(self) -> str:
        """The name with its arm, such as ``"accuracy (ours)"``."""
        return f"{self.name} ({self.of})" if self.of else self.name

    @property
    def spread(self) -> float | None:
        """The standard deviation over the replicates; ``None`` where there are fewer than two."""
        return spread(self.values)

    def __getnewargs__(self) -> Any:
        return float(self), self.name  # what copies are made with; the attributes follow by themselves

    def __repr__(self) -> str:
        return float.__repr__(self)

    __hash__ = float.__hash__  # a comparison that is no longer bool takes it away otherwise

    def __add__(self, other: float) -> Any:
        return _computed(operator.add, "{} + {}", self, other)

    def __radd__(self, other: float) -> Any:
        return _computed(operator.add, "{} + {}", other, self)

    def __sub__(self, other: float) -> Any:
        return _computed(operator.sub, "{} - {}", self, other)

    def __rsub__(self, other: float) -> Any:
        return _computed(operator.sub, "{} - {}", other, self)

    def __mul__(self, other: float) -> Any:
        return _computed(operator.mul, "{} * {}", self, other)

    def __rmul__(self, other: float) -> Any:
        return _computed(operator.mul, "{} * {}", other, self)

    def __truediv__(self, other: float) -> Any:
        return _computed(operator.truediv, "{} / {}", self, other)

    def __rtruediv__(self, other: float) -> Any:
        return _computed(operator.truediv, "{} / {}", other, self)

    def __pow__(self, other: float, modulo: None = None) -> Any:
        return _computed(operator.pow, "{} ** {}", self, other)

    def __neg__(self) -> Measured:
        return self._mapped(operator.neg, "-{}")

    def __abs__(self) -> Measured:
        return self._mapped(abs, "|{}|")

    def __ge__(self, other: float) -> Any:
        return _compared(operator.ge, ">=", self, other)

    def __gt__(self, other: float) -> Any:
        return _compared(operator.gt, ">", self, other)

    def __le__(self, other: float) -> Any:
        return _compared(operator.le, "<=", self, other)

    def __lt__(self, other: float) -> Any:
        return _compared(operator.lt, "<", self, other)

    def __eq__(self, other: object) -> Any:
        return _compared(operator.eq, "==", self, other)

    def __ne__(self, other: object) -> Any:
        return _compared(operator.ne, "!=", self, other)

    def _mapped(self, function: Callable[[Any], float], pattern: str) -> Measured:
        return Measured(
            function(float(self)),
            pattern.format(_operand(self)),
            unit=self.unit,
            values=map(function, self.values),
            sources=self.sources,
        )


class Verdict(int):
    """Whether a comparison holds (1 or 0), with the numbers that were compared; combined by ``&``, ``|`` and ``~``.

    Attributes:
        numbers: the measured numbers behind it, by name.
    """

    numbers: dict[str, float]

    def __new__(cls, holds: bool, numbers: Mapping[str, float]) -> Verdict:
        """Return the verdict on these numbers."""
        self = super().__new__(cls, holds)
        self.numbers = dict(numbers)
        return self

    def __getnewargs__(self) -> Any:
        return bool(self), self.numbers

    def __and__(self, other: int) -> Verdict:
        return Verdict(bool(self) and bool(other), self._joined(other))

    def __or__(self, other: int) -> Verdict:
        return Verdict(bool(self) or bool(other), self._joined(other))

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Verdict:
        return Verdict(not self, self.numbers)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} = {value:g}" for name, value in self.numbers.items())
        return f"{bool(self)} ({numbers})"

    def _joined(self, other: int) -> dict[str, float]:
        return self.numbers | (other.numbers if isinstance(other, Verdict) else {})


def mean(values: Iterable[float], name: str, of: str = "", *, unit: str = "") -> Measured:
    """Return the mean over replicates, with all of them behind it.

    Example:
        >>> accuracy = mean([0.5, 0.7], "accuracy", "ours")
        >>> f"{accuracy:.2f} ± {accuracy.spread:.2f}"
        '0.60 ± 0.14'
    """
    values = tuple(values)
    return Measured(sum(values) / len(values), name, of, unit=unit, values=values)


def _operand(value: float) -> str:
    if not isinstance(value, Measured):
        return f"{value:g}"
    return value.label if value.label in value.sources else f"({value.name})"


def _computed(operation: Callable[[Any, Any], Any], pattern: str, left: float, right: float) -> Any:
    """The result of plain numbers, and the same replicate by replicate."""
    if not (isinstance(left, float | int) and isinstance(right, float | int)):
        return NotImplemented
    sources: dict[str, Measured] = {}
    for side in (left, right):
        sources |= side.sources if isinstance(side, Measured) else {}
    lengths = {len(side.values) for side in (left, right) if isinstance(side, Measured)}
    values: list[float] = []
    if len(lengths) == 1:
        count = lengths.pop()
        columns = [side.values if isinstance(side, Measured) else (side,) * count for side in (left, right)]
        values = [_plain(operation, a, b) for a, b in zip(*columns, strict=True)]
    units = {side.unit for side in (left, right) if isinstance(side, Measured)}
    unit = units.pop() if len(units) == 1 and operation in (operator.add, operator.sub) else ""
    name = pattern.format(_operand(left), _operand(right))
    return Measured(_plain(operation, float(left), float(right)), name, unit=unit, values=values, sources=sources)


def _plain(operation: Callable[[Any, Any], Any], left: float, right: float) -> float:
    """IEEE arithmetic: dividing by zero is no end of a run, and no such number makes a claim hold by accident."""
    if operation is operator.truediv and right == 0:
        return math.nan if left == 0 or math.isnan(left) else math.copysign(math.inf, left) * math.copysign(1, right)
    return float(operation(left, right))


def _compared(operation: Callable[[Any, Any], bool], sign: str, left: Any, right: Any) -> Any:
    if not isinstance(right, float | int):
        return NotImplemented
    numbers: dict[str, float] = {}
    for side in (left, right):
        if isinstance(side, Measured):
            if len(side.sources) > 1:  # what was computed from several says more than they do
                numbers[side.name] = side
            numbers |= side.sources
    holds = bool(operation(float(left), float(right)))
    if math.isnan(left) or math.isnan(right):
        holds = False  # of an unknown number nothing holds, not even that it differs
    return Verdict(holds, numbers)
