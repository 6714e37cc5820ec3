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


_COUNTED = 96
"""Up to this size a row is sorted faster by counting, for every entry, those below it than by its digits."""


@cache
def isotonic() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return soft sorting and ranking of rows and their transpose, one pass each, or ``None`` without numba.

    ``project(x, bits, temperature, relative, ranks, order, spread, out)`` fills ``out [b, n]`` and returns whether the
    entries are finite and small enough; if not, what is filled is of no use. With ``o`` the sorted row, ``s`` its
    standard deviation (1 unless ``relative``) and ``u`` that of its places, ``out`` is, for the places ``i``, the
    values ``z - m(z) + m(o)`` with ``z = i s / (temperature u)``, or the ranks ``z - m(z) + m(i)`` with ``z = o u /
    (temperature s)``, sent to their items. ``m`` is the mean over the blocks. ``bits`` is ``x`` read as unsigned
    integers. ``order [b, n]`` int32 gets the item at each place, as ``-1 - item`` where a block begins, and ``spread
    [b]`` gets ``s``.

    ``transpose(g, x, temperature, relative, ranks, order, spread, out, moment)`` fills ``out`` with the gradient in
    ``x`` for the cotangent ``g``, and ``moment [b]`` with that in the logarithm of the temperature, negated.

    Example:
        >>> isotonic() is None or len(isotonic())
        2
    """
    jit = compiled()
    if jit is None:
        return None

    @jit
    def project(
        x: Any,
        bits: Any,
        temperature: float,
        relative: bool,
        ranks: bool,
        order: Any,
        spread: Any,
        out: Any,
    ) -> bool:
        b, n = x.shape
        first, mean = np.empty(n + 1, np.int64), np.empty(n)
        row, o = np.empty(n, x.dtype), np.empty(n, x.dtype)
        item, other = np.empty(n, np.int32), np.empty(n, np.int32)
        counted = n <= _COUNTED
        key, moved = np.empty(0 if counted else n, bits.dtype), np.empty(0 if counted else n, bits.dtype)
        counts = np.empty((x.itemsize, 256), np.int64)
        sign = bits.dtype.type(1) << bits.dtype.type(8 * x.itemsize - 1)
        room = (3e38 if x.itemsize == 4 else 1e308) / (8 * n)
        unit = np.sqrt((n * n - 1) / 12) if relative and n > 1 else 1.0
        for k in range(b):
            for i in range(n):
                row[i] = x[k, i]
            within = True
            for i in range(n):
                within &= abs(row[i]) < room  # false for NaN too
            if not within:
                return False
            if counted:
                for i in range(n):
                    other[i] = 0
                    item[i] = -1
                for j in range(n):
                    value = row[j]
                    for i in range(n):
                        other[i] += np.int32(1) if value < row[i] else np.int32(0)
                for i in range(n - 1, -1, -1):
                    item[other[i]] = i  # of a tie the first item stays
                for i in range(1, n):
                    if item[i] < 0:  # a further one of a tie
                        later = item[i - 1] + 1
                        while row[later] != row[item[i - 1]]:
                            later += 1
                        item[i] = later
            else:  # by the digits of keys that ascend as the numbers do, the lowest first
                counts[:] = 0
                for i in range(n):
                    code = bits[k, i]
                    if code == sign:
                        code = bits.dtype.type(0)  # -0 is 0
                    code = ~code if code & sign else code | sign
                    key[i] = code
                    item[i] = i
                    for digit in range(x.itemsize):
                        counts[digit, (code >> bits.dtype.type(8 * digit)) & bits.dtype.type(255)] += 1
                for digit in range(x.itemsize):
                    shift = bits.dtype.type(8 * digit)
                    if counts[digit, (key[0] >> shift) & bits.dtype.type(255)] == n:
                        continue
                    passed = 0
                    for d in range(256):
                        count = counts[digit, d]
                        counts[digit, d] = passed
                        passed += count
                    for i in range(n):
                        d = (key[i] >> shift) & bits.dtype.type(255)
                        at = counts[digit, d]
                        counts[digit, d] = at + 1
                        moved[at] = key[i]
                        other[at] = item[i]
                    key, moved = moved, key
                    item, other = other, item
            for i in range(n):
                o[i] = row[item[i]]
            low = np.float64(o[0])
            width = np.float64(o[n - 1]) - low
            s = 1.0
            if relative and width > 0.0:
                total, square = 0.0, 0.0
                for i in range(n):
                    total += (o[i] - low) / width
                total /= n
                for i in range(n):
                    d = (o[i] - low) / width - total
                    square += d * d
                s = np.sqrt(square / n) * width
            if not width / s / temperature < room:
                return False
            spread[k] = s
            slope = min(unit / (temperature * s) if ranks else s / (temperature * unit), 1e200)
            top = -1
            for i in range(n):
                top += 1
                first[top] = i
                value = np.float64(o[i])
                end = i + 1
                while top > 0:
                    left, middle = first[top - 1], first[top]
                    places = 0.5 * (left - end)  # the mean place of the left block less that of the right one
                    distance = mean[top - 1] - value
                    if not (distance * slope > places if ranks else places * slope > distance):
                        break
                    value += distance * ((middle - left) / (end - left))
                    top -= 1
                mean[top] = value
            first[top + 1] = n
            for block in range(top + 1):
                left, end = first[block], first[block + 1]
                centre = 0.5 * (left + end - 1)
                for i in range(left, end):
                    order[k, i] = item[i]
                    if end - left == 1:
                        if ranks:
                            out[k, item[i]] = centre
                        else:
                            out[k, i] = o[i]
                    elif ranks:
                        out[k, item[i]] = (np.float64(o[i]) - mean[block]) * slope + centre
                    else:
                        out[k, i] = (i - centre) * slope + mean[block]
                order[k, left] = -1 - item[left]
        return True

    @jit
    def transpose(
        g: Any,
        x: Any,
        temperature: float,
        relative: bool,
        ranks: bool,
        order: Any,
        spread: Any,
        out: Any,
        moment: Any,
    ) -> None:
        b, n = g.shape
        unit = np.sqrt((n * n - 1) / 12) if relative and n > 1 else 1.0
        back, item = np.empty(n), np.empty(n, np.int32)
        for k in range(b):
            s = spread[k]
            centre = 0.0
            for i in range(n):
                at = order[k, i]
                item[i] = at if at >= 0 else -1 - at
            low = np.float64(x[k, item[0]])
            for i in range(n):
                centre += x[k, i] - low
            centre /= n
            left = 0
            product = 0.0
            while left < n:
                end = left + 1
                total = np.float64(g[k, item[left]] if ranks else g[k, left])
                while end < n and order[k, end] >= 0:
                    total += g[k, item[end]] if ranks else g[k, end]
                    end += 1
                if end - left == 1:
                    back[left] = 0.0 if ranks else total
                else:
                    pooled = total / (end - left)
                    for i in range(left, end):
                        if ranks:
                            back[i] = (g[k, item[i]] - pooled) * unit / s / temperature
                            product += back[i] * (x[k, item[i]] - low)
                        else:
                            back[i] = pooled
                            product += i * (g[k, i] - pooled)
                left = end
            if ranks:
                moment[k] = product
                share = -product / s  # the derivative in the spread
            else:
                share = product / (temperature * unit)
                moment[k] = share * s
            if not relative or not np.float64(x[k, item[n - 1]]) - low > 0.0:
                share = 0.0
            share /= n * s
            for i in range(n):
                out[k, item[i]] = back[i]
            for i in range(n):
                out[k, i] += share * (x[k, i] - low - centre)

    return project, transpose
