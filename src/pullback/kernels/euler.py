r"""Sums of steps over weighted heights, and the weights that a complex gives to the heights of its vertices.

A lower-star complex adds every cell at the height of its highest corner, so the alternating count of cells below a
threshold is a sum over *vertices*, each weighted by the alternating number of cells of which it is the highest corner.
The weight is an integer, constant while no two corners of a cell change their order, and zero at most vertices of a
mesh: on a surface, wherever the part of a vertex's link that lies below the vertex is an arc.

Every function has a compiled form (numba, on the CPU, single and double precision) and a plain form of torch's own
operations for everything else. Neither holds anything of the size heights x thresholds; in the compiled one, a height
costs as many logistic functions as there are thresholds near it, one exponential in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.core.transforms import is_transformed
from pullback.kernels.compiled import compiled, over_rows

__all__ = ["highest_corner_weights", "logistic_pull", "step_sum"]

_FLAT = 40.0
"""Beyond it the logistic function is 0 or 1 to within 5e-18."""

_BLOCK = 1 << 22
"""How many numbers a plain form holds at once."""


def highest_corner_weights(heights: Tensor, cells: Sequence[Tensor]) -> Tensor:
    """Return the alternating number of cells whose highest corner a vertex is; of equally high ones the first.

    Args:
        heights: ``[v, d]`` of the vertices along ``d`` directions, detached.
        cells: ``[c, corners]`` int64 vertices of the cells of dimension 1, 2, ...

    Returns:
        ``[v, d]`` whole numbers in the dtype of ``heights``.

    Example:
        >>> highest_corner_weights(torch.tensor([[0.0], [2.0], [1.0]]), [torch.tensor([[0, 1], [1, 2]])]).tolist()
        [[1.0], [-1.0], [1.0]]
    """
    if _compiles(heights):
        weights = torch.ones(heights.shape, dtype=torch.int32)
        array = heights.contiguous().resolve_neg().numpy()
        for dimension, corners in enumerate(cells, start=1):
            _loops()[0](array, corners.contiguous().numpy(), (-1) ** dimension, weights.numpy())
        return weights.to(heights.dtype)
    corner_count = max([1, *(corners.numel() for corners in cells)])
    parts = []
    for columns in _blocks(heights.shape[1], corner_count):
        block = heights[:, columns]
        part = torch.ones_like(block)
        for dimension, corners in enumerate(cells, start=1):
            if len(corners):
                highest = corners.gather(1, block[corners].argmax(1))
                part = part.scatter_add(0, highest, torch.full_like(highest, (-1) ** dimension, dtype=block.dtype))
        parts.append(part)
    return torch.cat(parts, 1) if parts else torch.ones_like(heights)


def step_sum(u: Tensor, weights: Tensor, rows: Tensor, thresholds: Tensor, count: int, order: int | None) -> Tensor:
    r"""Return ``sum_v w_vj S(t_i - u_vj)`` over the heights of each row, or a derivative of the logistic function S.

    Args:
        u: ``[n, d]`` heights in units of the logistic function.
        weights: ``[n, d]``.
        rows: ``[n]`` int64 below ``count``.
        thresholds: ``[t]`` ascending, in the same units.
        count: of rows.
        order: of the derivative of S; ``None`` is the step, 1 where ``u <= t``.

    Returns:
        ``[count, d, t]``. Differentiable in the plain form, of order 0.

    Example:
        >>> one = torch.ones(1, 1)
        >>> step_sum(0 * one, one, torch.tensor([0]), torch.tensor([-1.0, 0.0, 1.0]), 1, None).tolist()
        [[[0.0, 1.0, 1.0]]]
    """
    if not _compiles(u):
        return _step_sum_plain(u, weights, rows, thresholds, count, order)
    shape = (count, u.shape[1], len(thresholds))
    below, near = thresholds.double().numpy(), _ratios(thresholds)
    coefficients = _derivative(order or 0)

    def part(u: Any, w: Any, r: Any) -> Any:
        out, rise = np.zeros(shape), np.zeros(shape)
        if order is None:
            _loops()[1](u, w, r, below, rise)
        else:
            _loops()[2](u, w, r, below, near, coefficients, order, out, rise)
        return out + rise.cumsum(-1) if order is None or order == 0 else out

    arrays = [x.contiguous().resolve_neg().numpy() for x in (u, weights, rows)]
    return torch.from_numpy(sum(over_rows(part, *arrays))).to(u.dtype)


def logistic_pull(
    u: Tensor, weights: Tensor, rows: Tensor, thresholds: Tensor, cotangent: Tensor, order: int
) -> Tensor:
    r"""Return the transpose of :func:`step_sum`: ``w_vj sum_i g_ji S^(order)(t_i - u_vj)`` with the ``g`` of v's row.

    Args:
        u, weights, rows, thresholds, order: as there.
        cotangent: ``[count, d, t]``.

    Returns:
        ``[n, d]``.

    Example:
        >>> one = torch.ones(1, 1)
        >>> logistic_pull(0 * one, one, torch.tensor([0]), torch.zeros(1), torch.ones(1, 1, 1), 1).tolist()
        [[0.25]]
    """
    if not _compiles(u):
        return _logistic_pull_plain(u, weights, rows, thresholds, cotangent, order)
    below, near, coefficients = thresholds.double().numpy(), _ratios(thresholds), _derivative(order)
    g = cotangent.contiguous().resolve_neg().numpy()
    out = torch.empty(u.shape, dtype=u.dtype)

    def part(u: Any, w: Any, r: Any, out: Any) -> None:
        _loops()[3](u, w, r, below, near, coefficients, order, g, out)

    over_rows(part, *(x.contiguous().resolve_neg().numpy() for x in (u, weights, rows)), out.numpy())
    return out


def _step_sum_plain(
    u: Tensor, weights: Tensor, rows: Tensor, thresholds: Tensor, count: int, order: int | None
) -> Tensor:
    parts = []
    for columns in _blocks(u.shape[1], max(1, u.shape[0] * len(thresholds))):
        steps = _steps(u[:, columns, None], thresholds, order) * weights[:, columns, None]
        parts.append(torch.zeros_like(steps[:1]).expand(count, *steps.shape[1:]).index_add(0, rows, steps))
    return torch.cat(parts, 1) if parts else u.new_zeros(count, 0, len(thresholds))


def _logistic_pull_plain(
    u: Tensor, weights: Tensor, rows: Tensor, thresholds: Tensor, cotangent: Tensor, order: int
) -> Tensor:
    parts = [
        (_steps(u[:, columns, None], thresholds, order) * cotangent[rows, columns]).sum(-1) * weights[:, columns]
        for columns in _blocks(u.shape[1], max(1, u.shape[0] * len(thresholds)))
    ]
    return torch.cat(parts, 1) if parts else torch.zeros_like(u)


def _steps(u: Tensor, thresholds: Tensor, order: int | None) -> Tensor:
    if order is None:
        return (u <= thresholds).to(u.dtype)
    soft = torch.sigmoid(thresholds - u)
    if order == 0:
        return soft
    polynomial = torch.zeros_like(soft)
    for coefficient in _derivative(order)[::-1]:
        polynomial = polynomial * soft + float(coefficient)
    return soft * torch.sigmoid(u - thresholds) * polynomial


def _blocks(columns: int, size: int) -> Iterator[slice]:
    width = max(1, _BLOCK // size)
    for start in range(0, columns, width):
        yield slice(start, min(start + width, columns))


@cache
def _derivative(order: int) -> Any:
    """Return the polynomial R of ``S^(order) = S (1 - S) R(S)``, by ``R' = (1 - 2 s) R + (s - s^2) dR/ds``."""
    polynomial = np.polynomial.Polynomial([1.0])
    for _ in range(order - 1):
        polynomial = np.polynomial.Polynomial([1, -2]) * polynomial + (
            np.polynomial.Polynomial([0, 1, -1]) * polynomial.deriv()
        )
    return polynomial.coef


def _ratios(thresholds: Tensor) -> Any:
    """By how much ``exp(u - t)`` shrinks from one threshold to the next."""
    ratios = np.ones(len(thresholds))
    ratios[1:] = np.exp(-np.diff(thresholds.double().numpy()))
    return ratios


def _compiles(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not is_transformed(x)
        and compiled() is not None
    )


@cache
def _loops() -> tuple[Callable[..., Any], ...]:
    jit = compiled()
    assert jit is not None

    @jit
    def corner_weights(heights: Any, cells: Any, sign: int, weights: Any) -> None:
        directions = heights.shape[1]
        count, corners = cells.shape
        if corners == 2:
            for c in range(count):
                a, b = cells[c, 0], cells[c, 1]
                for j in range(directions):
                    first = heights[a, j] >= heights[b, j]
                    weights[a, j] += sign if first else 0
                    weights[b, j] += 0 if first else sign
        elif corners == 3:
            for c in range(count):
                a, b, d = cells[c, 0], cells[c, 1], cells[c, 2]
                for j in range(directions):
                    x, y, z = heights[a, j], heights[b, j], heights[d, j]
                    first = (x >= y) & (x >= z)
                    second = (y > x) & (y >= z)
                    weights[a, j] += sign if first else 0
                    weights[b, j] += sign if second else 0
                    weights[d, j] += 0 if first | second else sign
        else:
            for c in range(count):
                for j in range(directions):
                    best = cells[c, 0]
                    for k in range(1, corners):
                        if heights[cells[c, k], j] > heights[best, j]:
                            best = cells[c, k]
                    weights[best, j] += sign

    @jit
    def hard_sum(u: Any, w: Any, rows: Any, thresholds: Any, rise: Any) -> None:
        n, directions = u.shape
        t = len(thresholds)
        for v in range(n):
            r = rows[v]
            for j in range(directions):
                if w[v, j] != 0:
                    low, high = 0, t  # the first threshold at or above the height
                    while low < high:
                        middle = (low + high) // 2
                        if thresholds[middle] >= u[v, j]:
                            high = middle
                        else:
                            low = middle + 1
                    if low < t:
                        rise[r, j, low] += w[v, j]

    @jit
    def first_above(thresholds: Any, bound: float) -> int:
        low, high = 0, len(thresholds)
        while low < high:
            middle = (low + high) // 2
            if thresholds[middle] > bound:
                high = middle
            else:
                low = middle + 1
        return low

    @jit
    def soft_sum(
        u: Any, w: Any, rows: Any, thresholds: Any, ratios: Any, coefficients: Any, order: int, out: Any, rise: Any
    ) -> None:
        n, directions = u.shape
        t, degree = len(thresholds), len(coefficients)
        for v in range(n):
            r = rows[v]
            for j in range(directions):
                weight = w[v, j]
                if weight == 0:
                    continue
                height = np.float64(u[v, j])
                low = first_above(thresholds, height - _FLAT)
                if low == t:
                    continue
                above = np.exp(height - thresholds[low])
                i = low
                while i < t:
                    if i > low:
                        above *= ratios[i]
                    if thresholds[i] > height + _FLAT:
                        break
                    soft = 1 / (1 + above)
                    if order == 0:
                        out[r, j, i] += weight * soft
                    else:
                        polynomial = coefficients[degree - 1]
                        for k in range(degree - 2, -1, -1):
                            polynomial = polynomial * soft + coefficients[k]
                        out[r, j, i] += weight * soft * soft * above * polynomial
                    i += 1
                if i < t:
                    rise[r, j, i] += weight

    @jit
    def soft_pull(
        u: Any, w: Any, rows: Any, thresholds: Any, ratios: Any, coefficients: Any, order: int, g: Any, out: Any
    ) -> None:
        n, directions = u.shape
        t, degree = len(thresholds), len(coefficients)
        for v in range(n):
            r = rows[v]
            for j in range(directions):
                weight = w[v, j]
                out[v, j] = 0
                if weight == 0:
                    continue
                height = np.float64(u[v, j])
                low = first_above(thresholds, height - _FLAT)
                if low == t:
                    continue
                above = np.exp(height - thresholds[low])
                total = 0.0
                i = low
                while i < t:
                    if i > low:
                        above *= ratios[i]
                    if thresholds[i] > height + _FLAT:
                        break
                    soft = 1 / (1 + above)
                    if order == 0:
                        total += g[r, j, i] * soft
                    else:
                        polynomial = coefficients[degree - 1]
                        for k in range(degree - 2, -1, -1):
                            polynomial = polynomial * soft + coefficients[k]
                        total += g[r, j, i] * soft * soft * above * polynomial
                    i += 1
                if order == 0:
                    for rest in range(i, t):
                        total += g[r, j, rest]
                out[v, j] = weight * total

    return corner_weights, hard_sum, soft_sum, soft_pull
