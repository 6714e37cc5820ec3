"""The perfect matching whose largest cost is least: thresholds by bisection, matchings by augmenting paths."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled

__all__ = ["bottleneck"]


def bottleneck(costs: np.ndarray) -> float:
    """Return the least ``t`` for which a perfect matching has no cost above ``t``.

    Args:
        costs: ``[n, n]``, ``n >= 1``.

    Example:
        >>> float(bottleneck(np.array([[1.0, 5.0], [2.0, 4.0]])))
        4.0
    """
    thresholds = np.unique(costs)
    first = np.searchsorted(thresholds, max(costs.min(0).max(), costs.min(1).max()))
    result: float = thresholds[_loop()(costs, thresholds, first)]
    return result


@cache
def _loop() -> Callable[..., Any]:
    return (compiled() or (lambda function: function))(_bisect)


def _bisect(costs: Any, thresholds: Any, low: int) -> int:
    n, high = costs.shape[0], thresholds.shape[0] - 1
    of_row, of_column = np.empty(n, np.int64), np.empty(n, np.int64)
    parent, queue = np.empty(n, np.int64), np.empty(n, np.int64)
    while low < high:
        t = thresholds[(low + high) // 2]
        of_row[:] = -1
        of_column[:] = -1
        whole = True
        for start in range(n):
            parent[:] = -1
            queue[0] = start
            head, tail, end = 0, 1, -1
            while head < tail and end < 0:
                row = queue[head]
                head += 1
                for column in range(n):
                    if parent[column] < 0 and costs[row, column] <= t:
                        parent[column] = row
                        if of_column[column] < 0:
                            end = column
                            break
                        queue[tail] = of_column[column]
                        tail += 1
            if end < 0:
                whole = False
                break
            while end >= 0:
                row = parent[end]
                of_column[end] = row
                of_row[row], end = end, of_row[row]
        if whole:
            high = (low + high) // 2
        else:
            low = (low + high) // 2 + 1
    return low
