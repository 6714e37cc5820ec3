r"""How stationary a point is for a loss with kinks: gradients in a ball around it, averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.optim.aggregation import aggregate

__all__ = ["goldstein_norm"]

Method = Literal["mean", "min-norm"]


def goldstein_norm(
    gradient: Callable[[Tensor], Tensor],
    point: Float[Tensor, "*batch n"],
    radius: float,
    *,
    samples: int = 64,
    method: Method = "min-norm",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return an upper bound of the least norm of a mean gradient over points with mean ``x`` in a ball around it.

    .. math:: |\nabla F(x)|_\delta = \inf \Big\{ \Big| \frac1m \sum_i \nabla F(y_i) \Big| :
        |y_i - x| \le \delta, \ \frac1m \sum_i y_i = x \Big\}

    It is 0 at a minimum with a kink, where gradients themselves stay large. The points come in pairs ``x + u``,
    ``x - u``, uniform in the ball, so that the mean of every pair is ``x``: ``"mean"`` is the norm of the mean over all
    of them, ``"min-norm"`` that of the shortest convex combination of the pairs' means, never more.

    Args:
        gradient: from points ``[samples, *batch, n]`` to gradients of the same shape.
        point: ``[*batch, n]`` ``x``.
        radius: ``delta`` > 0.
        samples: points, even, >= 2.
        method: ``"mean"`` or ``"min-norm"``.
        generator: of the points.

    Returns:
        ``[*batch]`` the norms, without derivatives.

    Raises:
        TypeError: ``gradient`` is no function or returns no tensor, ``point`` is no floating tensor.
        ValueError: a number is out of range, ``method`` is unknown, or the gradients have another shape.

    Example:
        >>> point = torch.tensor([0.01, -0.02])  # of |x_1| + |x_2|
        >>> draws = torch.Generator().manual_seed(0)
        >>> torch.sign(point).norm().item() > 1.4, goldstein_norm(torch.sign, point, 0.5, generator=draws).item() < 0.1
        (True, True)

    References:
        Goldstein (1977), Optimization of Lipschitz continuous functions. Cutkosky, Mehta, Orabona (2023), Optimal
        stochastic non-smooth non-convex optimization through online-to-non-convex conversion, section 2.
    """
    check_callable("gradient", gradient)
    check_floating("point", point)
    if point.ndim == 0 or point.shape[-1] == 0:
        raise ValueError(f"point must have shape (..., n) with n >= 1, got {tuple(point.shape)}")
    check_positive("radius", radius)
    check_integer("samples", samples, 2)
    if samples % 2:
        raise ValueError(f"samples must be even: they come in pairs, got {samples}")
    check_choice("method", method, get_args(Method))
    x, pairs = point.detach(), samples // 2
    device = drawing_device(generator, x)
    u = torch.randn((pairs, *x.shape), dtype=torch.float64, generator=generator, device=device)
    r = torch.rand((pairs, *x.shape[:-1], 1), dtype=torch.float64, generator=generator, device=device)
    u = (radius * r ** (1 / x.shape[-1]) * u / u.norm(dim=-1, keepdim=True)).to(x)
    points = torch.cat([x + u, x - u])
    found = gradient(points)
    if not isinstance(found, Tensor):
        raise TypeError(f"gradient must return a tensor, got {type(found).__name__}")
    if found.shape != points.shape:
        raise ValueError(f"gradient must keep the shape {tuple(points.shape)}, got {tuple(found.shape)}")
    means = (found[:pairs].detach() + found[pairs:].detach()) / 2
    if method == "mean":
        return torch.linalg.vector_norm(means.mean(0), dim=-1)
    return torch.linalg.vector_norm(aggregate(means.movedim(0, -2), method="mgda").direction, dim=-1)
