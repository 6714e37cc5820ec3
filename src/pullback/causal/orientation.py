"""Smooth orientations: one priority a node orients every pair, and no cycle can be strong."""

from __future__ import annotations

import math

import torch

from pullback.core.checks import check_floating, check_scalar, check_shape
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Tensor

__all__ = ["cosine_temperature", "orientation"]


def orientation(
    priority: Float[Tensor, "*batch d"],
    *,
    temperature: float | Float[Tensor, ""],
    shift: float | Float[Tensor, ""] = 0.01,
    hard: bool = False,
) -> Float[Tensor, "*batch d d"]:
    r"""Orient every pair of nodes by their priorities.

    .. math:: S_{uv} = \sigma\big((p_v - p_u - \varepsilon) / t\big),\quad S_{uu} = 0

    Every cycle has an arc with :math:`p_v \le p_u`, so the product of ``S`` along it is at most
    :math:`\sigma(-\varepsilon/t)`, which vanishes as ``t -> 0``.

    Args:
        priority: ``[*batch, d]`` in the unit of ``shift``.
        temperature: ``t > 0``, a number or a tensor without dimensions (its gradient exists).
        shift: ``epsilon > 0``, the margin by which a cause precedes its effect.
        hard: ``1`` exactly where ``p_v - p_u > shift``, with the gradient of the smooth orientation.

    Returns:
        ``[*batch, d, d]`` in [0, 1].

    Raises:
        ValueError: temperature or shift not positive.

    Example:
        >>> orientation(torch.tensor([0.0, 1.0]), temperature=0.1, hard=True)
        tensor([[0., 1.],
                [0., 0.]])

    References:
        Massidda, Landolfi, Cinquini, Bacciu (2024), Constraint-Free Structure Learning with Smooth Acyclic
        Orientations, definition 3.
    """
    check_shape("priority", check_floating("priority", priority), (None,))
    check_scalar("temperature", temperature)
    check_scalar("shift", shift)
    difference = priority.unsqueeze(-2) - priority.unsqueeze(-1) - shift
    off_diagonal = 1 - torch.eye(priority.shape[-1], dtype=priority.dtype, device=priority.device)
    soft = torch.sigmoid(difference / temperature) * off_diagonal
    return replace_gradient((difference > 0).to(soft.dtype) * off_diagonal, soft) if hard else soft


def cosine_temperature(progress: float, *, start: float = 0.45, end: float = 5e-4) -> float:
    """Cosine annealing: ``end + (start - end) (1 + cos(pi progress)) / 2``.

    Args:
        progress: in [0, 1]; smaller and larger values stand for the ends.
        start: temperature at 0.
        end: temperature at 1.

    Example:
        >>> [round(cosine_temperature(p), 4) for p in (0.0, 0.5, 1.0)]
        [0.45, 0.2253, 0.0005]
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
