"""Rows of alpha-entmax (sparsemax is alpha = 2), compiled: a few passes over the row instead of a sort.

The readable twin is ``pullback.discrete.sparse``'s ``method="sort"`` and ``"bisection"``; the tests hold them equal.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["entmax_rows"]


@numba.njit(cache=True, nogil=True, fastmath=False)
def _threshold(active: Any, count: int, power: float) -> float:
    """Solve ``sum_i max(active_i - t, 0)^power = 1`` for ``t`` in ``[-1, 0)``, where the largest entry is 0.

    For ``power >= 1`` the left side is convex and falls, so Newton's method from the left end rises to the solution
    without overshooting (for ``power = 1`` in finitely many steps); for ``power < 1`` bisection.
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
        return 0.5 * (low + high)
    for _ in range(200):
        total = -1.0
        slope = 0.0
        if power == 1.0:
            for i in range(count):
                if active[i] > low:
                    total += active[i] - low
                    slope += 1.0
        elif power == 2.0:
            for i in range(count):
                gap = active[i] - low
                if gap > 0.0:
                    total += gap * gap
                    slope += 2.0 * gap
        else:
            for i in range(count):
                gap = active[i] - low
                if gap > 0.0:
                    term = gap ** (power - 1.0)
                    total += term * gap
                    slope += power * term
        step = total / slope
        if step <= 1e-15:
            return low
        low += step
    return low


@numba.njit(cache=True, nogil=True, fastmath=False)
def entmax_rows(x: Any, alpha: float, out: Any) -> None:
    """Write alpha-entmax of every row of ``x`` ``[rows, n]`` to ``out``; a row without a finite maximum becomes NaN."""
    rows, n = x.shape
    scale = alpha - 1.0
    power = 1.0 / scale
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
        if not np.isfinite(top):
            for i in range(n):
                result[i] = np.nan
            continue
        count = 0
        for i in range(n):
            result[i] = 0.0
            # Differences, as 1 may be less than a unit of rounding of the entries themselves.
            below = scale * (np.float64(row[i]) - np.float64(top))
            if below > -1.0:  # the threshold is at least -1: at or below it the probability is 0
                active[count] = below
                place[count] = i
                count += 1
        t = _threshold(active, count, power)
        for k in range(count):
            gap = active[k] - t
            if gap > 0.0:
                result[place[k]] = gap if power == 1.0 else (gap * gap if power == 2.0 else gap**power)
