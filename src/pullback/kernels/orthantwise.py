"""Orthant-wise quasi-Newton steps on a smooth part plus absolute values: the augmented Lagrangian of NOTEARS.

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

__all__ = ["Minimum", "minimise_lagrangian", "minimise_lagrangian_reference", "minimise_orthantwise"]

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
    allowed: Tensor | None = None,
    required: Tensor | None = None,
    iterations: int = 500,
    tolerance: float = 1e-9,
) -> Minimum:
    r"""Minimise :math:`\tfrac12 tr((I-W)^TC(I-W)) + \lambda|W|_1 + \alpha h + \tfrac\rho2h^2` with zero diagonal.

    Args:
        weights: ``[b, d, d]`` start, of finite objective and zero diagonal; not changed.
        moments: ``[b, d, d]`` of the data.
        alpha, rho: ``[b]``.
        penalty: ``lambda``.
        allowed: ``[d, d]`` booleans, where a weight may be other than zero; all off the diagonal by default.
        required: ``[d, d]`` booleans, arcs without a penalty, that count as there in ``h`` (of ``W * W + required``).
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
            weights,
            moments,
            alpha,
            rho,
            penalty,
            allowed=allowed,
            required=required,
            iterations=iterations,
            tolerance=tolerance,
        )
    result = Minimum(weights.clone(memory_format=torch.contiguous_format), alpha.clone(), alpha.clone())
    known = masks(weights, penalty, allowed, required)
    fixed = (t.contiguous().numpy() for t in (moments, alpha, rho, *known))
    run(*(t.numpy() for t in result), *fixed, iterations, float(tolerance))
    return result


def minimise_lagrangian_reference(
    weights: Tensor,
    moments: Tensor,
    alpha: Tensor,
    rho: Tensor,
    penalty: float,
    *,
    allowed: Tensor | None = None,
    required: Tensor | None = None,
    iterations: int = 500,
    tolerance: float = 1e-9,
) -> Minimum:
    """:func:`minimise_lagrangian` in torch, all graphs at once, on any device."""
    nodes = weights.shape[-1]
    identity = torch.eye(nodes, dtype=weights.dtype, device=weights.device)
    strength, free, base = masks(weights, penalty, allowed, required)

    def evaluate(w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        square = w.view(-1, nodes, nodes)
        exponential = torch.linalg.matrix_exp(square * square + base)
        h = exponential.diagonal(dim1=-2, dim2=-1).sum(-1) - nodes
        residual = identity - square
        slope = moments[rows] @ residual
        value = 0.5 * (residual * slope).sum((-2, -1)) + (alpha[rows] + 0.5 * rho[rows] * h) * h
        force = (alpha[rows] + rho[rows] * h)[:, None, None]
        gradient = (2 * force * square * exponential.mT - slope) * free
        return value, gradient.flatten(1), h

    x, value, h = minimise_orthantwise(
        evaluate, weights.flatten(1), strength.flatten(), iterations=iterations, tolerance=tolerance
    )
    return Minimum(x.view_as(weights), h, value)


def masks(
    weights: Tensor, penalty: float, allowed: Tensor | None, required: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``[d, d]`` matrices of numbers: the penalty of every arc, where one is allowed, where one is required."""
    nodes = weights.shape[-1]
    off = ~torch.eye(nodes, dtype=torch.bool, device=weights.device)
    free = off if allowed is None else off & allowed
    base = torch.zeros_like(off) if required is None else required
    return (penalty * ~base).to(weights), free.to(weights), base.to(weights)


def minimise_orthantwise(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    start: Tensor,
    penalty: float | Tensor,
    *,
    iterations: int = 500,
    tolerance: float = 1e-9,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Minimise :math:`f(x) + \sum_i \lambda_i |x_i|` of every row by itself.

    Args:
        evaluate: of points ``[k, n]`` and the numbers ``[k]`` of their rows: ``f [k]``, its gradient ``[k, n]`` and
            something else of each row, ``[k, ...]``. Rows that have ended are not evaluated.
        start: ``[b, n]``, of finite value; not changed.
        penalty: ``lambda >= 0``, for all or ``[n]``.
        iterations: at most so many.
        tolerance: a row ends after two steps in a row that lower its value by less than this part of it.

    Returns:
        The points ``[b, n]``, the values with the penalty ``[b]`` and what else was evaluated there: never of a larger
        or a non-finite value than at the start.
    """
    tiny = torch.finfo(start.dtype).tiny

    def penalised(x: Tensor, rows: Tensor) -> list[Tensor]:
        value, gradient, extra = evaluate(x, rows)
        return [value + (penalty * x.abs()).sum(-1), gradient, extra]

    rows = torch.arange(len(start), device=start.device)
    x = start
    value, gradient, extra = penalised(x, rows)
    ended = [x.clone(), value.clone(), extra.clone()]
    steps = x.new_zeros(len(x), _MEMORY, x.shape[1])
    changes = torch.zeros_like(steps)
    kept = torch.zeros_like(rows)
    idle = torch.zeros_like(rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    for _ in range(iterations):
        uphill = _steepest(x, gradient, penalty)
        direction = _quasi_newton(steps, changes, uphill)
        direction = torch.where(direction * uphill < 0, direction, torch.zeros_like(direction))
        slope = (direction * uphill).sum(-1)
        alive = alive & (slope < 0)
        if not bool(alive.all()):  # what has ended is put away
            for whole, part in zip(ended, (x, value, extra), strict=True):
                whole[rows] = part
            rows, x, value, gradient, extra, steps, changes, kept, idle, uphill, direction, slope = (
                t[alive]
                for t in (rows, x, value, gradient, extra, steps, changes, kept, idle, uphill, direction, slope)
            )
            alive = alive[alive]
        if not len(rows):
            break
        sign = torch.where(x == 0, -uphill.sign(), x.sign())
        length = torch.ones_like(value)
        waiting = torch.arange(len(rows), device=x.device)
        new_x, new_value, new_gradient, new_extra = x.clone(), value.clone(), gradient.clone(), extra.clone()
        for _ in range(_TRIALS):
            trial = x[waiting] + length[waiting, None] * direction[waiting]
            trial = torch.where(trial * sign[waiting] > 0, trial, torch.zeros_like(trial))
            v, g, c = penalised(trial, rows[waiting])
            gain = (uphill[waiting] * (trial - x[waiting])).sum(-1)
            fits = v <= value[waiting] + _DECREASE * gain  # false for NaN and infinity
            taken = waiting[fits]
            new_x[taken], new_value[taken], new_gradient[taken], new_extra[taken] = (
                trial[fits],
                v[fits],
                g[fits],
                c[fits],
            )
            waiting, v = waiting[~fits], v[~fits]
            if not len(waiting):
                break
            tried, inclined = length[waiting], slope[waiting]
            parabola = -inclined * tried * tried / (2 * (v - value[waiting] - inclined * tried)).clamp(min=tiny)
            shorter = torch.where(v.isfinite(), parabola.clamp(min=0.1 * tried, max=0.5 * tried), 0.1 * tried)
            length = length.index_copy(0, waiting, shorter)
        stuck = torch.zeros_like(alive).index_fill(0, waiting, True)
        change, turn = new_x - x, new_gradient - gradient
        useful = ~stuck & ((change * turn).sum(-1) > 1e-12 * (turn * turn).sum(-1))
        shifted = (torch.cat([a[:, 1:], b[:, None]], 1) for a, b in ((steps, change), (changes, turn)))
        steps, changes = (
            torch.where(useful[:, None, None], new, old) for new, old in zip(shifted, (steps, changes), strict=True)
        )
        # Where no length was short enough, forget the curvature once; without any, there is nothing left to try.
        alive = ~(stuck & (kept == 0))
        forget = (stuck & alive)[:, None, None]
        steps, changes = (torch.where(forget, torch.zeros_like(t), t) for t in (steps, changes))
        kept = torch.where(stuck, 0, (kept + useful).clamp(max=_MEMORY))
        idle = torch.where(~stuck & (value - new_value <= tolerance * new_value.abs()), idle + 1, 0)
        x, value, gradient, extra = new_x, new_value, new_gradient, new_extra
        alive = alive & (idle < 2)
    for whole, part in zip(ended, (x, value, extra), strict=True):
        whole[rows] = part
    return ended[0], ended[1], ended[2]


def _steepest(x: Tensor, gradient: Tensor, penalty: float | Tensor) -> Tensor:
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
