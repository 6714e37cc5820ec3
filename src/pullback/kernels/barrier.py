"""Adam on a least-squares score behind the log-determinant barrier: the inner loop of DAGMA.

The barrier keeps ``sI - W * W`` an M-matrix, for which Gauss-Jordan elimination without pivoting is stable and whose
pivots are all positive; so one elimination gives the inverse for the gradient and says whether ``W`` left the domain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.kernels.orthantwise import masks

__all__ = ["BarrierState", "barrier_steps", "barrier_steps_reference", "inside_domain"]

_LARGEST = 256
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
    state: BarrierState,
    moments: Tensor,
    mu: Tensor,
    scale: Tensor,
    penalty: float,
    count: int,
    *,
    allowed: Tensor | None = None,
    required: Tensor | None = None,
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
        allowed: ``[d, d]`` booleans, where a weight may be other than zero; all off the diagonal by default.
        required: ``[d, d]`` booleans without a cycle, arcs without a penalty, that count as there in the determinant
            (of ``sI - W * W - required``).

    Returns:
        The new state. Loops compiled by numba where it is installed, the graphs are on the CPU, in double precision and
        have at most 256 nodes; :func:`barrier_steps_reference` elsewhere.
    """
    run = _loops()
    weights = state.weights
    if run is None or weights.device.type != "cpu" or weights.dtype != torch.float64 or weights.shape[-1] > _LARGEST:
        return barrier_steps_reference(state, moments, mu, scale, penalty, count, allowed=allowed, required=required)
    state = BarrierState(*(t.clone(memory_format=torch.contiguous_format) for t in state))
    fixed = (t.contiguous().numpy() for t in (moments, mu, scale, *masks(weights, penalty, allowed, required)))
    run(*(t.numpy() for t in state), *fixed, count)
    return state


def barrier_steps_reference(
    state: BarrierState,
    moments: Tensor,
    mu: Tensor,
    scale: Tensor,
    penalty: float,
    count: int,
    *,
    allowed: Tensor | None = None,
    required: Tensor | None = None,
) -> BarrierState:
    """:func:`barrier_steps` in torch, all graphs at once, on any device."""
    weights, mean, square, direction, rate, step, left = state
    strength, free, base = masks(weights, penalty, allowed, required)
    mu = mu[:, None, None]
    pull = mu * moments
    alive = ~left
    for _ in range(count):
        inverse, inside = inside_domain(weights, scale, base)
        outside = alive & ~inside
        while bool(outside.any()):
            left = left | (outside & ((step == 0) | (scale <= 0.9)))
            outside = outside & ~left
            weights = torch.where(outside[:, None, None], weights + 0.5 * rate[:, None, None] * direction, weights)
            rate = torch.where(outside, 0.5 * rate, rate)
            alive = alive & ~left & (rate > _SMALLEST_RATE)
            inverse, inside = inside_domain(weights, scale, base)
            outside = alive & ~inside
        if not bool(alive.any()):
            break
        step = step + alive
        score = torch.baddbmm(pull, pull, weights, beta=-1)
        gradient = score + strength * mu * weights.sign() + 2 * weights * inverse.mT
        moved = alive[:, None, None]
        mean = torch.where(moved, 0.99 * mean + 0.01 * gradient, mean)
        square = torch.where(moved, 0.999 * square + 0.001 * gradient * gradient, square)
        power = step.clamp(min=1).to(weights.dtype)[:, None, None]
        shape = mean / (1 - 0.99**power) / ((square / (1 - 0.999**power)).sqrt() + 1e-8) * free
        direction = torch.where(moved, shape, direction)
        weights = torch.where(moved, weights - rate[:, None, None] * shape, weights)
    return BarrierState(weights, mean, square, direction, rate, step, left)


def inside_domain(weights: Tensor, scale: Tensor, base: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Return ``(sI - W * W - base)^-1`` ``[b, d, d]`` and whether that matrix is an M-matrix ``[b]``."""
    identity = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    inverse, information = torch.linalg.inv_ex(scale[:, None, None] * identity - weights * weights - base)
    # A matrix with non-positive off-diagonal entries is an M-matrix exactly if its inverse is non-negative.
    rounding = 1e3 * torch.finfo(weights.dtype).eps * inverse.abs().amax((-2, -1))
    return inverse, (inverse.amin((-2, -1)) >= -rounding) & (information == 0) & rounding.isfinite()


@cache
def _loops() -> Callable[..., Any] | None:
    """The compiled loops, or ``None`` without numba."""
    if find_spec("numba") is None:
        return None
    from pullback.kernels import barrier_numba

    return barrier_numba.run
