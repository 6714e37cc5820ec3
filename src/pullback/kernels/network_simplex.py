r"""The transport problem by the network simplex: what the best basis ships, and its potentials.

A basis is a spanning tree of the rows and columns, whose cells carry all flow. A cell whose cost is less than the sum
of its potentials enters, flow moves around the cycle that it closes, and the cell that empties first leaves. Masses are
rounded to whole numbers, of the sum 2^60 / (n + 1), and then each row has the (n + 1)th part of one more, which the
root takes: so no two cells empty at once, every step gains, and no basis comes twice. Columns without demand are left
out, and priced at the end.

References:
    Ahuja, Magnanti, Orlin (1993), Network flows, chapter 11 (section 11.6: perturbation and strongly feasible trees).
    Bonneel, van de Panne, Paris, Heidrich (2011), Displacement interpolation using Lagrangian mass transport.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled, over_rows

__all__ = ["ship_by_simplex"]


def ship_by_simplex(
    cost: np.ndarray, supply: np.ndarray, demand: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Ship all of ``supply`` at the least total cost.

    Args:
        cost: ``[b, n, m]`` float64; ``inf`` forbids a pair.
        supply: ``[b, n]`` >= 0.
        demand: ``[b, m]`` >= 0, of the same sums up to rounding.

    Returns:
        Plan ``[b, n, m]``, potentials ``u [b, n]`` and ``v [b, m]`` with ``u_i + v_j <= c_ij``, and whether each
        problem is solved ``[b]``: one is not where its basis cannot do without forbidden pairs (then another method
        must say whether there is a plan). ``None`` without numba.

    Example:
        >>> found = ship_by_simplex(np.array([[[0.0, 1.0], [1.0, 5.0]]]), np.array([[0.5, 0.5]]),
        ...     np.array([[0.75, 0.25]]))
        >>> found is None or found[0].tolist()
        [[[0.25, 0.25], [0.5, 0.0]]]
    """
    loop = _loop()
    if loop is None:
        return None
    batch, n, m = cost.shape
    plan, u, v = np.zeros((batch, n, m)), np.empty((batch, n)), np.empty((batch, m))
    solved = np.zeros(batch, np.bool_)
    over_rows(
        loop, np.ascontiguousarray(cost), *(np.ascontiguousarray(x) for x in (supply, demand)), plan, u, v, solved
    )
    return plan, u, v, solved


def _simplex(cost: Any, supply: Any, demand: Any, plan: Any, u: Any, v: Any, solved: Any) -> None:
    batch, n, m = cost.shape
    size = n + m
    parent, depth = np.empty(size, np.int64), np.empty(size, np.int64)
    child, after, before = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    flow, price, left = np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64)
    head, link = np.empty(size, np.int64), np.empty(2 * size, np.int64)
    end, moved, order = np.empty(2 * size, np.int64), np.empty(2 * size, np.int64), np.empty(size, np.int64)
    c, low, mass = np.empty((n, m)), np.empty(m), np.empty(size)
    for b in range(batch):
        largest = 0.0
        for i in range(n):
            for j in range(m):
                if cost[b, i, j] < np.inf:
                    largest = max(largest, abs(cost[b, i, j]))
        never = 4.0 * size * largest  # of a forbidden pair: more than any path around it
        for i in range(n):
            for j in range(m):
                c[i, j] = cost[b, i, j] if cost[b, i, j] < np.inf else never
        # Masses as whole numbers of one sum, each row with one more for the last column.
        total = 0.0
        for i in range(n):
            total += supply[b, i]
        grid = 2.0**60 / (n + 1) / total
        excess, root = np.int64(0), n
        for i in range(n):
            left[i] = np.int64(np.floor(supply[b, i] * grid + 0.5))
            excess += left[i]
        for j in range(n, size):
            left[j] = np.int64(np.floor(demand[b, j - n] * grid + 0.5))
            if demand[b, j - n] > 0:
                left[j] = max(left[j], np.int64(1))
            excess -= left[j]
            if left[j] > left[root]:
                root = j
        left[root] += excess
        for k in range(size):
            left[k] *= n + 1
        for i in range(n):
            left[i] += 1
        left[root] += n
        # A first tree: each row ships to the cheapest column that has room, costs less the least of their column.
        for j in range(m):
            low[j] = np.inf if left[n + j] else -np.inf  # no room: its reduced costs are infinite
        for i in range(n):
            for j in range(m):
                low[j] = min(low[j], c[i, j])
        head[:] = -1
        arcs, i = 0, 0
        while i < n:
            least, where = np.inf, -1
            for j in range(m):
                reduced = c[i, j] - low[j]
                if reduced < least:
                    least, where = reduced, j
            j = n + where
            amount = min(left[i], left[j])
            left[i] -= amount
            left[j] -= amount
            end[2 * arcs], moved[2 * arcs], link[2 * arcs] = j, amount, head[i]
            head[i] = 2 * arcs
            end[2 * arcs + 1], moved[2 * arcs + 1], link[2 * arcs + 1] = i, amount, head[j]
            head[j] = 2 * arcs + 1
            arcs += 1
            if left[j] == 0:
                low[where] = -np.inf
            if left[i] == 0:
                i += 1
        # Hang it on the root.
        price[:] = -np.inf  # of columns without demand: none of their cells enters
        parent[root], depth[root], price[root], child[:] = -1, 0, 0.0, -1
        after[root] = before[root] = -1
        order[0], count, k = root, 1, 0
        while k < count:
            at = order[k]
            k += 1
            arc = head[at]
            while arc >= 0:
                other = end[arc]
                if other != parent[at]:
                    parent[other], depth[other], flow[other] = at, depth[at] + 1, moved[arc]
                    price[other] = (c[other, at - n] if other < n else c[at, other - n]) - price[at]
                    before[other], after[other] = -1, child[at]
                    if child[at] >= 0:
                        before[child[at]] = other
                    child[at] = other
                    order[count] = other
                    count += 1
                arc = link[arc]
        # Price rows in turn; the best cell of one enters.
        row, clean = 0, 0
        while clean < n:
            base, least = price[row], np.inf
            for j in range(m):
                least = min(least, c[row, j] - price[n + j])
            if not least - base < -1e-13 * largest:
                row = row + 1 if row + 1 < n else 0
                clean += 1
                continue
            clean = 0
            j = 0
            while c[row, j] - price[n + j] > least:
                j += 1
            column = n + j
            # Up from both ends to where they meet: on the column's side columns lose flow, on the row's side rows do.
            x, y = column, row
            theta, leaving, below = np.int64(2**62), -1, True
            while x != y:
                if depth[x] >= depth[y]:
                    if x >= n and flow[x] < theta:
                        theta, leaving, below = flow[x], x, True
                    x = parent[x]
                else:
                    if y < n and flow[y] < theta:
                        theta, leaving, below = flow[y], y, False
                    y = parent[y]
            meet = x
            x, y = column, row
            while x != meet:
                flow[x] += -theta if x >= n else theta
                x = parent[x]
            while y != meet:
                flow[y] += -theta if y < n else theta
                y = parent[y]
            # The tree below the leaving cell is hung on the entering one: parents along the path turn around.
            node, above = (column, row) if below else (row, column)
            carried = theta
            first = node
            while True:
                old, kept = parent[node], flow[node]
                if before[node] >= 0:
                    after[before[node]] = after[node]
                else:
                    child[old] = after[node]
                if after[node] >= 0:
                    before[after[node]] = before[node]
                parent[node], flow[node] = above, carried
                before[node], after[node] = -1, child[above]
                if child[above] >= 0:
                    before[child[above]] = node
                child[above] = node
                if node == leaving:
                    break
                above, node, carried = node, old, kept
            # Prices and depths of that tree.
            at = first
            while True:
                up = parent[at]
                depth[at] = depth[up] + 1
                price[at] = (c[at, up - n] if at < n else c[up, at - n]) - price[up]
                if child[at] >= 0:
                    at = child[at]
                    continue
                while at != first and after[at] < 0:
                    at = parent[at]
                if at == first:
                    break
                at = after[at]
        # What the tree ships of the masses as they were given, leaves first.
        for i in range(n):
            mass[i], u[b, i] = supply[b, i], price[i]
        for j in range(m):
            mass[n + j], v[b, j] = demand[b, j], price[n + j]
            if demand[b, j] <= 0:
                v[b, j] = np.inf
                for i in range(n):
                    v[b, j] = min(v[b, j], c[i, j] - u[b, i])
        order[0], count, k = root, 1, 0
        while k < count:
            at = child[order[k]]
            while at >= 0:
                order[count] = at
                count += 1
                at = after[at]
            k += 1
        solved[b], crumb = True, 1e-15 * total
        for k in range(count - 1, 0, -1):
            at = order[k]
            up = parent[at]
            amount = mass[at] if mass[at] > crumb else 0.0
            mass[up] -= mass[at]
            i, j = (at, up - n) if at < n else (up, at - n)
            if not cost[b, i, j] < np.inf:
                solved[b] = False
            plan[b, i, j] = amount


@cache
def _loop() -> Any | None:
    """The compiled loop, or ``None`` without numba."""
    jit = compiled(True)
    return None if jit is None else jit(_simplex)
