"""Running extremes with a gradient: the largest and the smallest value so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import check_dim, check_floating
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.discrete.piecewise import maximum
from pullback.discrete.softness import relax

__all__ = ["Cumulative", "cummax", "cummin"]


class Cumulative(NamedTuple):
    """Running values, and where they were found.

    Attributes:
        values: ``[*shape]`` the soft extremes so far.
        indices: ``[*shape]`` int64: the place of the hard extreme, as torch's.
    """

    values: Float[Tensor, "*shape"]
    indices: Int[Tensor, "*shape"]


def cummax(x: Float[Tensor, "*shape"], dim: int = -1, *, temperature: Scalar = 0.1, hard: bool = False) -> Cumulative:
    r"""Return the soft maximum of the entries up to each place along ``dim``.

    .. math:: m_i = \tfrac t4 \log \sum_{j \le i} e^{4 x_j / t}

    It is :func:`~pullback.discrete.maximum` (softplus) folded over the entries: convex, increasing along ``dim``, above
    the running maximum by at most ``t log(n) / 4``. Pairs, pairs of pairs and so on: O(n log n) time and memory.

    Args:
        x: ``[*shape]`` floating; infinities and NaN as in torch.
        dim: the dimension to run along.
        temperature: width of the bend in units of ``x``, >= 0, a number or a differentiable tensor without dimensions;
            0 is ``torch.cummax`` with its own gradient.
        hard: return the values of ``torch.cummax``, bit for bit, with the gradient of the relaxation.

    Returns:
        :class:`Cumulative`: ``values``, ``indices`` (hard, int64).

    Raises:
        TypeError: ``x`` is not a floating tensor.
        IndexError: ``dim`` is out of range.
        ValueError: ``temperature`` is negative, not finite or has dimensions.

    Example:
        >>> values, indices = cummax(torch.tensor([0.0, 2.0, 1.0]), temperature=1.0)
        >>> values
        tensor([0.0000, 2.0001, 2.0046])
        >>> indices.tolist()
        [0, 1, 1]
    """
    return _running(torch.cummax, x, dim, temperature, hard, lambda a, b, t: maximum(a, b, temperature=t))


def cummin(x: Float[Tensor, "*shape"], dim: int = -1, *, temperature: Scalar = 0.1, hard: bool = False) -> Cumulative:
    """Return the soft minimum of the entries up to each place along ``dim``: ``-cummax(-x)``.

    Args:
        x, dim, temperature, hard: as in :func:`cummax`.

    Returns:
        :class:`Cumulative`: ``values``, ``indices`` (hard, int64).

    Raises:
        TypeError, IndexError, ValueError: as :func:`cummax`.

    Example:
        >>> cummin(torch.tensor([3.0, 1.0, 2.0]), hard=True).values
        tensor([3., 1., 1.])
    """
    return _running(torch.cummin, x, dim, temperature, hard, lambda a, b, t: -maximum(-a, -b, temperature=t))


def _running(
    operation: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    x: Tensor,
    dim: int,
    temperature: Scalar,
    hard: bool,
    pair: Callable[[Tensor, Tensor, Scalar], Tensor],
) -> Cumulative:
    at = check_dim(check_floating("x", x), dim)

    def soft(x: Tensor, temperature: Scalar) -> Tensor:
        values = (x.reshape(1) if not x.ndim else x).movedim(at, -1)
        reach = 1
        while reach < values.shape[-1]:
            # Each place has the extreme of the last `reach` entries, and meets that of those before.
            met = pair(values[..., reach:], values[..., :-reach], temperature)
            values = torch.cat([values[..., :reach], met], dim=-1)
            reach *= 2
        return values.movedim(-1, at).reshape(x.shape)

    values = relax(lambda x: operation(x, at)[0], soft, temperature=temperature, hard=hard, x=x)
    return Cumulative(values, operation(x.detach(), at)[1])
