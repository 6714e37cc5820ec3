"""NeuralSort's weighted means of sorted points, without its matrix.

Row i (place, ascending) has the logits ``(2i + 1 - n) y_j - sum_k |y_j - y_k|`` over items j. For sorted points they
fall from j = i outwards: between the items m and m + 1 places away by ``(2m + 1)`` times the gap that is crossed. So a
row is a
band: the walk stops where the weight is below rounding, O(n sqrt(n)) in all for evenly spread points, O(n) memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.compiled import compiled, over_rows

__all__ = [
    "gradient_rows",
    "neuralsort_logits",
    "neuralsort_matrix",
    "neuralsort_mean",
    "neuralsort_mean_gradient",
    "neuralsort_mean_plain",
    "neuralsort_transposed",
    "weighted",
    "weighted_rows",
]

_CUT = {8: 1e-22, 4: 1e-11}
"""Least weight relative to the largest, by the bytes of a number; n such stay below the rounding of the sum."""


def distance_sums(y: Tensor) -> Tensor:
    """Return ``sum_k |y_j - y_k|`` for ascending ``y [*batch, n]`` by prefix sums (linear in y).

    Example:
        >>> distance_sums(torch.tensor([0.0, 1.0, 3.0])).tolist()
        [4.0, 3.0, 5.0]
    """
    n = y.shape[-1]
    place = torch.arange(n, dtype=y.dtype, device=y.device)
    prefix = y.cumsum(-1)
    return y * (2 * place + 1 - n) - 2 * prefix + y + y.sum(-1, keepdim=True)


def neuralsort_matrix(y: Tensor, rows: slice = slice(None)) -> Tensor:
    """Return ``[*batch, rows, n]``: the softmax rows for ascending ``y [*batch, n]``, by the definition.

    Example:
        >>> neuralsort_matrix(torch.tensor([0.0, 0.0])).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    return torch.softmax(neuralsort_logits(y, rows), dim=-1)


def neuralsort_logits(y: Tensor, rows: slice = slice(None)) -> Tensor:
    """Return ``[*batch, rows, n]``: ``(2i + 1 - n) y_j - sum_k |y_j - y_k|`` for ascending ``y [*batch, n]``.

    Example:
        >>> neuralsort_logits(torch.tensor([0.0, 1.0])).tolist()
        [[-1.0, -2.0], [-1.0, 0.0]]
    """
    n = y.shape[-1]
    place = torch.arange(n, dtype=y.dtype, device=y.device)[rows]
    return (2 * place + 1 - n).unsqueeze(-1) * y.unsqueeze(-2) - distance_sums(y).unsqueeze(-2)


def neuralsort_mean(y: Tensor, v: Tensor) -> Tensor:
    """Return ``[b, c, n]``: row i is the mean of the channels ``v [b, c, n]`` under the weights of place i.

    Example:
        >>> neuralsort_mean(torch.zeros(1, 2), torch.tensor([[[1.0, 3.0]]])).tolist()
        [[[2.0, 2.0]]]
    """
    if y.device.type != "cpu" or _bands() is None:
        return neuralsort_mean_plain(y, v)
    return weighted(y, v)[0]


def weighted(y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean ``[b, c, n]`` and the sums of weights ``[b, n]`` relative to the largest; compiled only.

    Example:
        >>> weighted(torch.zeros(1, 2), torch.ones(1, 1, 2))[1].tolist() if _bands() else [[2.0, 2.0]]
        [[2.0, 2.0]]
    """
    out, totals = weighted_rows(y.contiguous().numpy(force=True), v.contiguous().numpy(force=True))
    return torch.from_numpy(out), torch.from_numpy(totals)


def weighted_rows(y: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what :func:`weighted` returns, of arrays and as arrays.

    Example:
        >>> weighted_rows(np.zeros((1, 2)), np.ones((1, 1, 2)))[1].tolist() if _bands() else [[2.0, 2.0]]
        [[2.0, 2.0]]
    """
    out, totals = np.empty(v.shape, v.dtype), np.empty(y.shape)
    over_rows(_bands()[0], y, v, _CUT[y.itemsize], out, totals)  # type: ignore[index]
    return out, totals


def neuralsort_mean_plain(y: Tensor, v: Tensor) -> Tensor:
    """Return the same as :func:`neuralsort_mean`, all places walking outwards together: one step a place of the band.

    Example:
        >>> neuralsort_mean_plain(torch.zeros(1, 2), torch.tensor([[[1.0, 3.0]]])).tolist()
        [[[2.0, 2.0]]]
    """
    total, sums = torch.ones_like(y, dtype=torch.float64), v.to(torch.float64, copy=True)
    for weight, here, there in _walk(y):
        total = _add(total, here, weight)
        sums = _add(sums, here, weight.unsqueeze(1) * v[..., there])
    return (sums / total.unsqueeze(1)).to(v.dtype)


def _walk(y: Tensor) -> Iterator[tuple[Tensor, slice, slice]]:
    """Yield for every distance, upwards and downwards, the weights ``[b, n - distance]`` of the places ``there`` from
    the places ``here``, relative to a place's own, until all are below rounding.
    """
    n = y.shape[-1]
    gap = (y[:, 1:] - y[:, :-1]).double()
    for up in (True, False):
        exponent = torch.zeros_like(y, dtype=torch.float64)
        for distance in range(1, n):
            # The logit falls by (2 m + 1) times the gap that is crossed at m places away.
            crossed = (2 * distance - 1) * (gap[:, distance - 1 :] if up else gap[:, : n - distance])
            exponent = (exponent[:, : n - distance] if up else exponent[:, 1:]) - crossed
            weight = exponent.exp()
            if not bool((weight >= _CUT[y.itemsize]).any()):
                break
            low, high = slice(0, n - distance), slice(distance, n)
            yield (weight, low, high) if up else (weight, high, low)


def _add(total: Tensor, here: slice, part: Tensor) -> Tensor:
    total[..., here] += part
    return total


def neuralsort_mean_gradient(
    y: Tensor, v: Tensor, g: Tensor, kept: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``sum(g * neuralsort_mean(y, v))`` in ``y`` and ``v``, the weights computed again.

    Args:
        y, v: as in the mean.
        g: ``[b, c, n]`` the cotangent.
        kept: what :func:`weighted` returned, to save a third of the work.

    Example:
        >>> y, v = torch.zeros(1, 2), torch.tensor([[[1.0, 3.0]]])
        >>> neuralsort_mean_gradient(y, v, torch.ones(1, 1, 2))[1].tolist()
        [[[1.0, 1.0]]]
    """
    if y.device.type != "cpu" or _bands() is None:
        return _gradient_plain(y, v, g)
    arrays = [t.contiguous().numpy(force=True) for t in (y, v, g, *(kept or weighted(y, v)))]
    grad_y, grad_v = gradient_rows(*arrays)
    return torch.from_numpy(grad_y), torch.from_numpy(grad_v)


def gradient_rows(
    y: np.ndarray, v: np.ndarray, g: np.ndarray, out: np.ndarray, totals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what :func:`neuralsort_mean_gradient` returns, of arrays without gaps and as arrays.

    Example:
        >>> y, v = np.zeros((1, 2)), np.array([[[1.0, 3.0]]])
        >>> gradient_rows(y, v, np.ones((1, 1, 2)), *weighted_rows(y, v))[1].tolist() if _bands() else [[[1.0, 1.0]]]
        [[[1.0, 1.0]]]
    """
    grad_y, grad_v = np.zeros(y.shape, y.dtype), np.zeros(v.shape, v.dtype)
    over_rows(_bands()[1], y, v, g, out, totals, _CUT[y.itemsize], grad_y, grad_v)  # type: ignore[index]
    return grad_y, grad_v


def neuralsort_transposed(y: Tensor, v: Tensor) -> Tensor:
    """Return ``[b, c, n]``: what the weights of all places send of ``v [b, c, n]`` to each item, ``P^T v``.

    Example:
        >>> neuralsort_transposed(torch.zeros(1, 2), torch.tensor([[[1.0, 3.0]]])).tolist()
        [[[2.0, 2.0]]]
    """
    return neuralsort_mean_gradient(y, torch.zeros_like(v), v)[1]


def distance_sums_transposed(g: Tensor) -> Tensor:
    """Return the transpose of :func:`distance_sums` applied to ``g [*batch, n]``.

    Example:
        >>> distance_sums_transposed(torch.tensor([1.0, 0.0, 0.0])).tolist()
        [-2.0, 1.0, 1.0]
    """
    n = g.shape[-1]
    place = torch.arange(n, dtype=g.dtype, device=g.device)
    total = g.sum(-1, keepdim=True)
    return g * (2 * place + 2 - n) - 2 * (total - g.cumsum(-1) + g) + total


def _gradient_plain(y: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by the same walk: a logit's share goes to its item's logit and away from the place's own."""
    n = y.shape[-1]
    total, sums = torch.ones_like(y, dtype=torch.float64), v.to(torch.float64, copy=True)
    for weight, here, there in _walk(y):
        total = _add(total, here, weight)
        sums = _add(sums, here, weight.unsqueeze(1) * v[..., there])
    g = g.double()
    centre = (g * sums).sum(1) / total  # sum of g times the mean
    grad_v = g / total.unsqueeze(1)
    place = torch.arange(n, dtype=torch.float64, device=y.device)
    own = ((g * v).sum(1) - centre) / total
    slope, into = (2 * place + 1 - n) * own, own.clone()
    for weight, here, there in _walk(y):
        p = weight / total[:, here]
        grad_v = _add(grad_v, there, g[..., here] * p.unsqueeze(1))
        share = p * ((g[..., here] * v[..., there]).sum(1) - centre[:, here])
        slope = _add(slope, there, (2 * place[here] + 1 - n) * share)
        into = _add(into, there, share)
    return (slope - distance_sums_transposed(into)).to(y.dtype), grad_v.to(v.dtype)


@cache
def _bands() -> tuple[Callable[..., Any], ...] | None:
    """Compile the band walks, or return ``None`` where numba is not installed."""
    jit = compiled()
    if jit is None:
        return None

    @jit
    def mean(y: Any, v: Any, cut: float, out: Any, totals: Any) -> None:
        def side(base: Any, factor: Any, step: int, cut: float, v: Any, total: Any, sums: Any) -> None:
            """Add the weights above (step 1) or below (step -1) each place to ``total``, times ``v`` to ``sums``.

            Places are visited so that the distance to every gap grows: the factor ``exp(-(2m + 1) gap)`` of a gap is
            then updated by one multiplication, and the band of the next place ends no later than this one's.
            """
            c, n = v.shape
            for j in range(n - 1):
                factor[j] = base[j]
            for at in range(n):
                i = n - 1 - at if step == 1 else at
                weight = 1.0
                j = i
                while 0 <= j + step < n:
                    g = j if step == 1 else j - 1
                    weight *= factor[g]
                    if weight < cut:
                        break
                    factor[g] *= base[g] * base[g]
                    j += step
                    total[i] += weight
                    for a in range(c):
                        sums[a, i] += weight * v[a, j]

        b, c, n = v.shape
        base, factor, total, sums = np.empty(n), np.empty(n), np.empty(n), np.empty((c, n))
        for k in range(b):
            total[:] = 1.0
            sums[:] = v[k]
            for j in range(n - 1):
                base[j] = np.exp(np.float64(y[k, j]) - np.float64(y[k, j + 1]))
            side(base, factor, 1, cut, v[k], total, sums)
            side(base, factor, -1, cut, v[k], total, sums)
            totals[k] = total
            for a in range(c):
                for i in range(n):
                    out[k, a, i] = sums[a, i] / total[i]

    @jit
    def mean_gradient(y: Any, v: Any, g: Any, out: Any, totals: Any, cut: float, grad_y: Any, grad_v: Any) -> None:
        def side_gradient(
            base: Any,
            factor: Any,
            back: Any,
            step: int,
            cut: float,
            v: Any,
            g: Any,
            total: Any,
            centre: Any,
            into: Any,
            grad_gap: Any,
        ) -> None:
            """Add what the weights above or below each place pass back to the channels and to the gaps."""
            c, n = v.shape
            for j in range(n - 1):
                factor[j] = base[j]
            for at in range(n):
                i = n - 1 - at if step == 1 else at
                weight = 1.0 / total[i]
                least = cut * weight
                j = i
                m = 0
                while 0 <= j + step < n:
                    k = j if step == 1 else j - 1
                    weight *= factor[k]
                    if weight < least:
                        break
                    factor[k] *= base[k] * base[k]
                    j += step
                    score = 0.0
                    for a in range(c):
                        score += g[a, i] * v[a, j]
                        into[a, j] += g[a, i] * weight
                    back[m] = weight * (score - centre[i])
                    m += 1
                # The logit of an item falls by (2m + 1) times every gap between it and i: sum from the far end.
                beyond = 0.0
                for d in range(m - 1, -1, -1):
                    beyond += back[d]
                    k = i + d if step == 1 else i - 1 - d
                    grad_gap[k] -= (2 * d + 1) * beyond

        b, c, n = v.shape
        base, factor, back, centre = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
        into, grad_gap = np.empty((c, n)), np.empty(n)
        for k in range(b):
            total = totals[k]
            grad_gap[:] = 0.0
            for j in range(n - 1):
                base[j] = np.exp(np.float64(y[k, j]) - np.float64(y[k, j + 1]))
            for i in range(n):
                centre[i] = 0.0
                for a in range(c):
                    centre[i] += g[k, a, i] * out[k, a, i]
                    into[a, i] = g[k, a, i] / total[i]
            side_gradient(base, factor, back, 1, cut, v[k], g[k], total, centre, into, grad_gap)
            side_gradient(base, factor, back, -1, cut, v[k], g[k], total, centre, into, grad_gap)
            for i in range(n):
                if i > 0:
                    grad_y[k, i] += grad_gap[i - 1]
                if i < n - 1:
                    grad_y[k, i] -= grad_gap[i]
                for a in range(c):
                    grad_v[k, a, i] = into[a, i]

    return mean, mean_gradient
