"""Orthant-wise quasi-Newton steps on the augmented Lagrangian of NOTEARS: a smooth part plus absolute values.

A step follows the inverse Hessian that the last gradients suggest (L-BFGS), keeps the signs of the weights (a weight
that would change its sign becomes zero) and is shortened until the objective is finite and falls enough.

References:
    Andrew, Gao (2007), Scalable training of L1-regularized log-linear models (OWL-QN).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Minimum", "minimise_lagrangian", "minimise_lagrangian_reference"]

_LARGEST = 128
"""Nodes above which a library's blocked products are faster than the loops."""

_MEMORY = 10
_DECREASE = 1e-4
_TRIALS = 30


class Minimum(NamedTuple):
    """Where the steps ended; one row a graph.

    Attributes:
        weights: ``[b, d, d]``.
        acyclicity: ``[b]``, ``tr exp(W * W) - d`` there.
        objective: ``[b]`` the augmented Lagrangian there, the penalty included.
    """

    weights: Tensor
    acyclicity: Tensor
    objective: Tensor


def minimise_lagrangian(
    weights: Tensor,
    moments: Tensor,
    alpha: Tensor,
    rho: Tensor,
    penalty: float,
    *,
    iterations: int = 500,
    tolerance: float = 1e-9,
) -> Minimum:
    r"""Minimise :math:`\tfrac12 tr((I-W)^TC(I-W)) + \lambda|W|_1 + \alpha h + \tfrac\rho2h^2` with zero diagonal.

    Args:
        weights: ``[b, d, d]`` start, of finite objective and zero diagonal; not changed.
        moments: ``[b, d, d]`` of the data.
        alpha, rho: ``[b]``.
        penalty: ``lambda``.
        iterations: at most so many.
        tolerance: stop after two steps in a row that lower the objective by less than this part of it.

    Returns:
        :class:`Minimum`, never of a larger or a non-finite objective. Loops compiled by numba where it is installed,
        the graphs are on the CPU, in double precision and have at most 128 nodes;
        :func:`minimise_lagrangian_reference` elsewhere.
    """
    run = _loops()
    nodes = weights.shape[-1]
    if run is None or weights.device.type != "cpu" or weights.dtype != torch.float64 or nodes > _LARGEST:
        return minimise_lagrangian_reference(
            weights, moments, alpha, rho, penalty, iterations=iterations, tolerance=tolerance
        )
    result = Minimum(weights.clone(memory_format=torch.contiguous_format), alpha.clone(), alpha.clone())
    fixed = (t.contiguous().numpy() for t in (moments, alpha, rho))
    run(*(t.numpy() for t in result), *fixed, float(penalty), iterations, float(tolerance))
    return result


def minimise_lagrangian_reference(
    weights: Tensor,
    moments: Tensor,
    alpha: Tensor,
    rho: Tensor,
    penalty: float,
    *,
    iterations: int = 500,
    tolerance: float = 1e-9,
) -> Minimum:
    """:func:`minimise_lagrangian` in torch, all graphs at once, on any device."""
    batch, nodes = weights.shape[0], weights.shape[-1]
    identity = torch.eye(nodes, dtype=weights.dtype, device=weights.device)
    tiny = torch.finfo(weights.dtype).tiny

    def evaluate(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, gradient of its smooth part and ``h``."""
        square = w.view(-1, nodes, nodes)
        exponential = torch.linalg.matrix_exp(square * square)
        h = exponential.diagonal(dim1=-2, dim2=-1).sum(-1) - nodes
        residual = identity - square
        slope = moments @ residual
        value = 0.5 * (residual * slope).sum((-2, -1)) + (alpha + 0.5 * rho * h) * h + penalty * w.abs().sum(-1)
        force = (alpha + rho * h)[:, None, None]
        gradient = (2 * force * square * exponential.mT - slope) * (1 - identity)
        return value, gradient.flatten(1), h

    x = weights.flatten(1)
    value, gradient, h = evaluate(x)
    steps = x.new_zeros(batch, _MEMORY, nodes * nodes)
    changes = torch.zeros_like(steps)
    kept = torch.zeros(batch, dtype=torch.int64, device=x.device)
    idle = torch.zeros_like(kept)
    alive = torch.ones(batch, dtype=torch.bool, device=x.device)
    for _ in range(iterations):
        uphill = _steepest(x, gradient, penalty)
        direction = _quasi_newton(steps, changes, uphill)
        direction = torch.where(direction * uphill < 0, direction, torch.zeros_like(direction))
        slope = (direction * uphill).sum(-1)
        alive = alive & (slope < 0)
        if not bool(alive.any()):
            break
        sign = torch.where(x == 0, -uphill.sign(), x.sign())
        length = torch.ones_like(value)
        waiting = alive
        new_x, new_value, new_gradient, new_h = x, value, gradient, h
        for _ in range(_TRIALS):
            trial = x + length[:, None] * direction
            trial = torch.where(trial * sign > 0, trial, torch.zeros_like(trial))
            v, g, c = evaluate(trial)
            fits = waiting & (v <= value + _DECREASE * (uphill * (trial - x)).sum(-1))  # false for NaN and infinity
            new_x, new_gradient = (torch.where(fits[:, None], a, b) for a, b in ((trial, new_x), (g, new_gradient)))
            new_value, new_h = torch.where(fits, v, new_value), torch.where(fits, c, new_h)
            waiting = waiting & ~fits
            if not bool(waiting.any()):
                break
            parabola = -slope * length * length / (2 * (v - value - slope * length)).clamp(min=tiny)
            shorter = torch.where(v.isfinite(), parabola.clamp(min=0.1 * length, max=0.5 * length), 0.1 * length)
            length = torch.where(waiting, shorter, length)
        moved = alive & ~waiting
        change, turn = new_x - x, new_gradient - gradient
        useful = moved & ((change * turn).sum(-1) > 1e-12 * (turn * turn).sum(-1))
        shifted = (torch.cat([a[:, 1:], b[:, None]], 1) for a, b in ((steps, change), (changes, turn)))
        steps, changes = (
            torch.where(useful[:, None, None], new, old) for new, old in zip(shifted, (steps, changes), strict=True)
        )
        # Where no length was short enough, forget the curvature once; without any, there is nothing left to try.
        alive = alive & ~(waiting & (kept == 0))
        forget = (waiting & alive)[:, None, None]
        steps, changes = (torch.where(forget, torch.zeros_like(t), t) for t in (steps, changes))
        kept = torch.where(waiting, 0, (kept + useful).clamp(max=_MEMORY))
        idle = torch.where(moved & (value - new_value <= tolerance * new_value.abs()), idle + 1, 0)
        x, value, gradient, h = new_x, new_value, new_gradient, new_h
        alive = alive & (idle < 2)
    return Minimum(x.view_as(weights), h, value)


def _steepest(x: Tensor, gradient: Tensor, penalty: float) -> Tensor:
    """The subgradient of least norm: against it the objective falls fastest."""
    at_zero = gradient.sign() * (gradient.abs() - penalty).clamp(min=0)
    return torch.where(x == 0, at_zero, gradient + penalty * x.sign())


def _quasi_newton(steps: Tensor, changes: Tensor, uphill: Tensor) -> Tensor:
    """Minus the L-BFGS inverse Hessian times ``uphill``, by the two loops; empty places of the memory are zero."""
    products = (steps * changes).sum(-1)
    weight = torch.where(products > 0, 1 / products.clamp(min=torch.finfo(products.dtype).tiny), 0.0)
    direction = -uphill
    shares = []
    for k in range(_MEMORY - 1, -1, -1):
        share = weight[:, k] * (steps[:, k] * direction).sum(-1)
        direction = direction - share[:, None] * changes[:, k]
        shares.append(share)
    size = changes[:, -1].square().sum(-1)
    # The first step has length at most one in the sum of absolute values.
    first = 1 / uphill.abs().sum(-1).clamp(min=1.0)
    curvature = torch.where(size > 0, products[:, -1] / size.clamp(min=torch.finfo(size.dtype).tiny), first)
    direction = direction * curvature[:, None]
    for k, share in enumerate(reversed(shares)):
        back = weight[:, k] * (changes[:, k] * direction).sum(-1)
        direction = direction + (share - back)[:, None] * steps[:, k]
    return direction


@cache
def _loops() -> Callable[..., Any] | None:
    """The compiled loops, or ``None`` without numba."""
    if find_spec("numba") is None:
        return None
    from pullback.kernels import orthantwise_numba

    return orthantwise_numba.run
