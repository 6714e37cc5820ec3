"""The bottleneck matching of two persistence diagrams: paths of least largest cost, grown one bar at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled

__all__ = ["bottleneck"]


def bottleneck(x: np.ndarray, y: np.ndarray) -> tuple[float, int, int]:
    r"""Return the largest cost of the best matching of two diagrams with the diagonal, and which pair has it.

    At the bound ``t`` there is a matching exactly if one matching serves all bars of ``x`` (each with a bar of ``y`` of
    its own or, if it is short, with the diagonal) and one serves all of ``y``: two matchings of a bipartite graph, one
    covering a part of the left side and one of the right, make one that covers both (Mendelsohn, Dulmage). So each side
    is solved by itself, bar after bar along the alternating path whose largest cost is least; no table of costs is
    kept, and no costs are sorted.

    Args:
        x, y: ``[m, 2]`` and ``[k, 2]`` births and deaths, all finite, of one dtype.

    Returns:
        ``t`` and the places ``(i, j)`` of its bars in ``x`` and ``y``; -1 in the place of the diagonal. Without bars
        ``(0.0, -1, -1)``.

    Example:
        >>> bottleneck(np.array([[0.0, 4.0], [1.0, 2.0]]), np.array([[0.0, 5.0]]))
        (1.0, 0, 0)

    References:
        Mendelsohn, Dulmage (1958), Some generalizations of the problem of distinct representatives; Efrat, Itai, Katz
        (2001), Geometry helps in bottleneck matching.
    """
    run = _loop()
    orders = [side[:, 0].argsort(kind="stable") for side in (x, y)]
    bars = [np.ascontiguousarray(side[order].T) for side, order in zip((x, y), orders, strict=True)]
    one, other = run(*bars), run(*bars[::-1])
    t, *places = one if one[0] >= other[0] else (other[0], other[2], other[1])
    i, j = (int(order[at]) if at >= 0 else -1 for order, at in zip(orders, places, strict=True))
    return float(t), i, j


@cache
def _loop() -> Callable[..., Any]:
    return (compiled() or (lambda function: function))(_serve)


def _serve(x: Any, y: Any) -> tuple[Any, int, int]:
    """Match every bar of ``x`` with another one of ``y`` or the diagonal; the bars of ``y`` may be left over.

    Both are sorted by birth, so that the partners within a bound are neighbours of a bar's own place in the other.
    """
    m, k = x.shape[1], y.shape[1]
    alone, place = 0.5 * (x[1] - x[0]), np.searchsorted(y[0], x[0])
    bound, at, to = alone.dtype.type(0), -1, -1
    owner, partner_of = np.full(k, -1), np.full(m, -1)
    reached_from, queue, seen = np.empty(k, np.int64), np.empty(m, np.int64), np.zeros(k, np.bool_)
    for bounding in (True, False):  # at first: no bar costs less than its nearest partner
        for start in range(m):
            if alone[start] <= bound:
                continue
            queue[0] = start
            seen[:] = False
            head, tail, short, column = (1 if bounding else 0), 1, -1, -1
            while short < 0 and column < 0:
                if head == tail:  # none is left within the bound: raise it to the least cost that leads on
                    least, one, other = alone.dtype.type(np.inf), -1, -1
                    for row in queue[:tail]:
                        if alone[row] < least:
                            least, one, other = alone[row], row, -1
                        for step in (-1, 1):
                            j = place[row] + min(step, 0)
                            while 0 <= j < k and abs(x[0, row] - y[0, j]) < least:
                                cost = max(abs(x[0, row] - y[0, j]), abs(x[1, row] - y[1, j]))
                                if cost < least and not seen[j]:
                                    least, one, other = cost, row, j
                                j += step
                    if least > bound:
                        bound, at, to = least, one, other
                    if bounding:
                        break
                    head = 0
                row = queue[head]
                head += 1
                if alone[row] <= bound:
                    short = row
                    break
                for step in (-1, 1):
                    j = place[row] + min(step, 0)
                    while column < 0 and 0 <= j < k and abs(x[0, row] - y[0, j]) <= bound:
                        if not seen[j] and abs(x[1, row] - y[1, j]) <= bound:
                            seen[j], reached_from[j] = True, row
                            if owner[j] < 0:
                                column = j
                            else:
                                queue[tail] = owner[j]
                                tail += 1
                        j += step
            if short >= 0:  # it leaves its partner to the others
                column, partner_of[short] = partner_of[short], -1
            while column >= 0:  # along the path each takes the partner by which it was reached
                row = reached_from[column]
                owner[column] = row
                column, partner_of[row] = partner_of[row], column
    return bound, at, to
