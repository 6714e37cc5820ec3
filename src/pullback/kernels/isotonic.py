"""Pool adjacent violators: the blocks of an increasing regression, and means over such blocks.

Both take rows ``[b, n]`` and cost O(n) a row. Blocks are given by ``start [b, n]``: the index of the first element of
the block that an element is in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.compiled import compiled

__all__ = ["block_means", "isotonic", "pool"]


def pool(z: Tensor, w: Tensor, entropic: bool = False) -> Tensor:
    """Return the blocks of the increasing regression of ``z - w``, or of its entropic form.

    Two neighbouring blocks are pooled while the left one's value exceeds the right one's; the value of a block B is
    ``mean(z_B - w_B)``, or (entropic) ``logsumexp(z_B) - logsumexp(w_B)``.

    Args:
        z, w: ``[b, n]`` detached.
        entropic: pool by log-sum-exp (Kullback-Leibler projection) and not by mean (Euclidean).

    Returns:
        ``[b, n]`` int64: the first index of each element's block. The work is done on the CPU.

    Example:
        >>> pool(torch.tensor([[3.0, 1.0, 5.0]]), torch.zeros(1, 3)).tolist()
        [[0, 0, 2]]
    """
    start = torch.empty(z.shape, dtype=torch.int64)
    arrays = [t.detach().to("cpu", torch.float64).contiguous().numpy() for t in (z, w)]
    _loops()[int(entropic)](*arrays, start.numpy())
    return start.to(z.device)


def block_means(v: Tensor, start: Tensor) -> Tensor:
    """Return ``v [b, n]`` with every element replaced by the mean of its block: a symmetric projection.

    Example:
        >>> block_means(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 2]])).tolist()
        [[2.0, 2.0, 5.0]]
    """
    if v.device.type == "cpu" and compiled() is not None:
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        _loops()[2](v.contiguous().numpy(), start.contiguous().numpy(), out.numpy())
        return out
    total = torch.zeros_like(v).scatter_add(-1, start, v)
    count = torch.zeros_like(v).scatter_add(-1, start, torch.ones_like(v))
    return (total / count.clamp(min=1)).gather(-1, start)


@cache
def _loops() -> tuple[Callable[..., Any], ...]:
    """Return the loops, compiled where numba is installed."""
    jit = compiled() or (lambda function: function)
    return jit(_pool_means), jit(_pool_entropic), jit(_means)


def _pool_means(z: Any, w: Any, start: Any) -> None:
    b, n = z.shape
    first, mean_z, mean_w = np.empty(n + 1, np.int64), np.empty(n), np.empty(n)
    for k in range(b):
        top = -1
        for i in range(n):
            top += 1
            first[top] = i
            mean_z[top] = z[k, i]
            mean_w[top] = w[k, i]
            # Differences of z against those of w: where z is large, z - w would lose w.
            while top > 0 and mean_z[top - 1] - mean_z[top] > mean_w[top - 1] - mean_w[top]:
                share = (first[top] - first[top - 1]) / (i + 1.0 - first[top - 1])
                mean_z[top - 1] = mean_z[top] + (mean_z[top - 1] - mean_z[top]) * share
                mean_w[top - 1] = mean_w[top] + (mean_w[top - 1] - mean_w[top]) * share
                top -= 1
        end = n
        for block in range(top, -1, -1):
            for i in range(first[block], end):
                start[k, i] = first[block]
            end = first[block]


def _pool_entropic(z: Any, w: Any, start: Any) -> None:
    b, n = z.shape
    first, log_z, log_w = np.empty(n, np.int64), np.empty(n), np.empty(n)
    for k in range(b):
        top = -1
        for i in range(n):
            top += 1
            first[top] = i
            log_z[top] = z[k, i]
            log_w[top] = w[k, i]
            while top > 0 and log_z[top - 1] - log_w[top - 1] > log_z[top] - log_w[top]:
                log_z[top - 1] = np.logaddexp(log_z[top - 1], log_z[top])
                log_w[top - 1] = np.logaddexp(log_w[top - 1], log_w[top])
                top -= 1
        end = n
        for block in range(top, -1, -1):
            for i in range(first[block], end):
                start[k, i] = first[block]
            end = first[block]


def _means(v: Any, start: Any, out: Any) -> None:
    b, n = v.shape
    for k in range(b):
        i = 0
        while i < n:
            end = i
            total = 0.0
            while end < n and start[k, end] == start[k, i]:
                total += v[k, end]
                end += 1
            for j in range(i, end):
                out[k, j] = total / (end - i)
            i = end


@cache
def isotonic() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return soft sorting and ranking of sorted rows and the transpose, one pass each, or ``None`` without numba.

    ``project(o, order, slope, ranks, out, start)``, for the places ``i``: the values ``z - m(z) + m(o)`` with ``z =
    slope i``, or the ranks ``z - m(z) + m(i)`` with ``z = slope o``, sent to their items. ``m`` is the mean over the
    blocks, of which ``start [b, n]`` gets the first places. ``transpose(g, order, start, ranks, unit, out, moment)``:
    ``m(g)`` in ``out`` and ``sum_i i (g - m(g))_i`` in ``moment [b]``; for ranks ``unit (g - m(g))`` of ``g`` by place.

    Example:
        >>> isotonic() is None or len(isotonic())
        2
    """
    jit = compiled()
    if jit is None:
        return None

    @jit
    def project(o: Any, order: Any, slope: Any, ranks: bool, out: Any, start: Any) -> None:
        b, n = o.shape
        first, mean = np.empty(n + 1, np.int64), np.empty(n)
        for k in range(b):
            s = slope[k]
            top = -1
            for i in range(n):
                top += 1
                first[top] = i
                value = np.float64(o[k, i])
                end = i + 1
                while top > 0:
                    left, middle = first[top - 1], first[top]
                    places = 0.5 * (left - end)  # the mean place of the left block less that of the right one
                    distance = mean[top - 1] - value
                    if not (distance * s > places if ranks else places * s > distance):
                        break
                    value += distance * ((middle - left) / (end - left))
                    top -= 1
                mean[top] = value
            first[top + 1] = n
            for block in range(top + 1):
                left, end = first[block], first[block + 1]
                centre = 0.5 * (left + end - 1)
                for i in range(left, end):
                    start[k, i] = left
                    if end - left == 1:
                        if ranks:
                            out[k, order[k, i]] = centre
                        else:
                            out[k, i] = o[k, i]
                    elif ranks:
                        out[k, order[k, i]] = (np.float64(o[k, i]) - mean[block]) * s + centre
                    else:
                        out[k, i] = (i - centre) * s + mean[block]

    @jit
    def transpose(g: Any, order: Any, start: Any, ranks: bool, unit: float, out: Any, moment: Any) -> None:
        b, n = g.shape
        for k in range(b):
            left = 0
            product = 0.0
            while left < n:
                end = left
                total = 0.0
                while end < n and start[k, end] == left:
                    total += g[k, order[k, end]] if ranks else g[k, end]
                    end += 1
                mean = total / (end - left)
                for i in range(left, end):
                    if ranks:
                        out[k, i] = unit * (g[k, order[k, i]] - mean) if end - left > 1 else 0.0
                    else:
                        out[k, i] = mean
                        product += i * (g[k, i] - mean)
                left = end
            moment[k] = product

    return project, transpose
