r"""Soft minima over pairs of points, with memory for the points alone: costs are computed where they are needed.

:func:`softmin` is :math:`-\epsilon\log\sum_j\exp(h_j-c(x_i,y_j)/\epsilon)`, half a sweep of Sinkhorn;
:func:`pull` sums a plan, its costs and their derivatives along rows. Compiled, whole rows are computed by vector
instructions (:mod:`pullback.kernels.exponential`); the plain forms take blocks of rows.

References:
    Feydy, Glaunes, Charlier, Bronstein (2020), Fast geometric learning with symbolic matrices (the same by tiles).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.compiled import compiled, over_rows
from pullback.kernels.exponential import two_to_the

__all__ = ["Softmin", "compiled_loops", "pull", "pull_plain", "softmin", "softmin_plain"]

_BLOCK = 1 << 20
"""Pairs at a time in the plain forms."""


def compiled_loops(x: Tensor) -> bool:
    """Return whether the compiled forms take ``x``.

    Example:
        >>> isinstance(compiled_loops(torch.zeros(1)), bool)
        True
    """
    return x.device.type == "cpu" and compiled(True) is not None


def softmin(x: Tensor, y: Tensor, h: Tensor, epsilon: float, squared: bool, near: Tensor | None = None) -> Tensor:
    """Return the soft minimum over y for each point of x.

    Args:
        x: ``[n, d]``.
        y: ``[m, d]``.
        h: ``[m]`` logarithms of weights; -inf for none.
        epsilon: > 0.
        squared: the cost is the squared distance; else the distance.
        near: ``[n]`` what is expected, which saves the search for the largest term where it is near.

    Returns:
        ``[n]``, in the dtype of x: float32 is computed in float32.

    Example:
        >>> softmin(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.zeros(1), 0.1, squared=False)
        tensor([5.])
    """
    loops = _loops(x.dtype == torch.float32) if x.device.type == "cpu" else None
    if loops is None:
        return softmin_plain(x, y, h, epsilon, squared)
    out = torch.empty_like(x[:, 0])
    points, columns = _arrays(x, y)
    two, scale = _base_two(h, epsilon, x)
    guess = torch.full_like(out, torch.inf) if near is None else near * (-1 / (epsilon * math.log(2)))
    over_rows(loops[0], points, guess.numpy(), columns, two, scale, squared, out.numpy())
    return out * (-epsilon * math.log(2))


class Softmin:
    """:func:`softmin` over the same pairs again and again, from array to array: for few points torch's calls cost more.

    Args:
        x, y: points ``[n, d]`` and ``[m, d]`` on the CPU, for which :func:`compiled_loops` holds.
        squared: see :func:`softmin`.
        single: whether to compute in float32.

    Example:
        >>> if compiled_loops(torch.zeros(1)):
        ...     found = Softmin(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), False, False)(np.zeros(1), 0.1)
        ...     assert found.round(6).tolist() == [5.0]
    """

    def __init__(self, x: Tensor, y: Tensor, squared: bool, single: bool) -> None:
        loops = _loops(single)
        assert loops is not None
        self.loop, self.squared, self.real = loops[0], squared, np.float32 if single else np.float64
        dtype = torch.float32 if single else torch.float64
        self.points, self.columns = _arrays(x.detach().to(dtype), y.detach().to(dtype))
        self.near: np.ndarray | None = None  # the last result: the next one is not far

    def __call__(self, h: np.ndarray, epsilon: float) -> np.ndarray:
        """Return ``[n]`` float64 from logarithms of weights ``h [m]``."""
        scale, n = 1 / (epsilon * math.log(2)), len(self.points)
        guess = np.full(n, np.inf, self.real) if self.near is None else (self.near * -scale).astype(self.real)
        out, two = np.empty(n, self.real), (h / math.log(2)).astype(self.real)
        over_rows(self.loop, self.points, guess, self.columns, two, self.real(scale), self.squared, out)
        self.near = out.astype(np.float64) / -scale
        return self.near


def softmin_plain(x: Tensor, y: Tensor, h: Tensor, epsilon: float, squared: bool) -> Tensor:
    """Return the same as :func:`softmin` by torch's own operations.

    Example:
        >>> softmin_plain(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.zeros(1), 0.1, squared=False)
        tensor([5.])
    """
    parts = [
        -epsilon * torch.logsumexp(h - _costs(rows, y, squared) / epsilon, -1)
        for rows in x.split(max(1, _BLOCK // len(y)))
    ]
    return torch.cat(parts)


def pull(x: Tensor, y: Tensor, f: Tensor, h: Tensor, epsilon: float, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums along rows of the plan ``exp(f_i + h_j - c_ij / epsilon)``.

    Args:
        x, y, h, epsilon, squared: see :func:`softmin`.
        f: ``[n]`` logarithms of weights; -inf for none.

    Returns:
        ``[n]`` masses, ``[n]`` what they cost and ``[n, d]`` the derivative of that along x.

    Example:
        >>> one = torch.zeros(1)
        >>> pull(torch.zeros(1, 1), torch.ones(1, 1), one, one, 1.0, squared=True)[2].item()  # -2 / e
        -0.735...
    """
    loops = _loops(x.dtype == torch.float32) if x.device.type == "cpu" else None
    if loops is None:
        return pull_plain(x, y, f, h, epsilon, squared)
    mass, spent, slope = (
        torch.empty_like(f),
        torch.empty_like(f),
        torch.empty_like(x, memory_format=torch.contiguous_format),
    )
    points, columns = _arrays(x, y)
    two, scale = _base_two(h, epsilon, x)
    start = (f / math.log(2)).to(x.dtype).numpy()
    over_rows(loops[1], points, start, columns, two, scale, squared, mass.numpy(), spent.numpy(), slope.numpy())
    return mass, spent, slope


def pull_plain(
    x: Tensor, y: Tensor, f: Tensor, h: Tensor, epsilon: float, squared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as :func:`pull` by torch's own operations.

    Example:
        >>> one = torch.zeros(1)
        >>> pull_plain(torch.zeros(1, 1), torch.ones(1, 1), one, one, 1.0, squared=True)[2].item()
        -0.735...
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    size = max(1, _BLOCK // len(y))
    for rows, start in zip(x.split(size), f.split(size), strict=True):
        costs = _costs(rows, y, squared)
        plan = torch.exp(start.unsqueeze(-1) + h - costs / epsilon)
        weights = 2 * plan if squared else torch.where(costs > 0, plan / torch.where(costs > 0, costs, 1), 0)
        slope = weights.sum(-1, keepdim=True) * rows - weights @ y
        found.append((plan.sum(-1), (plan * costs).sum(-1), slope))
    mass, spent, slope = (torch.cat(parts) for parts in zip(*found, strict=True))
    return mass, spent, slope


def _costs(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    difference = x.unsqueeze(-2) - y if x.shape[-1] <= 8 else None
    if difference is None:
        squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * x @ y.mT
        squares = squares.clamp(min=0)
    else:
        squares = difference.square().sum(-1)
    return squares if squared else squares.sqrt()


def _arrays(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return x.contiguous().numpy(), y.mT.contiguous().numpy()


def _base_two(h: Tensor, epsilon: float, like: Tensor) -> tuple[np.ndarray, Any]:
    scale = 1 / (epsilon * math.log(2))
    return (h / math.log(2)).to(like.dtype).numpy(), like.numpy().dtype.type(scale)


def _made(jit: Any, single: bool) -> tuple[Any, Any]:
    """Compile both loops for one precision."""
    real: Any = np.float32 if single else np.float64
    two_to, low, far = two_to_the(single), real(-125 if single else -1021), real(100 if single else 900)

    def softmin(x: Any, near: Any, y: Any, h: Any, scale: Any, squared: bool, out: Any) -> None:
        n, d = x.shape
        m = y.shape[1]
        v = np.empty(m, real)
        for i in range(n):
            v[:] = real(0)
            for k in range(d):
                xk = x[i, k]
                for j in range(m):
                    t = xk - y[k, j]
                    v[j] += t * t
            if not squared:
                for j in range(m):
                    v[j] = np.sqrt(v[j])
            top, total = near[i], real(0)
            if -far * far < top < far * far:
                for j in range(m):
                    v[j] = h[j] - scale * v[j]
                    total += two_to(min(v[j] - top, far))
                if low / 2 < np.log2(total) < far / 2:
                    out[i] = top + np.log2(total)
                    continue
            else:
                for j in range(m):
                    v[j] = h[j] - scale * v[j]
            top = v[0]
            for j in range(m):
                top = max(top, v[j])
            total = real(0)
            for j in range(m):
                total += two_to(v[j] - top)
            out[i] = top + np.log2(total)

    def pull(x: Any, f: Any, y: Any, h: Any, scale: Any, squared: bool, mass: Any, spent: Any, slope: Any) -> None:
        n, d = x.shape
        m = y.shape[1]
        v, w = np.empty(m, real), np.empty(m, real)
        for i in range(n):
            v[:] = real(0)
            for k in range(d):
                xk = x[i, k]
                for j in range(m):
                    t = xk - y[k, j]
                    v[j] += t * t
            shipped, paid = real(0), real(0)
            if squared:
                for j in range(m):
                    p = two_to(min(f[i] + h[j] - scale * v[j], far))
                    shipped += p
                    paid += p * v[j]
                    w[j] = 2 * p
            else:
                for j in range(m):
                    cost = np.sqrt(v[j])
                    p = two_to(min(f[i] + h[j] - scale * cost, far))
                    shipped += p
                    paid += p * cost
                    w[j] = p / cost if cost > 0 else real(0)
            mass[i], spent[i] = shipped, paid
            for k in range(d):
                xk, total = x[i, k], real(0)
                for j in range(m):
                    total += w[j] * (xk - y[k, j])
                slope[i, k] = total

    return jit(softmin), jit(pull)


@cache
def _loops(single: bool) -> tuple[Any, Any] | None:
    """The compiled loops, or ``None`` without numba."""
    jit = compiled(True)
    return None if jit is None else _made(jit, single)
