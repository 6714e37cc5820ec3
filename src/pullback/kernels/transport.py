"""Exact optimal transport: one to one by shortest augmenting paths; any masses by the network simplex, and such paths.

The paths keep potentials with ``u_i + v_j <= c_ij``, equal where something is shipped, so the answer is optimal when it
is complete. A search (Dijkstra's over reduced costs) finds the shortest path from a row with something left to a column
with room, along which goods are moved.

References:
    Crouse (2016), On implementing 2D rectangular assignment algorithms. Ahuja, Magnanti, Orlin (1993), Network flows,
    section 9.7 (successive shortest paths).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled, over_rows
from pullback.kernels.network_simplex import ship_by_simplex

__all__ = ["assign", "assign_plain", "ship", "ship_plain"]


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match every row with a column of its own at the least total cost.

    Args:
        cost: ``[b, n, m]`` float64, ``n <= m``; ``inf`` forbids a pair.

    Returns:
        Columns ``[b, n]`` (int64), potentials ``u [b, n]`` and ``v [b, m]`` (<= 0 where m > n, 0 for columns without a
        row). Columns are -1 in a problem that no matching solves. Loops compiled by numba where it is installed;
        :func:`assign_plain` elsewhere.

    Example:
        >>> assign(np.array([[[4.0, 1.0, 3.5], [2.0, 0.0, 5.0]]]))[0]
        array([[1, 0]])
    """
    loops = _loops()
    if loops is None:
        return assign_plain(cost)
    batch, n, m = cost.shape
    columns, u, v = np.empty((batch, n), np.int64), np.empty((batch, n)), np.empty((batch, m))
    over_rows(loops[0], np.ascontiguousarray(cost), columns, u, v)
    return columns, u, v


def ship(cost: np.ndarray, supply: np.ndarray, demand: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ship all of ``supply`` at the least total cost.

    Args:
        cost: ``[b, n, m]`` float64; ``inf`` forbids a pair.
        supply: ``[b, n]`` >= 0.
        demand: ``[b, m]`` >= 0, of the sum of ``supply`` in each problem, up to rounding.

    Returns:
        Plan ``[b, n, m]``, potentials ``u [b, n]`` and ``v [b, m]``. A plan is NaN in a problem that has no solution.
        Loops compiled by numba where it is installed, shortest paths where the simplex needs a forbidden pair;
        :func:`ship_plain` elsewhere.

    Example:
        >>> ship(np.array([[[0.0, 1.0], [1.0, 5.0]]]), np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]]))[0]
        array([[[0.25, 0.25],
                [0.5 , 0.  ]]])
    """
    loops, found = _loops(), ship_by_simplex(cost, supply, demand)
    if loops is None or found is None:
        return ship_plain(cost, supply, demand)
    plan, u, v, solved = found
    if not solved.all():
        left = [np.ascontiguousarray(x[~solved]) for x in (cost, supply, demand)]
        parts = [np.empty((len(left[0]), *shape)) for shape in (cost.shape[:0:-1], u.shape[1:], v.shape[1:])]
        over_rows(loops[1], *left, *parts)
        plan[~solved], u[~solved], v[~solved] = parts[0].transpose(0, 2, 1), *parts[1:]
    return plan, u, v


def assign_plain(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`assign` with array operations, one column a step."""
    batch, n, m = cost.shape
    columns, u, v = np.full((batch, n), -1), np.zeros((batch, n)), np.zeros((batch, m))
    for c, column, row_price, column_price in zip(cost, columns, u, v, strict=True):
        owner = np.full(m, -1)
        for start in range(n):
            distance, path = np.full(m, np.inf), np.full(m, -1)
            open_, rows = np.ones(m, bool), [start]
            i, low, last = start, 0.0, -1
            while last < 0:
                through = low + (c[i] - row_price[i]) - column_price
                closer = open_ & (through < distance)
                distance[closer], path[closer] = through[closer], i
                still = np.where(open_, distance, np.inf)
                j = int(still.argmin())
                low = still[j]
                if not low < np.inf:
                    break
                open_[j] = False
                if owner[j] < 0:
                    last = j
                else:
                    i = int(owner[j])
                    rows.append(i)
            if last < 0:
                column[:] = -1
                break
            row_price[start] += low
            for i in rows[1:]:
                row_price[i] += low - distance[column[i]]
            column_price[~open_] -= low - distance[~open_]
            while last >= 0:
                i = path[last]
                owner[last] = i
                column[i], last = last, column[i] if i != start else -1
    return columns, u, v


def ship_plain(cost: np.ndarray, supply: np.ndarray, demand: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`ship` with array operations, one column a step."""
    batch, n, m = cost.shape
    plan, u, v = np.zeros((batch, n, m)), np.zeros((batch, n)), np.zeros((batch, m))
    for b in range(batch):
        c, x, row_price, column_price = cost[b], plan[b], u[b], v[b]
        left, room = supply[b].copy(), demand[b].copy()
        crumb = 1e-15 * left.sum()
        row_price[:] = c.min(1, initial=np.inf)
        start = 0
        while start < n:
            if left[start] <= crumb:
                start += 1
                continue
            distance, path = np.full(m, np.inf), np.full(m, -1)
            reached, back = np.full(n, np.inf), np.full(n, -1)  # distances of rows; columns through which they came
            open_, fresh, last, low = np.ones(m, bool), [start], -1, 0.0
            reached[start] = 0.0
            while last < 0:
                for i in fresh:
                    through = low + (c[i] - row_price[i]) - column_price
                    closer = open_ & (through < distance)
                    distance[closer], path[closer] = through[closer], i
                still = np.where(open_, distance, np.inf)
                j = int(still.argmin())
                low = still[j]
                if not low < np.inf:
                    break
                open_[j] = False
                if room[j] > crumb:
                    last = j
                else:
                    fresh = np.flatnonzero((x[:, j] > 0) & np.isinf(reached)).tolist()
                    reached[fresh], back[fresh] = low, j
            if last < 0:
                if left[start] <= 1e-12 * supply[b].sum():  # of sums that differ by rounding
                    start += 1
                    continue
                x[:] = np.nan
                break
            row_price += np.maximum(low - reached, 0)
            column_price[~open_] -= low - distance[~open_]
            moved, j, i = min(left[start], room[last]), last, path[last]
            while i != start:
                j = back[i]
                moved, i = min(moved, x[i, j]), path[j]
            left[start] -= moved
            room[last] -= moved
            j, i = last, path[last]
            x[i, j] += moved
            while i != start:
                j = back[i]
                x[i, j] -= moved
                i = path[j]
                x[i, j] += moved
    return plan, u, v


def _assign(cost: Any, columns: Any, u: Any, v: Any) -> None:
    batch, n, m = cost.shape
    distance, path, owner = np.empty(m), np.empty(m, np.int64), np.empty(m, np.int64)
    waiting, rows = np.empty(m, np.int64), np.empty(n, np.int64)
    for b in range(batch):
        c, column = cost[b], columns[b]
        owner[:] = -1
        column[:] = -1
        v[b, :] = 0.0
        if n == m:  # every column gets a row, so its potential may start anywhere
            for j in range(m):
                lowest = np.inf
                for i in range(n):
                    lowest = min(lowest, c[i, j])
                if lowest < np.inf:
                    v[b, j] = lowest
        for i in range(n):  # a column of reduced cost 0 that nobody has is the row's
            lowest, where = np.inf, -1
            for j in range(m):
                reduced = c[i, j] - v[b, j]
                if reduced < lowest or (reduced == lowest and where >= 0 and owner[where] >= 0 and owner[j] < 0):
                    lowest, where = reduced, j
            u[b, i] = lowest if lowest < np.inf else 0.0
            if where >= 0 and owner[where] < 0:
                owner[where], column[i] = i, where
        for start in range(n):
            if column[start] >= 0:
                continue
            for j in range(m):
                distance[j], path[j], waiting[j] = np.inf, -1, j
            closed, count, i, low, last = m, 0, start, 0.0, -1  # waiting[closed:] are settled
            while last < 0:
                rows[count] = i
                count += 1
                base, lowest, where = low - u[b, i], np.inf, -1
                for k in range(closed):
                    j = waiting[k]
                    through = base + c[i, j] - v[b, j]
                    if through < distance[j]:
                        distance[j], path[j] = through, i
                    if distance[j] < lowest or (distance[j] == lowest and where >= 0 and owner[j] < 0):
                        lowest, where = distance[j], k
                if where < 0:
                    break
                low, j = lowest, waiting[where]
                closed -= 1
                waiting[where], waiting[closed] = waiting[closed], j
                if owner[j] < 0:
                    last = j
                else:
                    i = owner[j]
            if last < 0:
                column[:] = -1
                break
            u[b, start] += low
            for k in range(1, count):
                u[b, rows[k]] += low - distance[column[rows[k]]]
            for k in range(closed, m):
                v[b, waiting[k]] -= low - distance[waiting[k]]
            j = last
            while True:
                i = path[j]
                owner[j] = i
                before = column[i]
                column[i] = j
                if i == start:
                    break
                j = before


def _ship(cost: Any, supply: Any, demand: Any, plan: Any, u: Any, v: Any) -> None:
    batch, n, m = cost.shape
    distance, path, waiting = np.empty(m), np.empty(m, np.int64), np.empty(m, np.int64)
    reached, back, fresh = np.empty(n), np.empty(n, np.int64), np.empty(n, np.int64)
    for b in range(batch):
        c, x = cost[b], plan[b]  # the plan by columns: rows that ship to one lie side by side
        x[:] = 0.0
        v[b, :] = 0.0
        total = 0.0
        for i in range(n):
            total += supply[b, i]
            lowest = np.inf
            for j in range(m):
                lowest = min(lowest, c[i, j])
            u[b, i] = lowest
        left, room, crumb = supply[b].copy(), demand[b].copy(), 1e-15 * total
        start = 0
        while start < n:
            if left[start] <= crumb:
                start += 1
                continue
            for j in range(m):
                distance[j], path[j], waiting[j] = np.inf, -1, j
            reached[:] = np.inf
            back[:] = -1
            reached[start], fresh[0], new = 0.0, start, 1
            closed, low, last = m, 0.0, -1
            while last < 0:
                for f in range(new):
                    i = fresh[f]
                    base = low - u[b, i]
                    for k in range(closed):
                        j = waiting[k]
                        through = base + c[i, j] - v[b, j]
                        if through < distance[j]:
                            distance[j], path[j] = through, i
                lowest, where = np.inf, -1
                for k in range(closed):
                    j = waiting[k]
                    if distance[j] < lowest or (distance[j] == lowest and where >= 0 and room[j] > crumb):
                        lowest, where = distance[j], k
                if where < 0:
                    break
                low, j = lowest, waiting[where]
                closed -= 1
                waiting[where], waiting[closed] = waiting[closed], j
                if room[j] > crumb:
                    last = j
                    break
                new = 0
                for i in range(n):
                    if x[j, i] > 0.0 and reached[i] == np.inf:
                        reached[i], back[i], fresh[new] = low, j, i
                        new += 1
            if last < 0:
                if left[start] <= 1e-12 * total:  # of sums that differ by rounding
                    start += 1
                    continue
                x[:] = np.nan
                break
            for i in range(n):
                if reached[i] < low:
                    u[b, i] += low - reached[i]
            for k in range(closed, m):
                v[b, waiting[k]] -= low - distance[waiting[k]]
            moved, j = min(left[start], room[last]), last
            i = path[j]
            while i != start:
                j = back[i]
                moved = min(moved, x[j, i])
                i = path[j]
            left[start] -= moved
            room[last] -= moved
            j = last
            i = path[j]
            x[j, i] += moved
            while i != start:
                j = back[i]
                x[j, i] -= moved
                i = path[j]
                x[j, i] += moved


@cache
def _loops() -> tuple[Any, Any] | None:
    """The compiled loops, or ``None`` without numba."""
    jit = compiled()
    return None if jit is None else (jit(_assign), jit(_ship))
