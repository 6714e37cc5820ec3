"""Orthant-wise quasi-Newton steps on the augmented Lagrangian of NOTEARS: a smooth part plus absolute values.

A step follows the inverse Hessian that the last gradients suggest (L-BFGS), keeps the signs of the weights (a weight
that would change its sign becomes zero) and is shortened until the objective is finite and falls enough.

References:
    Andrew, Gao (2007), Scalable training of L1-regularized log-linear models (OWL-QN).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.compiled import compiled

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
    jit = compiled()
    if jit is None:
        return None

    @jit
    def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        nodes = a.shape[0]
        blocked = nodes - nodes % 4
        for i in range(nodes):
            for j in range(nodes):
                out[i, j] = 0.0
            for k in range(0, blocked, 4):
                p, q, r, s = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
                for j in range(nodes):
                    out[i, j] += p * b[k, j] + q * b[k + 1, j] + r * b[k + 2, j] + s * b[k + 3, j]
            for k in range(blocked, nodes):
                p = a[i, k]
                for j in range(nodes):
                    out[i, j] += p * b[k, j]

    @jit
    def exponential(a: np.ndarray, powers: np.ndarray, out: np.ndarray, spare: np.ndarray) -> bool:
        """``exp(a)`` of a non-negative matrix: Taylor of degree 16 at norm one (no term cancels), then squarings."""
        nodes = a.shape[0]
        norm = 0.0
        for j in range(nodes):
            column = 0.0
            for i in range(nodes):
                column += a[i, j]
            norm = max(norm, column)
        if not norm < 700.0:  # the entries would overflow
            return False
        squarings = max(0, math.ceil(math.log2(norm))) if norm > 1.0 else 0
        factor = 0.5**squarings
        for i in range(nodes):
            for j in range(nodes):
                powers[0, i, j] = factor * a[i, j]
        multiply(powers[0], powers[0], powers[1])
        multiply(powers[0], powers[1], powers[2])
        multiply(powers[1], powers[1], powers[3])
        # sum_k a^k / k! as a polynomial in a^4 whose coefficients are cubics in a
        last = 1.0
        for k in range(1, 17):
            last /= k
        for i in range(nodes):
            for j in range(nodes):
                out[i, j] = last * powers[3, i, j]
        coefficient = last
        for block in range(3, -1, -1):
            top = 4 * block + 3
            c3 = coefficient * (top + 1)
            c2 = c3 * top
            c1 = c2 * (top - 1)
            coefficient = c1 * (top - 2)
            for i in range(nodes):
                for j in range(nodes):
                    out[i, j] += c1 * powers[0, i, j] + c2 * powers[1, i, j] + c3 * powers[2, i, j]
                out[i, i] += coefficient
            if block > 0:
                multiply(out, powers[3], spare)
                out[:] = spare
        for _ in range(squarings):
            multiply(out, out, spare)
            out[:] = spare
        return True

    @jit
    def evaluate(
        w: np.ndarray,
        moments: np.ndarray,
        alpha: float,
        rho: float,
        penalty: float,
        gradient: np.ndarray,
        work: np.ndarray,
    ) -> tuple[float, float]:
        """Objective and ``h``; the gradient of the smooth part into ``gradient``."""
        nodes = w.shape[0]
        squared, residual, slope, exponent, spare = work[0], work[1], work[2], work[3], work[4]
        for i in range(nodes):
            for j in range(nodes):
                squared[i, j] = w[i, j] * w[i, j]
                residual[i, j] = -w[i, j]
            residual[i, i] += 1.0
        if not exponential(squared, work[5:], exponent, spare):
            return math.inf, math.inf
        multiply(moments, residual, slope)
        h = -float(nodes)
        value = 0.0
        size = 0.0
        for i in range(nodes):
            h += exponent[i, i]
            for j in range(nodes):
                value += residual[i, j] * slope[i, j]
                size += abs(w[i, j])
        force = 2.0 * (alpha + rho * h)
        for i in range(nodes):
            for j in range(nodes):
                gradient[i, j] = force * w[i, j] * exponent[j, i] - slope[i, j]
            gradient[i, i] = 0.0
        return 0.5 * value + (alpha + 0.5 * rho * h) * h + penalty * size, h

    @jit
    def dot(a: np.ndarray, b: np.ndarray) -> float:
        total = 0.0
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                total += a[i, j] * b[i, j]
        return total

    @jit
    def add(out: np.ndarray, factor: float, a: np.ndarray) -> None:
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                out[i, j] += factor * a[i, j]

    @jit
    def minimise(
        x: np.ndarray,
        moments: np.ndarray,
        alpha: float,
        rho: float,
        penalty: float,
        iterations: int,
        tolerance: float,
    ) -> tuple[float, float]:
        nodes = x.shape[0]
        memory = 10
        work = np.empty((9, nodes, nodes))
        steps = np.zeros((memory, nodes, nodes))
        changes = np.zeros((memory, nodes, nodes))
        weight = np.zeros(memory)
        share = np.zeros(memory)
        gradient, new_gradient = np.empty((nodes, nodes)), np.empty((nodes, nodes))
        uphill, direction, trial = np.empty((nodes, nodes)), np.empty((nodes, nodes)), np.empty((nodes, nodes))
        value, h = evaluate(x, moments, alpha, rho, penalty, gradient, work)
        kept, newest, idle = 0, 0, 0
        for _ in range(iterations):
            total = 0.0
            for i in range(nodes):
                for j in range(nodes):
                    g = gradient[i, j]
                    if x[i, j] > 0:
                        g += penalty
                    elif x[i, j] < 0 or g > penalty:
                        g -= penalty
                    elif g < -penalty:
                        g += penalty
                    else:
                        g = 0.0
                    uphill[i, j] = g
                    direction[i, j] = -g
                    total += abs(g)
            for age in range(kept):
                k = (newest - age) % memory
                share[k] = weight[k] * dot(steps[k], direction)
                add(direction, -share[k], changes[k])
            if kept:
                curvature = 1.0 / (weight[newest] * dot(changes[newest], changes[newest]))
            else:
                curvature = 1.0 / max(total, 1.0)
            for i in range(nodes):
                for j in range(nodes):
                    direction[i, j] *= curvature
            for age in range(kept - 1, -1, -1):
                k = (newest - age) % memory
                add(direction, share[k] - weight[k] * dot(changes[k], direction), steps[k])
            slope = 0.0
            for i in range(nodes):
                for j in range(nodes):
                    product = direction[i, j] * uphill[i, j]
                    if product < 0:
                        slope += product
                    else:
                        direction[i, j] = 0.0
            if not slope < 0:
                break
            length = 1.0
            accepted = False
            new_value, new_h = value, h
            for _ in range(30):
                gain = 0.0
                for i in range(nodes):
                    for j in range(nodes):
                        moved = x[i, j] + length * direction[i, j]
                        sign = x[i, j] if x[i, j] != 0 else -uphill[i, j]
                        if not moved * sign > 0:
                            moved = 0.0
                        trial[i, j] = moved
                        gain += uphill[i, j] * (moved - x[i, j])
                new_value, new_h = evaluate(trial, moments, alpha, rho, penalty, new_gradient, work)
                if new_value <= value + 1e-4 * gain:
                    accepted = True
                    break
                shorter = 0.1 * length
                if new_value < math.inf:
                    parabola = -slope * length * length / (2.0 * (new_value - value - slope * length))
                    shorter = min(max(parabola, shorter), 0.5 * length)
                length = shorter
            if not accepted:
                if kept == 0:
                    break
                kept = 0
                idle = 0
                continue
            place = (newest + 1) % memory
            inner, size = 0.0, 0.0
            for i in range(nodes):
                for j in range(nodes):
                    step, change = trial[i, j] - x[i, j], new_gradient[i, j] - gradient[i, j]
                    inner += step * change
                    size += change * change
            if inner > 1e-12 * size:
                newest = place
                kept = min(kept + 1, memory)
                weight[newest] = 1.0 / inner
                for i in range(nodes):
                    for j in range(nodes):
                        steps[newest, i, j] = trial[i, j] - x[i, j]
                        changes[newest, i, j] = new_gradient[i, j] - gradient[i, j]
            x[:] = trial
            gradient[:] = new_gradient
            idle = idle + 1 if value - new_value <= tolerance * abs(new_value) else 0
            value, h = new_value, new_h
            if idle == 2:
                break
        return value, h

    @jit
    def run(
        weights: np.ndarray,
        acyclicity: np.ndarray,
        objective: np.ndarray,
        moments: np.ndarray,
        alpha: np.ndarray,
        rho: np.ndarray,
        penalty: float,
        iterations: int,
        tolerance: float,
    ) -> None:
        for graph in range(weights.shape[0]):
            objective[graph], acyclicity[graph] = minimise(
                weights[graph], moments[graph], alpha[graph], rho[graph], penalty, iterations, tolerance
            )

    return run
