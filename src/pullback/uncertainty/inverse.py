"""Inverses of increasing functions of one number, such as a cdf: the search, and the derivatives of what it found."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pullback.core.shapes import Tensor
from pullback.core.transforms import can_look

_STEPS = 64
"""That bisection alone needs for the precision of float64."""

Function = Callable[[Tensor], Tensor]


@torch.no_grad()
def search_level(cdf: Function, density: Function, level: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return where a cdf meets a level, between ``low`` and ``high``: Newton's steps, bisection where they leave."""
    y = (low + high) / 2
    for _ in range(_STEPS):
        excess = cdf(y) - level
        low, high = torch.where(excess > 0, low, y), torch.where(excess > 0, y, high)
        step = y - excess / density(y)
        following = torch.where((step > low) & (step < high), step, (low + high) / 2)
        settled = ((following == y) | (excess == 0)).all()
        if can_look(settled) and bool(settled):
            break
        y = torch.where(excess == 0, y, following)
    return y


# A loop of many steps without a derivative: left to the interpreter, by the mark that torch.compiler.disable leaves
# (which imports the compiler).
search_level._torchdynamo_disable = True  # type: ignore[attr-defined]


def with_derivatives(y: Tensor, residual: Function, density: Function) -> Tensor:
    """Return ``y``, a root of the residual whose slope is the density, with the derivatives of that root.

    A step of Newton's from a point that is right to order m makes it right to order 2 m + 1: two are right to the third
    derivative. The value stays, for where the density is small the step would be rounding.
    """
    y = y.detach()
    for _ in range(2):
        left = residual(y)
        y = y - (left - left.detach()) / density(y).clamp(min=torch.finfo(y.dtype).tiny)
    return y
