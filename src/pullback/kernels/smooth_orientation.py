"""Adam on a linear model whose arcs are oriented by priorities: the inner loop of COSMO on second moments."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Annealed", "Penalties", "anneal", "anneal_reference"]

_LARGEST = 96
"""Nodes above which a library's blocked product is faster than the loops."""


class Annealed(NamedTuple):
    """What the steps change; one row a model.

    Attributes:
        strength: ``[b, d, d]``, the weights before they are oriented.
        priority: ``[b, d]``.
        strength_mean, strength_square, priority_mean, priority_square: Adam's moving averages.
    """

    strength: Tensor
    priority: Tensor
    strength_mean: Tensor
    strength_square: Tensor
    priority_mean: Tensor
    priority_square: Tensor


class Penalties(NamedTuple):
    """Factors of the norms in the objective, and the shift of the orientation."""

    l1: float
    l2: float
    priority: float
    shift: float


def anneal(
    state: Annealed,
    moments: Tensor,
    temperatures: Tensor,
    taken: int,
    lr: float,
    penalties: Penalties,
    allowed: Tensor | None = None,
) -> Annealed:
    r"""Take one Adam step a temperature on the penalised least-squares score of :math:`W = H \circ S(p)`.

    .. math:: \tfrac1d tr((I-W)^TC(I-W)) + l_1\|H\|_1 + l_2\|H\|_2 + l_p\|p\|_2,\quad
              S_{uv} = \sigma((p_v - p_u - \varepsilon)/t),\ S_{uu} = 0

    Args:
        state: where the models are; not changed.
        moments: ``[1, g, d, d]`` of the data, or ``[steps, g, d, d]`` of a minibatch a step; ``b`` is a multiple of
            ``g``, and consecutive models share one.
        temperatures: ``[steps]``.
        taken: Adam steps taken before.
        lr: step size.
        penalties: see there.
        allowed: ``[d, d]`` booleans, where ``S`` is not zero; all off the diagonal by default.

    Returns:
        The new state. Loops compiled by numba where it is installed, the models are on the CPU and have at most 96
        nodes; :func:`anneal_reference` elsewhere.
    """
    run = _loops()
    if run is None or state.strength.device.type != "cpu" or state.strength.shape[-1] > _LARGEST:
        return anneal_reference(state, moments, temperatures, taken, lr, penalties, allowed)
    state = Annealed(*(t.clone(memory_format=torch.contiguous_format) for t in state))
    mask = _mask(state.strength, allowed)
    fixed = (t.contiguous().numpy() for t in (moments, mask, temperatures))
    run(*(t.numpy() for t in state), *fixed, taken, float(lr), *penalties)
    return state


def anneal_reference(
    state: Annealed,
    moments: Tensor,
    temperatures: Tensor,
    taken: int,
    lr: float,
    penalties: Penalties,
    allowed: Tensor | None = None,
) -> Annealed:
    """:func:`anneal` in torch, all models at once, on any device."""
    strength, priority, *averages = state
    nodes = priority.shape[-1]
    moments = moments.repeat_interleave(len(priority) // moments.shape[1], 1)
    moments = moments.expand(len(temperatures), -1, -1, -1)
    identity = torch.eye(nodes, dtype=priority.dtype, device=priority.device)
    mask = _mask(strength, allowed)
    for step, (temperature, moment) in enumerate(zip(temperatures.tolist(), moments, strict=True), taken + 1):
        difference = priority.unsqueeze(-2) - priority.unsqueeze(-1) - penalties.shift
        oriented = torch.sigmoid(difference / temperature) * mask
        outer = moment @ (strength * oriented - identity) * (2 / nodes)  # gradient of the score in W
        of_strength = outer * oriented + penalties.l1 * strength.sign()
        of_strength = of_strength + penalties.l2 * _unit(strength, (-2, -1))
        pull = outer * strength * oriented * (1 - oriented) / temperature
        of_priority = pull.sum(-2) - pull.sum(-1) + penalties.priority * _unit(priority, (-1,))
        moved = []
        for place, (value, gradient) in enumerate(((strength, of_strength), (priority, of_priority))):
            mean, square = averages[2 * place], averages[2 * place + 1]
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient * gradient
            averages[2 * place], averages[2 * place + 1] = mean, square
            scale = (square / (1 - 0.999**step)).sqrt() + 1e-8
            moved.append(value - lr / (1 - 0.9**step) * mean / scale)
        strength, priority = moved
    return Annealed(strength, priority, *averages)


def _mask(strength: Tensor, allowed: Tensor | None) -> Tensor:
    off = ~torch.eye(strength.shape[-1], dtype=torch.bool, device=strength.device)
    return (off if allowed is None else off & allowed).to(strength)


def _unit(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The gradient of the norm, zero at zero."""
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return torch.where(norm > 0, x / norm.clamp(min=torch.finfo(x.dtype).tiny), torch.zeros_like(x))


@cache
def _loops() -> Callable[..., Any] | None:
    """The compiled loops, or ``None`` without numba."""
    if find_spec("numba") is None:
        return None
    from pullback.kernels import smooth_orientation_numba

    return smooth_orientation_numba.run
