"""Gradients of ``sdeint`` in the memory of its outputs: a solution retraced step by step, or solved back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.dynamics.brownian import BrownianPath
from pullback.dynamics.captures import captured_tensors, reachable_parameters
from pullback.dynamics.sde_steps import Equation, Grid, OneStep, heun_pair, retraced, reversible_heun, step_along

__all__ = ["backsolved", "reversed_exactly"]


def reversed_exactly(
    equation: Equation, method: str, y0: Tensor, grid: Grid, path: BrownianPath, params: list[Tensor]
) -> Tensor:
    """States at the times by ``reversible_heun``; backwards each step is undone, then redone with its graph."""
    return _Retraced.apply(equation, grid, path, y0, *_parameters(equation, grid, path, y0, params))


def backsolved(
    equation: Equation, method: str, y0: Tensor, grid: Grid, path: BrownianPath, params: list[Tensor]
) -> Tensor:
    """States at the times; backwards the adjoint da = -a^T (df/dy dt + dg/dy dW) is solved with the state by Heun."""
    return _Backsolved.apply(equation, method, grid, path, y0, *_parameters(equation, grid, path, y0, params))


def _parameters(equation: Equation, grid: Grid, path: BrownianPath, y0: Tensor, given: list[Tensor]) -> list[Tensor]:
    """Everything with a gradient that f and g depend on."""
    if not torch.is_grad_enabled():
        return []
    one = grid.steps[0]
    dw = path.increment(one.start, one.end).to(y0)
    leaf = y0.detach().requires_grad_()
    _, captured = captured_tensors(lambda y: equation.increment(one.start, y, one.length, dw), leaf)
    held = [*reachable_parameters(equation.drift), *reachable_parameters(equation.diffusion)]
    return list({id(p): p for p in [*given, *captured, *held] if p.requires_grad}.values())


class _Retraced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, equation: Equation, grid: Grid, path: BrownianPath, y0: Tensor, *params: Tensor) -> Tensor:
        y, twin, states = y0, heun_pair(y0), [y0]
        for steps in grid.intervals():
            for one in steps:
                y, twin = reversible_heun(equation, one, _noise(path, one, y), y, twin)
            states.append(y)
        ctx.equation, ctx.grid, ctx.path = equation, grid, path
        ctx.save_for_backward(y, twin, *params)
        return torch.stack(states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        y, twin, *params = ctx.saved_tensors
        y_bar, twin_bar = torch.zeros_like(y), torch.zeros_like(y)
        total = _Sum(params)
        for i, steps in reversed(list(enumerate(ctx.grid.intervals()))):
            y_bar = y_bar + cotangents[0][i + 1]
            for one in reversed(steps):
                dw = _noise(ctx.path, one, y)
                y, twin = retraced(ctx.equation, one, dw, y, twin)
                leaves = y.detach().requires_grad_(), twin.detach().requires_grad_()
                with torch.enable_grad():
                    after = reversible_heun(ctx.equation, one, dw, *leaves)
                y_bar, twin_bar = total.pull(after, leaves, (y_bar, twin_bar))
        return None, None, None, cotangents[0][0] + y_bar + twin_bar, *total.gradients


class _Backsolved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, equation: Equation, method: str, grid: Grid, path: BrownianPath, y0: Tensor, *params: Tensor
    ) -> Tensor:
        y, extra, states = y0, heun_pair(y0) if method == "reversible_heun" else None, [y0]
        for steps in grid.intervals():
            for one in steps:
                y, extra = step_along(equation, method, one, path, y, extra)
            states.append(y)
        ctx.equation, ctx.grid, ctx.path = equation, grid, path
        whole = torch.stack(states)
        ctx.save_for_backward(whole, *params)
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        states, *params = ctx.saved_tensors
        a = torch.zeros_like(states[0])
        total = _Sum(params)
        for i, steps in reversed(list(enumerate(ctx.grid.intervals()))):
            y, a = states[i + 1], a + cotangents[0][i + 1]
            for one in reversed(steps):
                dw = _noise(ctx.path, one, y)
                first, pulled = _slope(ctx.equation, one.end, one.length, dw, y, a, total)
                second, again = _slope(ctx.equation, one.start, one.length, dw, y - first, a + pulled, total)
                y, a = y - (first + second) / 2, a + (pulled + again) / 2
        return None, None, None, None, cotangents[0][0] + a, *total.gradients


def _slope(
    equation: Equation, t: float, h: float, dw: Tensor, y: Tensor, a: Tensor, total: _Sum
) -> tuple[Tensor, Tensor]:
    """The increment at (t, y) and a's product with its derivative; half of the parameters' share is added."""
    leaf = y.detach().requires_grad_()
    with torch.enable_grad():
        increment = equation.increment(t, leaf, h, dw)
    (half,) = total.pull((increment,), (leaf,), (a / 2,))
    return increment.detach(), 2 * half


class _Sum:
    """Gradients of parameters, summed over steps; ``None`` for one that was never met."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.gradients: list[Tensor | None] = [None] * len(params)

    def pull(self, outputs: Any, leaves: Any, cotangents: Any) -> list[Tensor]:
        """Cotangents of the leaves; those of the parameters are added."""
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if not pairs:
            return [torch.zeros_like(leaf) for leaf in leaves]
        found = torch.autograd.grad(
            [o for o, _ in pairs], [*leaves, *self.params], [c for _, c in pairs], allow_unused=True
        )
        for i, share in enumerate(found[len(leaves) :]):
            if share is not None:
                known = self.gradients[i]
                self.gradients[i] = share if known is None else known + share
        return [
            torch.zeros_like(leaf) if grad is None else grad
            for leaf, grad in zip(leaves, found[: len(leaves)], strict=True)
        ]


def _noise(path: BrownianPath, one: OneStep, y: Tensor) -> Tensor:
    return path.increment(one.start, one.end).to(y)
