"""What a model does near a point when one feature moves: ask the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.gradients.attribution import scalar_rows

__all__ = ["LocalBehaviour", "local_behaviour"]


class LocalBehaviour(NamedTuple):
    """Values of a model around points, and what they say of its direction.

    Attributes:
        effect: ``[*batch]`` mean of ``above - below``: positive where the model rises with the feature.
        standard_error: ``[*batch]`` of the effect; infinite for a single pair.
        confidence: ``[*batch]`` ``Phi(|effect| / standard_error)``, one-sided, that the sign of the effect is right
            (normal approximation); 1/2 where the effect is 0.
        displacement: ``[*batch, pairs]`` how far the feature was moved, in ``(0, delta)``.
        above: ``[*batch, pairs]`` the model where the feature is larger by it.
        below: ``[*batch, pairs]`` and where it is smaller.
    """

    effect: Float[Tensor, "*batch"]
    standard_error: Float[Tensor, "*batch"]
    confidence: Float[Tensor, "*batch"]
    displacement: Float[Tensor, "*batch pairs"]
    above: Float[Tensor, "*batch pairs"]
    below: Float[Tensor, "*batch pairs"]


def local_behaviour(
    fn: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch n"],
    feature: int | Shaped[Tensor, "*batch"],
    *,
    delta: float,
    queries: int,
    target: int | None = None,
    generator: torch.Generator | None = None,
) -> LocalBehaviour:
    r"""Evaluate a model at ``x + u e_j`` and ``x - u e_j``, ``u`` uniform on ``(0, delta)``, and compare.

    Where attributions say nothing about such behaviour, its values do: the error of the sign of ``effect`` falls with
    the number of queries, and tests of other behaviour (does a decision flip, does anything change) read ``above`` and
    ``below``.

    Args:
        fn: maps rows ``[m, n]`` to ``[m]``, ``[m, 1]``, or to ``[m, outputs]`` of which ``target`` is looked at.
        x: ``[*batch, n]`` the points.
        feature: ``j`` in ``0..n-1``, for all points or an integer tensor ``[*batch]``.
        delta: > 0, the largest displacement, in units of the feature.
        queries: evaluations a point, even, >= 2.
        target: the output to look at, where ``fn`` has several.
        generator: of the displacements; torch's default one if ``None``.

    Returns:
        A :class:`LocalBehaviour`.

    Raises:
        TypeError: ``fn`` is not callable, ``x`` is not floating, ``feature`` or ``queries`` is no integer.
        ValueError: ``feature``, ``delta`` or ``queries`` is out of range, or ``fn`` has several outputs and no
            ``target``.

    Example:
        >>> found = local_behaviour(lambda x: x[:, 0] ** 2 - x[:, 1], torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0,
        ...                         delta=0.1, queries=20, generator=torch.Generator().manual_seed(0))
        >>> found.effect.sign().tolist(), found.confidence.min().item() > 0.99
        ([1.0, -1.0], True)

    References:
        Bilodeau, Jaques, Koh, Kim (2024), Impossibility theorems for feature attribution, section "Solving end-tasks".
    """
    check_callable("fn", fn)
    check_positive("delta", delta)
    if check_integer("queries", queries, 2) % 2:
        raise ValueError(f"queries must be even, got {queries}")
    if not check_floating("x", x).ndim or not x.shape[-1]:
        raise ValueError(f"x must have features in its last dimension, got shape {tuple(x.shape)}")
    one_hot = _one_hot(feature, x)
    shape = (*x.shape[:-1], queries // 2)
    uniform = torch.rand(shape, generator=generator, dtype=x.dtype, device=drawing_device(generator, x)).to(x.device)
    displacement = delta * (1 - uniform)
    moves = displacement.unsqueeze(-1) * one_hot.unsqueeze(-2)
    points = torch.stack([x.unsqueeze(-2) + moves, x.unsqueeze(-2) - moves])
    above, below = scalar_rows(fn, points.reshape(-1, x.shape[-1]), target).view(2, *shape)
    difference = above - below
    effect = difference.mean(-1)
    spread = difference.var(-1).sqrt() if shape[-1] > 1 else torch.full_like(effect, math.inf)
    error = spread / math.sqrt(shape[-1])
    ratio = torch.where(effect == 0, 0.0, effect.abs() / error)
    return LocalBehaviour(effect, error, torch.special.ndtr(ratio), displacement, above, below)


def _one_hot(feature: int | Tensor, x: Tensor) -> Tensor:
    """``[*batch, n]`` the unit vector of each point's feature."""
    n = x.shape[-1]
    if not isinstance(feature, Tensor):
        feature = torch.tensor(check_integer("feature", feature, 0, n - 1))
    elif feature.is_floating_point() or feature.dtype == torch.bool:
        raise TypeError(f"feature must be an integer or a tensor of integers, got {feature.dtype}")
    elif feature.shape != x.shape[:-1]:
        raise ValueError(f"feature must have shape {tuple(x.shape[:-1])}, got {tuple(feature.shape)}")
    elif feature.numel() and not 0 <= int(feature.min()) <= int(feature.max()) < n:
        raise ValueError(f"feature must be in 0..{n - 1}, got {int(feature.min())}..{int(feature.max())}")
    return (feature.to(x.device).unsqueeze(-1) == torch.arange(n, device=x.device)).to(x.dtype).expand(x.shape)
