"""What solvers of functions of any nesting share: their loop on rows, when it stops and what it then says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import vjp

from pullback.core.checks import check_integer
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit.arguments import check_number
from pullback.implicit.iteration import Map, Method, iterate
from pullback.implicit.linear_solve import Operator, default_tolerance
from pullback.implicit.solution import Solution, raise_unless_converged

__all__ = ["Function", "Run", "jacobian_of", "on_rows", "value_alone", "with_aux"]

Function = Callable[..., Any]


class Run:
    """When a solver stops, and what it then says.

    Args:
        name: of the solver, for messages.
        tolerance: of the residual; ``None``: ``loosen`` times the relative tolerance of the arithmetic.
        max_iterations: steps of a method.
        check: whether to raise when a problem did not converge.
        loosen: see ``tolerance``.
    """

    def __init__(
        self, name: str, tolerance: float | None, max_iterations: int, check: bool, loosen: float = 1.0
    ) -> None:
        if tolerance is not None:
            check_number("tolerance", tolerance)
        check_integer("max_iterations", max_iterations, 1)
        self.name, self.tolerance, self.max_iterations, self.check = name, tolerance, max_iterations, check
        self.loosen = loosen

    def __call__(self, method: Method, rows: Rows, init: Any) -> Solution:
        """Iterate from ``init``; raise if asked to and a problem did not converge."""
        tolerance = self.tolerance if self.tolerance is not None else self.loosen * default_tolerance(rows.dtype)
        with torch.no_grad():
            found = iterate(method, rows.pack(init).detach(), tolerance, self.max_iterations)
        solution = Solution(rows.unpack(found.x), *(rows.per_row(v) for v in found[1:4]))
        if self.check:
            raise_unless_converged(self.name, solution, f" (tolerance {tolerance:.3g})")
        return solution


def on_rows(function: Function, rows: Rows, theta: tuple[Any, ...], name: str) -> Map:
    """Return the function of ``x`` called ``name`` as one of rows."""

    def on_rows(x: Tensor) -> Tensor:
        value = function(rows.unpack(x), *theta)
        rows.check(value, name)
        return rows.pack(value)

    return on_rows


def jacobian_of(function: Map, symmetric: bool = False) -> Operator:
    """Return the Jacobian of a function on rows as an operator at ``x``."""

    def adjoint_at(x: Tensor) -> Map:
        pull = vjp(function, x)[1]
        return lambda w: pull(w)[0]

    def at(x: Tensor) -> Map:
        if symmetric:
            return adjoint_at(x)
        push = vjp(adjoint_at(x), torch.zeros_like(x))[1]
        return lambda v: push(v)[0]

    return Operator(at, adjoint_at, symmetric)


def value_alone(function: Function, name: str, has_aux: bool) -> Function:
    """Return the function called ``name`` without what it returns beside its value."""
    if not has_aux:
        return function

    def value(*arguments: Any) -> Any:
        return _pair(function(*arguments), name)[0]

    return value


def with_aux(solution: Solution, function: Function, theta: tuple[Any, ...], name: str, has_aux: bool) -> Solution:
    """Return the solution with what the function returns beside its value there."""
    return solution._replace(aux=_pair(function(solution.value, *theta), name)[1]) if has_aux else solution


def _pair(found: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(found, tuple) or len(found) != 2:
        got = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
        raise ValueError(f"{name} must return a pair (value, aux) with has_aux=True, got {got}")
    return found
