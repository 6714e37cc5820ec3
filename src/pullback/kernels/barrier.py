"""Adam on a least-squares score behind the log-determinant barrier: the inner loop of DAGMA.

The barrier keeps ``sI - W * W`` an M-matrix, for which Gauss-Jordan elimination without pivoting is stable and whose
pivots are all positive; so one elimination gives the inverse for the gradient and says whether ``W`` left the domain.
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

__all__ = ["BarrierState", "barrier_steps", "barrier_steps_reference", "inside_domain"]

_LARGEST = 96
"""Nodes above which a library's blocked inverse is faster than the loops."""

_SMALLEST_RATE = 1e-16


class BarrierState(NamedTuple):
    """What the steps change; one row a graph.

    Attributes:
        weights: ``[b, d, d]`` with zero diagonal.
        mean, square: ``[b, d, d]`` Adam's moving averages.
        direction: ``[b, d, d]`` the last direction, for stepping back.
        rate: ``[b]`` step size.
        step: ``[b]`` int64, steps taken since the averages were zero.
        left: ``[b]`` whether the graph left the domain where stepping back does not help.
    """

    weights: Tensor
    mean: Tensor
    square: Tensor
    direction: Tensor
    rate: Tensor
    step: Tensor
    left: Tensor


def barrier_steps(
    state: BarrierState, moments: Tensor, mu: Tensor, scale: Tensor, penalty: float, count: int
) -> BarrierState:
    r"""Take ``count`` Adam steps on :math:`\mu(\tfrac12 tr((I-W)^TC(I-W)) + \lambda|W|_1) - \log\det(sI - W\circ W)`.

    A graph that leaves the domain goes back half a step and halves its step size. At its first step, or with
    ``scale <= 0.9``, it stops instead and is marked as ``left``: the caller starts it anew with a larger ``scale``.

    Args:
        state: where the graphs are; not changed.
        moments: ``[b, d, d]`` of the data.
        mu: ``[b]`` weight of the score.
        scale: ``[b]``, the ``s`` of the domain.
        penalty: ``lambda``.
        count: steps.

    Returns:
        The new state. Loops compiled by numba where it is installed, the graphs are on the CPU, in double precision and
        have at most 96 nodes; :func:`barrier_steps_reference` elsewhere.
    """
    run = _loops()
    weights = state.weights
    if run is None or weights.device.type != "cpu" or weights.dtype != torch.float64 or weights.shape[-1] > _LARGEST:
        return barrier_steps_reference(state, moments, mu, scale, penalty, count)
    state = BarrierState(*(t.clone(memory_format=torch.contiguous_format) for t in state))
    fixed = (t.contiguous().numpy() for t in (moments, mu, scale))
    run(*(t.numpy() for t in state), *fixed, float(penalty), count)
    return state


def barrier_steps_reference(
    state: BarrierState, moments: Tensor, mu: Tensor, scale: Tensor, penalty: float, count: int
) -> BarrierState:
    """:func:`barrier_steps` in torch, all graphs at once, on any device."""
    weights, mean, square, direction, rate, step, left = state
    off = 1 - torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    mu = mu[:, None, None]
    pull = mu * moments
    alive = ~left
    for _ in range(count):
        inverse, inside = inside_domain(weights, scale)
        outside = alive & ~inside
        while bool(outside.any()):
            left = left | (outside & ((step == 0) | (scale <= 0.9)))
            outside = outside & ~left
            weights = torch.where(
                outside[:, None, None], weights + 0.5 * rate[:, None, None] * direction * off, weights
            )
            rate = torch.where(outside, 0.5 * rate, rate)
            alive = alive & ~left & (rate > _SMALLEST_RATE)
            inverse, inside = inside_domain(weights, scale)
            outside = alive & ~inside
        if not bool(alive.any()):
            break
        step = step + alive
        score = torch.baddbmm(pull, pull, weights, beta=-1)
        gradient = score + penalty * mu * weights.sign() + 2 * weights * inverse.mT
        moved = alive[:, None, None]
        mean = torch.where(moved, 0.99 * mean + 0.01 * gradient, mean)
        square = torch.where(moved, 0.999 * square + 0.001 * gradient * gradient, square)
        power = step.clamp(min=1).to(weights.dtype)[:, None, None]
        shape = mean / (1 - 0.99**power) / ((square / (1 - 0.999**power)).sqrt() + 1e-8) * off
        direction = torch.where(moved, shape, direction)
        weights = torch.where(moved, weights - rate[:, None, None] * shape, weights)
    return BarrierState(weights, mean, square, direction, rate, step, left)


def inside_domain(weights: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(sI - W * W)^-1`` ``[b, d, d]`` and whether that matrix is an M-matrix ``[b]``."""
    identity = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    inverse, information = torch.linalg.inv_ex(scale[:, None, None] * identity - weights * weights)
    # A matrix with non-positive off-diagonal entries is an M-matrix exactly if its inverse is non-negative.
    rounding = 1e3 * torch.finfo(weights.dtype).eps * inverse.abs().amax((-2, -1))
    return inverse, (inverse.amin((-2, -1)) >= -rounding) & (information == 0) & rounding.isfinite()


@cache
def _loops() -> Callable[..., Any] | None:
    jit = compiled()
    if jit is None:
        return None

    @jit
    def invert(a: np.ndarray) -> bool:
        """Gauss-Jordan in place; ``False`` at the first pivot that is not positive."""
        nodes = a.shape[0]
        for k in range(nodes):
            pivot = a[k, k]
            if not pivot > 0.0:
                return False
            reciprocal = 1.0 / pivot
            a[k, k] = 1.0
            for j in range(nodes):
                a[k, j] *= reciprocal
            for i in range(nodes):
                factor = a[i, k]
                if i == k or factor == 0.0:
                    continue
                a[i, k] = 0.0
                for j in range(nodes):
                    a[i, j] -= factor * a[k, j]
        return True

    @jit
    def shifted(weights: np.ndarray, scale: float, out: np.ndarray) -> None:
        nodes = weights.shape[0]
        for i in range(nodes):
            for j in range(nodes):
                out[i, j] = -weights[i, j] * weights[i, j]
            out[i, i] += scale

    @jit
    def score_gradient(moments: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
        """``C (W - I)``, four rows of ``W`` at a time."""
        nodes = weights.shape[0]
        blocked = nodes - nodes % 4
        for i in range(nodes):
            for j in range(nodes):
                out[i, j] = -moments[i, j]
            for k in range(0, blocked, 4):
                a, b, c, d = moments[i, k], moments[i, k + 1], moments[i, k + 2], moments[i, k + 3]
                for j in range(nodes):
                    out[i, j] += (
                        a * weights[k, j] + b * weights[k + 1, j] + c * weights[k + 2, j] + d * weights[k + 3, j]
                    )
            for k in range(blocked, nodes):
                a = moments[i, k]
                for j in range(nodes):
                    out[i, j] += a * weights[k, j]

    @jit
    def run(
        all_weights: np.ndarray,
        all_means: np.ndarray,
        all_squares: np.ndarray,
        all_directions: np.ndarray,
        rates: np.ndarray,
        steps: np.ndarray,
        lefts: np.ndarray,
        all_moments: np.ndarray,
        mus: np.ndarray,
        scales: np.ndarray,
        penalty: float,
        count: int,
    ) -> None:
        nodes = all_weights.shape[1]
        inverse = np.empty((nodes, nodes))
        gradient = np.empty((nodes, nodes))
        for graph in range(all_weights.shape[0]):
            weights, direction = all_weights[graph], all_directions[graph]
            mean, square, moments = all_means[graph], all_squares[graph], all_moments[graph]
            mu, scale = mus[graph], scales[graph]
            for _ in range(count):
                if lefts[graph] or rates[graph] <= 1e-16:
                    break
                shifted(weights, scale, inverse)
                inside = invert(inverse)
                while not inside:
                    if steps[graph] == 0 or scale <= 0.9:
                        lefts[graph] = True
                        break
                    back = 0.5 * rates[graph]
                    for i in range(nodes):
                        for j in range(nodes):
                            weights[i, j] += back * direction[i, j]
                    rates[graph] = back
                    if back <= 1e-16:
                        break
                    shifted(weights, scale, inverse)
                    inside = invert(inverse)
                if not inside:
                    break
                steps[graph] += 1
                score_gradient(moments, weights, gradient)
                first = 1 / (1 - 0.99 ** steps[graph])
                second = 1 / (1 - 0.999 ** steps[graph])
                rate = rates[graph]
                for i in range(nodes):
                    for j in range(nodes):
                        w = weights[i, j]
                        g = mu * (gradient[i, j] + penalty * np.sign(w)) + 2 * w * inverse[j, i]
                        m = 0.99 * mean[i, j] + 0.01 * g
                        v = 0.999 * square[i, j] + 0.001 * g * g
                        mean[i, j], square[i, j] = m, v
                        q = 0.0 if i == j else m * first / (math.sqrt(v * second) + 1e-8)
                        direction[i, j] = q
                        weights[i, j] = w - rate * q

    return run
