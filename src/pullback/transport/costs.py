"""Costs of all pairs of two clouds of points."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pullback.core.checks import check_broadcast, check_choice, check_finite, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["COSTS", "Cost", "check_clouds", "mean_cost", "paired_cost", "pairwise_cost"]

Cost = str | Callable[[Tensor, Tensor], Tensor]
"""The name of a cost, or a function from ``x [*batch, n, d]`` and ``y [*batch, m, d]`` to ``[*batch, n, m]``."""


def pairwise_cost(
    x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"], cost: Cost = "sqeuclidean"
) -> Float[Tensor, "*batch n m"]:
    r"""Return :math:`C_{ij} = c(x_i, y_j)`.

    ``"sqeuclidean"``: :math:`|x-y|^2`, by one matrix product of the points less their mean; where two points agree it
    is 0 up to rounding. ``"euclidean"``: :math:`|x-y|`, whose derivative where two points agree is 0.

    Args:
        x: ``[*batch, n, d]`` points.
        y: ``[*batch, m, d]`` points.
        cost: one of these names, or a function of x and y.

    Returns:
        ``[*batch, n, m]``. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: x or y is no floating tensor, or their dtypes differ; ``cost`` is neither a name nor a function.
        ValueError: the shapes do not fit, or the function returns another one.

    Example:
        >>> pairwise_cost(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "euclidean")
        tensor([[5., 1.]])

    References:
        Peyre, Cuturi (2019), Computational optimal transport, section 2.2.
    """
    check_clouds(x, y)
    if callable(cost):
        found = cost(x, y)
        batch = check_broadcast(x=tuple(x.shape[:-2]), y=tuple(y.shape[:-2]))
        expected = (*batch, x.shape[-2], y.shape[-2])
        if not isinstance(found, Tensor) or tuple(found.shape) != expected:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"cost must return a tensor of shape {expected}, got {what}")
        return found
    if not isinstance(cost, str):
        raise TypeError(f"cost must be a name or a function, got {type(cost).__name__}")
    check_choice("cost", cost, tuple(COSTS))
    wide = torch.promote_types(x.dtype, torch.float32)
    return COSTS[cost](x.to(wide), y.to(wide)).to(x.dtype)


def mean_cost(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """Return the mean ``[*batch]`` of the costs of all pairs, constant, without keeping them.

    Example:
        >>> mean_cost(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [2.0]]), "sqeuclidean")
        tensor(1.5000)
    """
    x, y = x.detach(), y.detach()
    if cost == "sqeuclidean":
        centres = x.mean(-2), y.mean(-2)
        spread = [(t - c.unsqueeze(-2)).square().sum(-1).mean(-1) for t, c in zip((x, y), centres, strict=True)]
        return spread[0] + spread[1] + (centres[0] - centres[1]).square().sum(-1)
    blocks = x.split(max(1, (1 << 20) // y.shape[-2]), -2)
    return torch.stack([COSTS[cost](rows, y).sum((-2, -1)) for rows in blocks]).sum(0) / (x.shape[-2] * y.shape[-2])


def paired_cost(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """Return the costs ``[*batch, n]`` of points and their images.

    Example:
        >>> paired_cost(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]), "euclidean")
        tensor([5.])
    """
    found = COSTS[cost](x.unsqueeze(-2), y.unsqueeze(-2))
    return found.squeeze((-2, -1))


def check_clouds(x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y")) -> None:
    """Raise unless x and y are points ``[..., n, d]`` and ``[..., m, d]`` of one dtype, finite, at least one each."""
    of_x, of_y = names
    check_same_dtype(**{of_x: check_floating(of_x, x), of_y: check_floating(of_y, y)})
    for name, points in ((of_x, x), (of_y, y)):
        if points.ndim < 2 or points.shape[-2] == 0:
            raise ValueError(f"{name} must have shape (..., points, dimensions), got {tuple(points.shape)}")
        if can_look(points):
            check_finite(name, points)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"{of_x} and {of_y} must have points of one dimension, got {x.shape[-1]} and {y.shape[-1]}")
    if names == ("x", "y"):
        check_broadcast(x=tuple(x.shape[:-2]), y=tuple(y.shape[:-2]))


def _squared(x: Tensor, y: Tensor) -> Tensor:
    centre = (x.detach().mean(-2, keepdim=True) + y.detach().mean(-2, keepdim=True)) / 2
    x, y = x - centre, y - centre
    return x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2) - 2 * (x @ y.mT)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    squared = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sqeuclidean": _squared, "euclidean": _distance}
