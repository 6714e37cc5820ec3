"""Rows of alpha-entmax (sparsemax is alpha = 2), compiled: a few passes over the row instead of a sort.

The readable twin is ``pullback.discrete.sparse``'s ``method="sort"`` and ``"bisection"``; the tests hold them equal.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["entmax_gradient_rows", "entmax_rows", "normmax_rows"]


@numba.njit(cache=True, nogil=True, fastmath=False)
def _threshold(active: Any, place: Any, count: int, power: float) -> tuple[float, int]:
    """Solve ``sum_i max(active_i - t, 0)^power = 1`` for ``t`` in ``[-1, 0)``, where the largest entry is 0.

    For ``power >= 1`` the norm ``(sum ...)^(1 / power)`` is convex, falls, and is nearly straight, so Newton's method
    on it from the left end rises to the solution without overshooting, in a few steps; for ``power < 1`` bisection. The
    solution of the next whole power, whose terms are products, is no larger: from there powers begin.

    Returns ``t`` and how many entries can be above it: these, and their places, are moved to the front.
    """
    low = -1.0
    if power < 1.0:
        high = 0.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            total = 0.0
            for i in range(count):
                if active[i] > middle:
                    total += (active[i] - middle) ** power
            if total >= 1.0:
                low = middle
            else:
                high = middle
        return 0.5 * (low + high), count
    if power <= 16.0:
        whole = int(np.ceil(power))
        enough = 1e-15 if whole == power else 1e-2
        for _ in range(200):
            total = 0.0
            slope = 0.0
            kept = 0
            for i in range(count):
                value, at = active[i], place[i]
                active[kept], place[kept] = value, at
                gap = value - low
                if gap > 0.0:
                    kept += 1
                    term = 1.0
                    for _ in range(whole - 1):
                        term *= gap
                    total += term * gap
                    slope += term
            count = kept
            step = (total - total ** (1.0 - 1.0 / whole)) / slope
            if step <= enough * -low:
                break
            low += step
        if whole == power:
            return low, count
    for _ in range(200):
        total = 0.0
        slope = 0.0
        for i in range(count):
            gap = active[i] - low
            if gap > 0.0:
                term = gap ** (power - 1.0)
                total += term * gap
                slope += term
        # The norm less 1 over its slope, multiplied by total^(1 - 1 / power).
        step = (total - total ** (1.0 - 1.0 / power)) / slope
        if step <= 1e-15:
            break
        low += step
        if power >= 2.0 and step <= -1e-9 * low:
            break  # the norm has a second derivative: what is left is of the order of the square of the step
    return low, count


@numba.njit(cache=True, nogil=True, fastmath=False)
def _shift(active: Any, count: int, power: float) -> float:
    """Solve ``sum_i (1 + active_i + s)^-power = 1`` for ``s >= 0``, where all are >= 0 and the least is 0.

    The mean ``(sum ...)^(-1 / power)`` is concave and rises: Newton's method from 0 does not overshoot.
    """
    low = 0.0
    for _ in range(200):
        total = 0.0
        slope = 0.0
        for i in range(count):
            log = np.log1p(active[i] + low)
            term = np.exp(-power * log)
            total += term
            slope += term / (1.0 + active[i] + low)
        step = total * (total ** (1.0 / power) - 1.0) / slope
        if step <= 1e-16 * (1.0 + low):
            return low
        low += step
    return low


@numba.njit(cache=True, nogil=True, fastmath=False)
def _heavy(row: Any, top: float, scale: float, active: Any, result: Any) -> None:
    """Write alpha-entmax of a row for alpha < 1, where nothing but ``-inf`` gets 0."""
    n = row.shape[0]
    for i in range(n):
        active[i] = scale * (np.float64(row[i]) - np.float64(top))
    power = -1.0 / scale
    shift = _shift(active, n, power)
    total = 0.0
    for i in range(n):
        active[i] = np.exp(-power * np.log1p(active[i] + shift))
        total += active[i]
    for i in range(n):
        result[i] = active[i] / total


@numba.njit(cache=True, nogil=True, fastmath=False)
def entmax_rows(x: Any, alphas: Any, out: Any) -> None:
    """Write alpha-entmax of every row of ``x [rows, n]`` to ``out``, with ``alphas [rows]`` other than 1.

    A row without a finite maximum becomes NaN.
    """
    rows, n = x.shape
    active = np.empty(n, np.float64)
    place = np.empty(n, np.int64)
    for r in range(rows):
        row, result = x[r], out[r]
        scale = alphas[r] - 1.0
        top = -np.inf
        for i in range(n):
            if not row[i] <= top:
                top = row[i]
                if np.isnan(top):
                    break
        if not np.isfinite(top) or scale == 0.0 or np.isnan(scale):
            for i in range(n):
                result[i] = np.nan
            continue
        if scale < 0.0:
            _heavy(row, top, scale, active, result)
            continue
        power = 1.0 / scale
        count = 0
        for i in range(n):
            result[i] = 0.0
            # Differences, as 1 may be less than a unit of rounding of the entries themselves.
            below = scale * (np.float64(row[i]) - np.float64(top))
            active[count] = below
            place[count] = i
            count += below > -1.0  # the threshold is at least -1: at or below it the probability is 0
        t, count = _threshold(active, place, count, power)
        for k in range(count):
            gap = active[k] - t
            if gap > 0.0:
                result[place[k]] = gap if power == 1.0 else (gap * gap if power == 2.0 else gap**power)


@numba.njit(cache=True, nogil=True, fastmath=False)
def entmax_gradient_rows(p: Any, g: Any, alphas: Any, largest: float, to_x: Any, to_alpha: Any) -> None:
    """Write the gradients of ``sum(g * p)`` in the scores ``[rows, n]`` and in every row's alpha ``[rows]``.

    ``largest`` bounds the weights ``p^(2 - alpha)``, which overflow for alphas of hundreds.
    """
    rows, n = p.shape
    for r in range(rows):
        gap = alphas[r] - 1.0
        weights = 0.0
        weighted = 0.0
        entropy = 0.0
        along_entropy = 0.0
        along = 0.0
        for i in range(n):
            value = np.float64(p[r, i])
            weight = 0.0
            if value > 0.0:
                log = np.log(value)
                weight = min(np.exp((1.0 - gap) * log), largest) if gap != 1.0 else 1.0
                entropy -= value * log
                along_entropy -= g[r, i] * value * log
                along += g[r, i] * value
                weights += weight
                weighted += weight * g[r, i]
            to_x[r, i] = weight
        mean = weighted / weights if weights > 0.0 else 0.0
        for i in range(n):
            to_x[r, i] = to_x[r, i] * (g[r, i] - mean)
        to_alpha[r] = (along_entropy - mean * entropy) / gap + (along - mean) / (gap * gap)


@numba.njit(cache=True, nogil=True, fastmath=False)
def normmax_rows(x: Any, alpha: float, out: Any) -> None:
    """Write alpha-normmax of every row of ``x [rows, n]`` to ``out``; a row without a finite maximum becomes NaN."""
    rows, n = x.shape
    power = alpha / (alpha - 1.0)
    active = np.empty(n, np.float64)
    place = np.empty(n, np.int64)
    for r in range(rows):
        row, result = x[r], out[r]
        top = -np.inf
        for i in range(n):
            if not row[i] <= top:
                top = row[i]
                if np.isnan(top):
                    break
        count = 0
        for i in range(n):
            result[i] = 0.0 if np.isfinite(top) else np.nan
            active[count] = np.float64(row[i]) - np.float64(top)
            place[count] = i
            count += active[count] > -1.0
        if not np.isfinite(top):
            continue
        t, count = _threshold(active, place, count, power)
        total = 0.0
        for k in range(count):
            gap = active[k] - t
            active[k] = gap ** (power - 1.0) if gap > 0.0 else 0.0
            total += active[k]
        for k in range(count):
            result[place[k]] = active[k] / total
