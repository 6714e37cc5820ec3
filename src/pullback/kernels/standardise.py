"""The scaled points ``y = (o - o_1) / (temperature * std(o))`` of sorted rows and their derivative, in one pass each.

Compiled only: it exists to save the dozen small operations that the plain form in ``discrete.sorted_input`` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from pullback.kernels.compiled import compiled

__all__ = ["standardise"]


@cache
def standardise() -> tuple[Callable[..., Any], ...] | None:
    """Return ``points(x, order, temperature, relative, o, y, spread)``, its transpose and ``to_items(by_place, order,
    out)``, or ``None`` without numba.

    ``points`` fills ``o`` and ``y [b, n]`` and ``spread [b]`` and returns whether all rows are finite, and sums of
    their entries and points too; if not, what is filled is of no use. ``order [b, n]`` is an ascending order of the
    items, or -1 to have it found here. The items of a tie are brought into their own order, so that any sort becomes a
    stable one.
    ``points_transposed(o, order, y, spread, grad_y, grad_spread, temperature, relative, grad_o, grad_x)`` adds to
    ``grad_o`` what comes back through ``y`` and ``spread`` and writes the sum to the items ``order``.

    Example:
        >>> kernels = standardise()
        >>> kernels is None or len(kernels)
        3
    """
    jit = compiled()
    if jit is None:
        return None
    import numpy as np

    @jit
    def points(x: Any, order: Any, temperature: float, relative: bool, o: Any, y: Any, spread: Any) -> bool:
        def insert(x: Any, order: Any) -> None:
            """Sort one short row; equal items keep their order."""
            for i in range(x.shape[0]):
                at = i
                while at > 0 and x[order[at - 1]] > x[i]:
                    order[at] = order[at - 1]
                    at -= 1
                order[at] = i

        b, n = x.shape
        room = (3e38 if x.itemsize == 4 else 1e308) / (8 * n)
        for k in range(b):
            for i in range(n):
                if not np.isfinite(x[k, i]):
                    return False
            found = order[k, 0] < 0
            if found:
                insert(x[k], order[k])
            for i in range(n):
                o[k, i] = x[k, order[k, i]]
            first = 0
            for i in range(1, n + 1):
                if i == n or o[k, i] != o[k, first]:
                    if i - first > 1 and not found:
                        order[k, first:i] = np.sort(order[k, first:i])
                    first = i
            low, mean, square = float(o[k, 0]), 0.0, 0.0
            unit = float(o[k, n - 1]) - low
            s = 1.0
            if relative and unit > 0.0:
                for i in range(n):
                    mean += (o[k, i] - low) / unit
                mean /= n
                for i in range(n):
                    d = (o[k, i] - low) / unit - mean
                    square += d * d
                s = np.sqrt(square / n) * unit
            spread[k] = s
            for i in range(n):
                y[k, i] = (o[k, i] - low) / s / temperature
            # Sums are formed in the dtype of the points.
            if not max(abs(low), abs(float(o[k, n - 1])), float(y[k, n - 1])) < room:
                return False
        return True

    @jit
    def points_transposed(
        o: Any,
        order: Any,
        y: Any,
        spread: Any,
        grad_y: Any,
        grad_spread: Any,
        temperature: float,
        relative: bool,
        grad_o: Any,
        grad_x: Any,
    ) -> None:
        b, n = o.shape
        for k in range(b):
            s = spread[k]
            low = float(o[k, 0])
            share, mean = 0.0, 0.0
            if relative and o[k, n - 1] > o[k, 0]:
                share = grad_spread[k]
                for i in range(n):
                    share -= grad_y[k, i] * y[k, i] / s
                    mean += (o[k, i] - low) / n
            for i in range(n):
                back = grad_y[k, i] / s / temperature + share * (o[k, i] - low - mean) / (n * s)
                grad_x[k, order[k, i]] = grad_o[k, i] + back

    @jit
    def to_items(by_place: Any, order: Any, out: Any) -> None:
        b, n = order.shape
        for k in range(b):
            for i in range(n):
                out[k, order[k, i]] = by_place[k, i]

    return points, points_transposed, to_items
