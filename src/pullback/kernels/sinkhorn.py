r"""Sinkhorn for costs of all pairs, compiled: one exponential a pair in a sweep with a new epsilon, none in the others.

The kernel :math:`K_{ij}=\exp((g_j-C_{ij})/\varepsilon)`, each row divided by its sum over the masses b, is kept. A
sweep multiplies with it: row by row, so that what sets u is still at hand when it is added to the columns. It is made
anew with the potentials where epsilon changes, and after some sweeps.

The loop in torch beside it is :class:`pullback.transport.sweeps.Sweeper`.

References:
    Schmitzer (2019), Stabilized sparse scaling algorithms for entropy regularized transport problems, section 3.1.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled, over_rows
from pullback.kernels.exponential import two_to_the

__all__ = ["plan_loops", "points_loops", "sinkhorn_loops"]


def sinkhorn_loops(
    cost: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    epsilon: np.ndarray,
    start: np.ndarray,
    scale: bool,
    symmetric: bool,
    count: int,
    tolerance: float,
    shrink: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Sweep until each problem is done.

    Args:
        cost: ``[p, n, m]`` float64, inf forbids a pair.
        a, b: ``[p, n]`` and ``[p, m]`` masses of one sum.
        epsilon: ``[p]``.
        start: ``[p, m]`` potential of the columns to begin with.
        scale, symmetric, count, tolerance: see :func:`pullback.transport.sweeps.sweep`.
        shrink: of epsilon from sweep to sweep.

    Returns:
        ``[p, m]`` potential of the columns, ``[p]`` the sweeps it took, and ``[p]`` whether its numbers stayed in range
        (else another form must solve the problem). ``None`` without numba.

    Example:
        >>> even = np.full((1, 2), 0.5)
        >>> found = sinkhorn_loops(np.zeros((1, 2, 2)), even, even, np.ones(1), np.zeros((1, 2)), True, False, 9, 1e-9,
        ...     0.25)
        >>> found is None or found[0].tolist()
        [[0.0, 0.0]]
    """
    loops = _loops()
    if loops is None:
        return None
    g, sweeps, fine = start.copy(), np.zeros(len(a), np.int64), np.zeros(len(a), np.bool_)
    none = np.empty((len(a), 1, 1))
    over_rows(
        loops[0], cost, none, none, False, a, b, epsilon, g, sweeps, fine, scale, symmetric, count, tolerance, shrink
    )
    return g, sweeps, fine


def points_loops(
    x: np.ndarray,
    y: np.ndarray,
    squared: bool,
    a: np.ndarray,
    b: np.ndarray,
    epsilon: float,
    start: np.ndarray,
    single: bool,
    *options: Any,
) -> tuple[np.ndarray, ...] | None:
    """Solve one problem between points, and sum its plan, costs and their derivatives.

    Args:
        x, y: ``[n, d]`` and ``[d, m]`` float64.
        squared: the cost is the squared distance; else the distance.
        single: whether the sweeps are computed in float32 (the sums are not).
        a, b, epsilon, start, *options: see :func:`sinkhorn_loops`, without its first dimension.

    Returns:
        Potentials ``[m]`` and ``[n]`` (of which the row sums are a), the column sums ``[m]``, what the plan costs, and
        the derivatives of that along x ``[n, d]`` and y ``[d, m]``. ``None`` without numba, or where numbers left their
        range.

    Example:
        >>> one = np.ones(1)
        >>> x, y = np.zeros((1, 1)), np.ones((1, 1))
        >>> found = points_loops(x, y, True, one, one, 1.0, np.zeros(1), False, True, False, 9, 1e-9, 0.25)
        >>> found is None or (float(found[3]), found[4].item(), found[5].item())
        (1.0, -2.0, 2.0)
    """
    loops = _loops()
    if loops is None:
        return None
    (n, d), m, real = x.shape, y.shape[1], np.float32 if single else np.float64
    g, sweeps, fine, none = start[None].copy(), np.zeros(1, np.int64), np.zeros(1, np.bool_), np.empty((1, 0, 0), real)
    points = x[None].astype(real), y[None].astype(real)
    sweeping = _loops(True)[0] if single else loops[0]  # type: ignore[index]
    sweeping(none, *points, squared, a[None], b[None], np.array([epsilon]), g, sweeps, fine, *options)
    if not fine[0]:
        return None
    f, columns, along_x, along_y = np.empty(n), np.zeros(m), np.empty((n, d)), np.zeros((d, m))
    spent = loops[2](x, y, squared, a, b, epsilon, g[0], f, columns, along_x, along_y)
    return g[0], f, columns, spent, along_x, along_y


def plan_loops(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, epsilon: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the plan whose row sums are a, from a potential of the columns.

    Args:
        cost, a, b, epsilon: see :func:`sinkhorn_loops`.
        g: ``[p, m]``.

    Returns:
        ``[p, n, m]`` the plan, ``[p, n]`` the potential of the rows, ``[p]`` what the plan costs. ``None`` without
        numba.

    Example:
        >>> even = np.full((1, 2), 0.5)
        >>> found = plan_loops(np.zeros((1, 2, 2)), even, even, np.ones(1), np.zeros((1, 2)))
        >>> found is None or found[0].tolist()
        [[[0.25, 0.25], [0.25, 0.25]]]
    """
    loops = _loops()
    if loops is None:
        return None
    plan, f, spent = np.empty(cost.shape), np.empty(a.shape), np.empty(len(a))
    over_rows(loops[1], cost, a, b, epsilon, g, plan, f, spent)
    return plan, f, spent


def _made(jit: Any, single: bool) -> tuple[Any, Any, Any]:
    real: Any = np.float32 if single else np.float64
    two_to, per = two_to_the(single), real(1 / math.log(2))
    tiny, far = (real(x) for x in ((1e-30, 1e15) if single else (1e-300, 1e40)))
    zero, block, most_changed = real(0), 50, 600.0

    def loop(
        cost: Any,
        first: Any,
        second: Any,
        squared: bool,
        a: Any,
        b: Any,
        epsilon: Any,
        potential: Any,
        sweeps: Any,
        fine: Any,
        scale: bool,
        symmetric: bool,
        count: int,
        tolerance: float,
        shrink: float,
    ) -> None:
        problems, n = a.shape
        m, d, of_points = b.shape[1], first.shape[2], cost.shape[1] == 0
        kernel, lines, columns = np.empty((n, m), real), np.empty(m, real), np.empty(m, real)
        carried, weights, raised = np.empty(m, real), np.empty(m, real), np.empty(m, real)
        v, u, f, g, ratio = np.empty(m), np.empty(n), np.empty(n), np.empty(m), np.empty(n)
        for p in range(problems):
            least, most, total, e = np.inf, -np.inf, 0.0, epsilon[p]
            for i in range(n):
                total += a[p, i]
                if of_points:
                    continue
                for j in range(m):
                    x = cost[p, i, j]
                    least = min(least, x)
                    most = max(most, x if x < np.inf else -np.inf)
            if of_points:  # the box around all points
                least, most = 0.0, 0.0
                for c in range(d):
                    smallest, largest = np.inf, -np.inf
                    for i in range(n):
                        smallest, largest = min(smallest, first[p, i, c]), max(largest, first[p, i, c])
                    for j in range(m):
                        smallest, largest = min(smallest, second[p, c, j]), max(largest, second[p, c, j])
                    most += (largest - smallest) ** 2
                most = most if squared else np.sqrt(most)
            g[:], f[:], v[:], u[:] = potential[p], 0.0, 1.0, 1.0
            fine[p] = True
            k, current, old, since = 0, 0.0, 0.0, 0
            while True:
                current = max(e, (most - least) * shrink ** (k + 1.0)) if scale else e
                if current != old or since >= block:  # a new kernel, into which potentials go
                    inverse = 1 / current
                    for i in range(n):
                        f[i] += old * np.log(u[i])
                    for j in range(m):
                        g[j] += old * np.log(v[j])
                    scaled = real(inverse)
                    for j in range(m):
                        raised[j], weights[j] = real(g[j] * inverse), real(b[p, j])
                    for i in range(n):
                        top, shipped = -real(np.inf), zero
                        if of_points:
                            lines[:] = zero
                            for c in range(d):
                                at = first[p, i, c]
                                for j in range(m):
                                    y = at - second[p, c, j]
                                    lines[j] += y * y
                            if not squared:
                                for j in range(m):
                                    lines[j] = np.sqrt(lines[j])
                        else:
                            for j in range(m):
                                lines[j] = cost[p, i, j]
                        for j in range(m):
                            lines[j] = raised[j] - lines[j] * scaled
                            top = max(top, lines[j] if weights[j] > zero else -real(np.inf))
                        for j in range(m):
                            y = two_to((lines[j] - top) * per)
                            kernel[i, j] = y
                            shipped += y * weights[j]
                        y = real(1) / max(shipped, tiny)
                        for j in range(m):
                            kernel[i, j] *= y
                        base = -current * (float(top) + np.log(float(max(shipped, tiny))))
                        u[i] = np.exp(min(max((f[i] - base) * inverse, -most_changed), most_changed))
                        f[i] = base
                        if symmetric:
                            ratio[i] = np.exp(min(max((base - g[i]) * inverse, -most_changed), most_changed))
                    v[:] = 1.0
                    old, since = current, 0
                error, smallest, largest = 0.0, np.inf, 0.0
                for j in range(m):
                    carried[j], columns[j] = weights[j] * real(v[j]), zero
                for i in range(n):  # rows, and what they ship to each column
                    y = zero
                    for j in range(m):
                        y += kernel[i, j] * carried[j]
                    x = float(y)
                    smallest, largest = min(smallest, x), max(largest, x)
                    x = max(x, float(tiny))
                    if symmetric:
                        x /= max(ratio[i], 1e-300)
                        error += a[p, i] * abs(v[i] * x - 1)
                        columns[i] = real(x / max(v[i], 1e-300))
                    else:
                        error += a[p, i] * abs(u[i] * x - 1)
                        u[i] = 1 / x
                        y = real(a[p, i] / x)
                        for j in range(m):
                            columns[j] += kernel[i, j] * y
                for j in range(m):
                    x = float(columns[j])
                    smallest, largest = min(smallest, x), max(largest, x)
                if not (smallest > 1 / far and largest < far):
                    fine[p] = False
                    break
                if ((k or symmetric) and current <= e and error <= tolerance * total) or k >= count:
                    break
                for j in range(m):
                    x = max(float(columns[j]), 1e-300)
                    v[j] = 1 / np.sqrt(x) if symmetric else 1 / x
                k, since = k + 1, since + 1
            sweeps[p] = k
            for j in range(m):  # the symmetric one ends with its rows, right also where there is no mass
                x = v[j] if not symmetric else 1 / max(columns[j] * v[j], 1e-300)
                potential[p, j] = g[j] + current * np.log(max(x, 1e-300))

    def make_plan(cost: Any, a: Any, b: Any, epsilon: Any, g: Any, plan: Any, f: Any, spent: Any) -> None:
        problems, n, m = cost.shape
        lines = np.empty(m)
        for p in range(problems):
            spent[p], inverse = 0.0, 1 / epsilon[p]
            for i in range(n):
                top, shipped, paid = -np.inf, 0.0, 0.0
                for j in range(m):
                    lines[j] = (g[p, j] - cost[p, i, j]) * inverse
                    top = max(top, lines[j] if b[p, j] > 0 else -np.inf)
                for j in range(m):
                    y = two_to(min(lines[j] - top, 600.0) * per) * b[p, j]
                    plan[p, i, j] = y
                    shipped += y
                x = a[p, i] / max(shipped, tiny)
                for j in range(m):
                    y = plan[p, i, j] * x
                    plan[p, i, j] = y
                    paid += y * (cost[p, i, j] if y > 0 else 0.0)
                spent[p] += paid
                f[p, i] = -epsilon[p] * (top + np.log(max(shipped, tiny)))

    def pull_points(
        x: Any,
        y: Any,
        squared: bool,
        a: Any,
        b: Any,
        epsilon: float,
        g: Any,
        f: Any,
        columns: Any,
        along_x: Any,
        along_y: Any,
    ) -> float:
        n, d = x.shape
        m, inverse, spent = y.shape[1], 1 / epsilon, 0.0
        lines, costs = np.empty(m), np.empty(m)
        for i in range(n):
            costs[:] = 0.0
            for c in range(d):
                xc = x[i, c]
                for j in range(m):
                    t = xc - y[c, j]
                    costs[j] += t * t
            if not squared:
                for j in range(m):
                    costs[j] = np.sqrt(costs[j])
            top, shipped, paid = -np.inf, 0.0, 0.0
            for j in range(m):
                lines[j] = (g[j] - costs[j]) * inverse
                top = max(top, lines[j] if b[j] > 0 else -np.inf)
            for j in range(m):
                t = two_to(min(lines[j] - top, 600.0) * per) * b[j]
                lines[j] = t
                shipped += t
                paid += t * costs[j]
            scale = a[i] / max(shipped, tiny)
            spent += paid * scale
            f[i] = -epsilon * (top + np.log(max(shipped, tiny)))
            for j in range(m):
                t = lines[j] * scale
                columns[j] += t
                lines[j] = 2 * t if squared else (t / max(costs[j], tiny) if costs[j] > 0 else 0.0)
            for c in range(d):
                xc, total = x[i, c], 0.0
                for j in range(m):
                    t = lines[j] * (xc - y[c, j])
                    total += t
                    along_y[c, j] -= t
                along_x[i, c] = total
        return spent

    return jit(loop), jit(make_plan), jit(pull_points)


@cache
def _loops(single: bool = False) -> tuple[Any, Any, Any] | None:
    """The compiled loops, or ``None`` without numba."""
    jit = compiled(True, nan=True)
    return None if jit is None else _made(jit, single)
