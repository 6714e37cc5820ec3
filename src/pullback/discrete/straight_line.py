"""Straight-line programs on integers: run them, measure them, write them down."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pullback.core.checks import check_integer
from pullback.core.shapes import Int, Tensor
from pullback.discrete.operator_tables import PASS, check_symbols, check_tables

__all__ = ["Line", "Program", "enumerate_programs"]


class Line(NamedTuple):
    """One line of a program.

    Attributes:
        operator: its name, ``"pass"`` for the first argument itself.
        first: number of the register of the first argument.
        second: of the second argument.
    """

    operator: str
    first: int
    second: int


@dataclass(frozen=True)
class Program:
    """A straight-line program on integers; registers are the inputs, then one for each line, the last is the output.

    Attributes:
        inputs: number of inputs.
        lines: in their order; each uses registers before it.
        operators: the table of each operator.

    Example:
        >>> import torch
        >>> from pullback.discrete import integer_operators
        >>> program = Program(3, (Line("max", 1, 2), Line("add", 0, 3)), integer_operators(28))
        >>> program(torch.tensor([[1, 2, 3], [9, 5, 4]])), program.to_source("abc"), program.length
        (tensor([ 4, 14]), 'add(a, max(b, c))', 2)
    """

    inputs: int
    lines: tuple[Line, ...]
    operators: Mapping[str, Tensor] = field(repr=False, compare=False)

    def __call__(self, values: Int[Tensor, "*batch inputs"]) -> Int[Tensor, "*batch"]:
        """Return the output for integer inputs.

        Raises:
            TypeError: ``values`` does not hold integers.
            ValueError: its last dimension is not the number of inputs, or a value is not in the domain.
        """
        symbols = len(next(iter(self.operators.values())))
        check_symbols("values", values, symbols)
        if values.shape[-1:] != (self.inputs,):
            raise ValueError(f"values must have {self.inputs} inputs, got shape {tuple(values.shape)}")
        registers = list(values.unbind(-1))
        for operator, first, second in self.lines:
            u, w = registers[first], registers[second]
            registers.append(u if operator == PASS else self.operators[operator].to(values.device)[u, w])
        return registers[-1]

    @property
    def used(self) -> frozenset[int]:
        """The lines on which the output depends."""
        found, open_ = set(), [len(self.lines) - 1]
        while open_:
            t = open_.pop()
            found.add(t)
            operator, first, second = self.lines[t]
            arguments = (first,) if operator == PASS else (first, second)
            open_ += [r - self.inputs for r in arguments if r >= self.inputs and r - self.inputs not in found]
        return frozenset(found)

    @property
    def length(self) -> int:
        """Number of lines on which the output depends, without those that pass an argument on."""
        return sum(self.lines[t].operator != PASS for t in self.used)

    def to_source(self, names: Sequence[str] | None = None) -> str:
        """Return the program as an expression; a value that is used twice is named ``r<line>`` before it.

        Args:
            names: of the inputs, by default ``x0, x1, ...``.

        Raises:
            ValueError: there are not as many names as inputs.
        """
        text = [f"x{i}" for i in range(self.inputs)] if names is None else list(names)
        if len(text) != self.inputs:
            raise ValueError(f"names must be {self.inputs}, got {len(text)}")
        uses: Counter[int] = Counter()
        for t in self.used:
            operator, first, second = self.lines[t]
            uses.update([first] if operator == PASS else [first, second])
        named = []
        for t, (operator, first, second) in enumerate(self.lines):
            if t not in self.used or operator == PASS:
                text.append(text[first] if t in self.used else "")
                continue
            text.append(f"{operator}({text[first]}, {text[second]})")
            if uses[self.inputs + t] > 1:
                named.append(f"r{t} = {text[-1]}")
                text[-1] = f"r{t}"
        return "; ".join([*named, text[-1]])


def enumerate_programs(inputs: int, lines: int, operators: Mapping[str, Tensor]) -> Iterator[Program]:
    """Yield every program in which each line applies an operator and the output depends on all lines.

    Different programs may compute the same function. Their number grows like ``(operators * registers^2)^lines``.

    Args:
        inputs: of a program, >= 1.
        lines: of a program, >= 1.
        operators: a table for each name, see :class:`RelaxedProgram`.

    Raises:
        TypeError: a table does not hold integers, or a number is no integer.
        ValueError: a number is out of range, or a table is not square, of another size, or leaves the domain.

    Example:
        >>> from pullback.discrete import integer_operators
        >>> [p.to_source("a") for p in enumerate_programs(1, 2, {"add": integer_operators(9)["add"]})]
        ['add(a, add(a, a))', 'add(add(a, a), a)', 'r0 = add(a, a); add(r0, r0)']
    """
    check_tables(operators)
    check_integer("lines", lines, 1)
    registers = range(check_integer("inputs", inputs, 1) + lines)
    places = [registers[: inputs + t] for t in range(lines)]
    every = ([Line(*line) for line in itertools.product(operators, seen, seen)] for seen in places)
    for chosen in itertools.product(*every):
        program = Program(inputs, chosen, operators)
        if len(program.used) == lines:
            yield program
