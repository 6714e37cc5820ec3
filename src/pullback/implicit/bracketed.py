"""Roots of functions of one number between two places where their signs differ, each entry by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.rows import Rows
from pullback.core.shapes import Bool, Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import check_function
from pullback.implicit.iteration import Map, State
from pullback.implicit.roots import custom_root
from pullback.implicit.running import Function, Run, on_rows
from pullback.implicit.solution import Solution

__all__ = ["find_bracketed_root"]


def find_bracketed_root(
    function: Function,
    low: Float[Tensor, "*#shape"],
    high: Float[Tensor, "*#shape"],
    *theta: Any,
    tolerance: float | None = None,
    max_iterations: int = 200,
    check: bool = False,
) -> Solution:
    r"""Solve ``function(x, *theta) = 0`` for each entry of ``x`` between ``low`` and ``high``.

    Chandrupatla's method: bisection, and inverse quadratic interpolation where that is safe. It always arrives: the
    bracket shrinks until the function is small or the bracket as narrow as the arithmetic allows.

    Args:
        function: ``F(x, *theta)``, entry by entry: ``F_i`` depends on ``x_i`` alone; differentiable.
        low: ``[*shape]`` one end of each bracket, finite, without gradient; the function may be infinite there.
        high: ``[*shape]`` the other.
        theta: what the root is differentiated in, tensors of any nesting.
        tolerance: converged when ``|F|`` is at most this, or, once the bracket is as narrow as the arithmetic allows,
            at most this times the larger of 1 and ``|F|`` at the ends; default 1e-10 in float64, 1e-5 in float32.
        max_iterations: of the method.
        check: raise when an entry did not converge.

    Returns:
        ``Solution``, everything ``[*shape]``; the residual is ``|F|``, where the bracket could not be narrower relative
        to the larger of 1 and ``|F|`` at the ends. An entry whose signs change at a pole or a jump does not converge.

    Raises:
        TypeError: ``low`` or ``high`` is no floating tensor, or their dtypes differ.
        ValueError: an end is not finite, or the function has the same sign at both ends of a bracket, or is NaN there.
        ConvergenceError: ``check`` is set and an entry did not converge; carries the ``Solution``.

    Example:
        >>> a = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
        >>> low, high = torch.zeros(2).double(), torch.full((2,), 5.0).double()
        >>> root = find_bracketed_root(lambda x, a: x**2 - a, low, high, a)
        >>> slope = torch.autograd.grad(root.value.sum(), a)[0]
        >>> [round(v, 6) for v in (*root.value.tolist(), *slope.tolist())]
        [2.0, 3.0, 0.25, 0.166667]

    References:
        Chandrupatla (1997), A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function.
    """
    check_function("function", function)
    check_floating("low", low)
    check_floating("high", high)
    check_same_dtype(low=low, high=high)
    shape = check_broadcast(low=tuple(low.shape), high=tuple(high.shape))
    low, high = low.detach().expand(shape), high.detach().to(low.device).expand(shape)
    for name, end in (("low", low), ("high", high)):
        if can_look(end) and not bool(end.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    run = Run("find_bracketed_root", tolerance, max_iterations, check)

    @custom_root(function, batch_ndim=len(shape))
    def solver(init: tuple[Tensor, Tensor], *theta: Any) -> Solution:
        rows = Rows.of(init[0], len(shape), "low")
        return run(_Chandrupatla(on_rows(function, rows, theta, "function"), rows.pack(init[1])), rows, init[0])

    result: Solution = solver((low, high), *theta)
    return result


class _Bracket(NamedTuple):
    """``[count]`` each: the newest end and the other one, the end before, the values there, the size of values."""

    a: Tensor
    b: Tensor
    c: Tensor
    at_a: Tensor
    at_b: Tensor
    at_c: Tensor
    size: Tensor


@dataclass(frozen=True)
class _Chandrupatla:
    function: Map
    high: Tensor

    def init(self, x: Tensor) -> State:
        a, b = x[:, 0], self.high[:, 0]
        at_a, at_b = self._at(a), self._at(b)
        wrong = ~((at_a <= 0) & (at_b >= 0) | (at_a >= 0) & (at_b <= 0))
        if can_look(wrong) and bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            ends = f"{at_a[i].item():.4g} at {a[i].item():.4g} and {at_b[i].item():.4g} at {b[i].item():.4g}"
            raise ValueError(f"function must have different signs at low and high, got {ends}")
        size = torch.maximum(at_a.abs(), at_b.abs()).clamp(min=1)
        size = torch.where(torch.isfinite(size), size, 1)
        return self._state(_Bracket(a, b, b, at_a, at_b, at_b, size))

    def step(self, state: State, active: Tensor) -> State:
        a, b, c, at_a, at_b, at_c, size = state.memory
        xi, phi = (a - b) / (c - b), (at_a - at_b) / (at_c - at_b)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        quadratic = at_a / (at_b - at_a) * at_c / (at_b - at_c)
        quadratic = quadratic + (c - a) / (b - a) * at_a / (at_c - at_a) * at_b / (at_c - at_b)
        least = self._width(state.x[:, 0]) / (b - a).abs()
        t = torch.where(safe & torch.isfinite(quadratic), quadratic, 0.5)
        t = torch.minimum(torch.maximum(t, least), 1 - least)
        x = a + torch.where(least < 0.5, t, 0.5) * (b - a)
        at_x = self._at(x)
        same = at_x.sign() == at_a.sign()
        c, at_c, b, at_b = (
            torch.where(same, a, b),
            torch.where(same, at_a, at_b),
            torch.where(same, b, a),
            torch.where(same, at_b, at_a),
        )
        return self._state(_Bracket(x, b, c, at_x, at_b, at_c, size))

    def _at(self, x: Tensor) -> Tensor:
        return self.function(x[:, None])[:, 0]

    def _state(self, bracket: _Bracket) -> State:
        nearer = bracket.at_a.abs() <= bracket.at_b.abs()
        x, value = torch.where(nearer, bracket.a, bracket.b), torch.where(nearer, bracket.at_a, bracket.at_b)
        narrow: Bool[Tensor, "count"] = (bracket.b - bracket.a).abs() <= 2 * self._width(x)
        # Before that a large value at an end says nothing: it would let the other end pass for a root.
        residual = value.abs().clamp(max=torch.finfo(x.dtype).max)
        return State(x[:, None], torch.where(narrow, residual / bracket.size, residual), narrow, bracket)

    def _width(self, x: Tensor) -> Tensor:
        """Return the least distance that the arithmetic resolves there."""
        return 2 * torch.finfo(x.dtype).eps * x.abs() + torch.finfo(x.dtype).tiny
