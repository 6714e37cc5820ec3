"""Proper scores of predictions: what is least, on average, for the law that the data has."""

from __future__ import annotations

import torch

from pullback.core.checks import check_choice, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.levels import check_level

__all__ = ["pinball_loss"]


def pinball_loss(
    quantile: Float[Tensor, "*shape"],
    y: Float[Tensor, "*batch"],
    level: float | Float[Tensor, "..."],
    *,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    r"""Return the loss whose least mean is at the quantile of a level.

    .. math:: \rho_\tau(y - q) = \max\big(\tau (y - q),\ (\tau - 1)(y - q)\big)

    Twice its mean over evenly spread levels is the CRPS of the law with these quantiles (:func:`crps`).

    Args:
        quantile: ``[*batch]`` predicted quantiles of one level, or ``[*batch, k]`` of ``k`` levels.
        y: ``[*batch]`` what came, in the same unit.
        level: a number in (0, 1), or a tensor ``[k]`` of such; may require a gradient. Then ``quantile`` has one
            dimension more than ``y``. Shapes are not broadcast: ``[n, 1]`` against ``[n]`` is refused.
        reduction: ``"mean"`` or ``"sum"`` over all entries, or ``"none"``.

    Returns:
        The loss >= 0 in the unit of ``y``; in the shape of ``quantile`` with ``"none"``. Where ``y`` is the quantile
        the derivative is the mean of those on both sides.

    Raises:
        TypeError: ``quantile`` or ``y`` is no floating tensor, or of another dtype than the other.
        ValueError: shapes do not fit, a level is outside (0, 1), ``reduction`` is unknown.

    Example:
        >>> pinball_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), 0.9, reduction="none")
        tensor([0.9000, 0.1000])
        >>> pinball_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]), torch.tensor([0.1, 0.9]))
        tensor(0.1000)

    References:
        Koenker, Bassett (1978), Regression quantiles, Econometrica 46, equation 3.1.
    """
    check_same_dtype(quantile=check_floating("quantile", quantile), y=check_floating("y", y))
    check_level("level", level)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    expected = tuple(y.shape)
    if isinstance(level, Tensor) and level.ndim:
        if level.ndim > 1:
            raise ValueError(f"level must be a number or a tensor [k], got shape {tuple(level.shape)}")
        expected = (*expected, len(level))
        y = y.unsqueeze(-1)
    if tuple(quantile.shape) != expected:
        raise ValueError(f"quantile must have shape {expected}, that of y and level, got {tuple(quantile.shape)}")
    if isinstance(level, Tensor):
        level = level.to(quantile)
    half = y / 2 - quantile / 2  # the difference of the largest numbers is not one
    loss = torch.maximum(2 * level * half, 2 * (level - 1) * half)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()
