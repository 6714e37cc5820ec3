"""Values of a loss on a line or a plane through a point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.shapes import Float

__all__ = ["LossSlice", "loss_slice"]

Point = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class LossSlice:
    """A loss on a grid along one or two directions.

    Attributes:
        offsets: ``[steps]`` multiples of each direction, from ``-extent`` to ``extent``.
        values: ``[steps]`` or ``[steps, steps]``; ``values[i, k]`` is the loss at
            ``point + offsets[i] d_1 + offsets[k] d_2``. NaN and infinities of the loss are kept.
    """

    offsets: Float[Tensor, " steps"]
    values: Float[Tensor, " steps"] | Float[Tensor, "steps steps"]


def loss_slice(
    loss: Callable[[Any], Tensor],
    point: Tensor | Mapping[str, Tensor],
    directions: Sequence[Tensor | Mapping[str, Tensor]],
    extent: float = 1.0,
    steps: int = 25,
) -> LossSlice:
    r"""Evaluate a loss around a point: ``L(p + a d_1)`` or ``L(p + a d_1 + b d_2)`` on a grid.

    Directions are taken as they are: their length is the unit of the offsets. An odd number of steps has the point
    itself in its middle.

    Args:
        loss: maps a point to a scalar. It runs under ``torch.no_grad``, once for each point of the grid.
        point: a floating tensor, or tensors by name.
        directions: one or two, shaped like the point.
        extent: largest offset, > 0.
        steps: points along each direction, >= 2.

    Returns:
        A :class:`LossSlice`.

    Raises:
        TypeError: ``loss`` is not callable, a tensor is not floating, or ``steps`` is no integer.
        ValueError: there are no or more than two directions, one is not shaped like the point, ``extent`` or ``steps``
            is out of range, or the loss is no scalar.

    Example:
        >>> point, direction = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])
        >>> found = loss_slice(lambda x: x.square().sum(), point, [direction], steps=5)
        >>> found.offsets.tolist(), found.values.tolist()
        ([-1.0, -0.5, 0.0, 0.5, 1.0], [1.0, 0.0, 1.0, 4.0, 9.0])

    References:
        Goodfellow, Vinyals, Saxe (2015), Qualitatively characterizing neural network optimization problems.
        Li, Xu, Taylor, Studer, Goldstein (2018), Visualizing the loss landscape of neural nets.
    """
    check_callable("loss", loss)
    check_positive("extent", extent)
    check_integer("steps", steps, 2)
    if not 1 <= len(directions) <= 2:
        raise ValueError(f"directions must be one or two, got {len(directions)}")
    start = _named("point", point)
    along = [_named(f"directions[{i}]", direction) for i, direction in enumerate(directions)]
    for i, direction in enumerate(along):
        if {n: d.shape for n, d in direction.items()} != {n: p.shape for n, p in start.items()}:
            came = {n: tuple(d.shape) for n, d in direction.items()}
            wanted = {n: tuple(p.shape) for n, p in start.items()}
            raise ValueError(f"directions[{i}] must be shaped like the point, {wanted}, got {came}")
    offsets = torch.linspace(-extent, extent, steps, dtype=torch.float64)

    def value(*amounts: float) -> float:
        moved = dict(start)
        for amount, direction in zip(amounts, along, strict=True):
            moved = {name: p + amount * direction[name].to(p) for name, p in moved.items()}
        found = loss(moved[""] if isinstance(point, Tensor) else moved)
        if not isinstance(found, Tensor) or found.numel() != 1:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"loss must return a scalar, got {came}")
        return float(found)

    grid = offsets.tolist()
    with torch.no_grad():
        if len(along) == 1:
            values = torch.tensor([value(a) for a in grid], dtype=torch.float64)
        else:
            values = torch.tensor([[value(a, b) for b in grid] for a in grid], dtype=torch.float64)
    return LossSlice(offsets, values)


def _named(name: str, point: Point) -> dict[str, Tensor]:
    if isinstance(point, Tensor):
        return {"": check_floating(name, point).detach()}
    if not isinstance(point, Mapping) or not point:
        came = "none" if isinstance(point, Mapping) else type(point).__name__
        raise TypeError(f"{name} must be a tensor or tensors by name, got {came}")
    return {key: check_floating(f"{name}[{key!r}]", value).detach() for key, value in point.items()}
