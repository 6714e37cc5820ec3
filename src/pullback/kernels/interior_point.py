"""The interior point method for convex quadratic programs, one problem after the other.

The plain form is :class:`pullback.implicit.interior_point.InteriorPoint`, which steps all problems at once.

References:
    Mehrotra (1992), On the implementation of a primal-dual interior point method.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.compiled import compiled, over_rows

__all__ = ["InteriorSolution", "interior_point"]


class InteriorSolution(NamedTuple):
    """Where the method stopped.

    Attributes:
        x: ``[b, n]`` the points.
        equality: ``[b, p]`` multipliers.
        slack: ``[b, m]`` what the inequalities leave.
        multiplier: ``[b, m]`` those of the inequalities.
        iterations: ``[b]`` int64.
        reason: ``[b]`` int64: 0 converged, 1 used up, 2 stalled.
    """

    x: Tensor
    equality: Tensor
    slack: Tensor
    multiplier: Tensor
    iterations: Tensor
    reason: Tensor


def interior_point(
    quadratic: Tensor,
    linear: Tensor,
    equality: tuple[Tensor, Tensor],
    inequality: tuple[Tensor, Tensor],
    tolerance: float,
    limit: int,
) -> InteriorSolution | None:
    """Solve ``min x^T Q x / 2 + c^T x`` with ``A x = b``, ``G x <= h``.

    A definite ``Q`` is factorised once and the steps solve systems of the constraints, where that is less work;
    otherwise they solve systems of the unknowns.

    Args:
        quadratic: ``[b, n, n]`` float64, positive semidefinite, entries of size 1 at most.
        linear: ``[b, n]``.
        equality: ``[b, p, n]`` and ``[b, p]``.
        inequality: ``[b, m, n]`` and ``[b, m]``, ``m >= 1``.
        tolerance: of the largest relative violation of an optimality condition.
        limit: of the steps.

    Returns:
        The solution, ``None`` without numba or on another device than the CPU.

    Example:
        >>> one, eye = torch.ones(1, 1).double(), torch.ones(1, 1, 1).double()
        >>> found = interior_point(eye, -3 * one, (eye[:, :0], one[:, :0]), (eye, one), 1e-8, 50)
        >>> None if found is None else round(found.x.item(), 4)
        1.0
    """
    loop = _loop()
    if loop is None or linear.device.type != "cpu":
        return None
    given = [t.contiguous().numpy() for t in (quadratic, linear, *equality, *inequality)]
    shapes = (linear.shape, equality[1].shape, inequality[1].shape, inequality[1].shape)
    outputs = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    numbers = [torch.zeros(len(linear), dtype=torch.int64) for _ in range(2)]
    over_rows(loop, *given, tolerance, limit, *(t.numpy() for t in (*outputs, *numbers)))
    return InteriorSolution(*outputs, *numbers)


@cache
def _loop() -> Callable[..., Any] | None:
    """Return the compiled loop, ``None`` without numba."""
    jit = compiled(reassociate=True, nan=True)
    return None if jit is None else jit(_solve_each)


def _solve_each(
    quadratic: Any,
    linear: Any,
    fixed: Any,
    target: Any,
    rows: Any,
    bound: Any,
    tolerance: float,
    limit: int,
    out_x: Any,
    out_y: Any,
    out_s: Any,
    out_z: Any,
    steps: Any,
    reason: Any,
) -> None:
    free = 1e-11

    def dot(a: Any, b: Any, k: int) -> float:
        total = 0.0
        for i in range(k):
            total += a[i] * b[i]
        return total

    def add(a: Any, factor: float, b: Any, k: int) -> None:
        for i in range(k):
            a[i] += factor * b[i]

    def cholesky(a: Any, k: int) -> float:
        """Factorise the lower half in place, and return the smallest pivot."""
        least = np.inf
        for i in range(k):
            row, own = a[i], a[i, i]
            for j in range(i):
                total = row[j]
                other = a[j]
                for t in range(j):
                    total -= row[t] * other[t]
                row[j] = total / other[j]
            pivot = own
            for t in range(i):
                pivot -= row[t] * row[t]
            least = min(least, pivot)
            # A row that depends on those before it gets no part of a solution.
            row[i] = np.sqrt(pivot) if pivot > 1e-14 * own else 1e64
        return least

    def forward(factor: Any, v: Any, k: int) -> None:
        for i in range(k):
            row = factor[i]
            total = v[i]
            for t in range(i):
                total -= row[t] * v[t]
            v[i] = total / row[i]

    def backward(factor: Any, v: Any, k: int) -> None:
        for i in range(k - 1, -1, -1):
            row = factor[i]
            value = v[i] / row[i]
            v[i] = value
            for t in range(i):
                v[t] -= value * row[t]

    def solve(lower: Any, across: Any, schur: Any, t: Any, u: Any, n: int, k: int) -> None:
        """From right sides to steps, in place: ``H t + C^T u = t, C t - D u = u``."""
        forward(lower, t, n)
        for i in range(k):
            u[i] = dot(across[i], t, n) - u[i]
        forward(schur, u, k)
        backward(schur, u, k)
        for i in range(k):
            add(t, -u[i], across[i], n)
        backward(lower, t, n)

    def longest(s: Any, z: Any, ds: Any, dz: Any, k: int) -> float:
        fastest = 1.0
        for i in range(k):
            fastest = max(fastest, -ds[i] / s[i], -dz[i] / z[i])
        return 1.0 / fastest

    count, n = linear.shape
    p, m = target.shape[1], bound.shape[1]
    every = p + m
    lower, across = np.empty((n, n)), np.empty((every, n))
    base, schur = np.empty((every, every)), np.empty((every, every))
    c_rows = np.empty((every, n))
    t, u = np.empty(n), np.empty(every)
    rd, rp, rg = np.empty(n), np.empty(p), np.empty(m)
    s, z, k = np.empty(m), np.empty(m), np.empty(m)
    dx, dy, ds, dz = np.empty(n), np.empty(p), np.empty(m), np.empty(m)
    cheaper = every * every * every < 3 * n * n * m + n * n * n
    for problem in range(count):
        q, c, a, g = quadratic[problem], linear[problem], fixed[problem], rows[problem]
        b, h = target[problem], bound[problem]
        x, y = out_x[problem], out_y[problem]
        of_rows = False
        if cheaper:
            for i in range(n):
                for j in range(i + 1):
                    lower[i, j] = q[i, j]
                lower[i, i] += free
            of_rows = cholesky(lower, n) > 1e-7
        if of_rows:
            for i in range(every):
                for j in range(n):
                    c_rows[i, j] = a[i, j] if i < p else g[i - p, j]
                    across[i, j] = c_rows[i, j]
                forward(lower, across[i], n)
                for j in range(i + 1):
                    base[i, j] = dot(across[i], across[j], n)
        used = every if of_rows else p
        reason[problem] = 1
        best = np.inf
        for step in range(-1, limit + 1):
            if step < 0:  # the start: all weights 1
                for i in range(m):
                    s[i] = z[i] = 1.0
            else:
                size_c = size_y = size_z = value = curved = 0.0
                for i in range(n):
                    product = dot(q[i], x, n)
                    rd[i] = product + c[i]
                    size_c = max(size_c, abs(c[i]))
                    value += c[i] * x[i]
                    curved += product * x[i]
                for j in range(n):
                    t[j] = 0.0
                for i in range(p):
                    add(t, y[i], a[i], n)
                for j in range(n):
                    size_y = max(size_y, abs(t[j]))
                    rd[j] += t[j]
                    t[j] = 0.0
                for i in range(m):
                    add(t, z[i], g[i], n)
                worst_d = worst_p = worst_g = mean = 0.0
                for j in range(n):
                    size_z = max(size_z, abs(t[j]))
                    rd[j] += t[j]
                    worst_d = max(worst_d, abs(rd[j]))
                for i in range(p):
                    rp[i] = dot(a[i], x, n) - b[i]
                    worst_p = max(worst_p, abs(rp[i]) / (1 + abs(b[i])))
                for i in range(m):
                    rg[i] = dot(g[i], x, n) + s[i] - h[i]
                    worst_g = max(worst_g, abs(rg[i]) / (1 + abs(h[i])))
                    mean += s[i] * z[i]
                worst = max(
                    worst_d / (1 + max(size_c, size_y, size_z)),
                    worst_p,
                    worst_g,
                    mean / (1 + abs(value) + abs(curved)),
                )
                steps[problem] = step
                if worst <= tolerance:
                    reason[problem] = 0
                    break
                if step == limit:
                    break
                mean /= m
                if not (mean > 0 and worst < np.inf):
                    reason[problem] = 2
                    break
                best = min(best, worst)
                if of_rows and (step >= 15 or worst > 10 * best):
                    # More rows are nearly active than there are unknowns: their system is singular, the other is not.
                    of_rows = False
                    used = p
            # The systems of this step.
            if of_rows:
                for i in range(every):
                    for j in range(i + 1):
                        schur[i, j] = base[i, j]
                    schur[i, i] += s[i - p] / z[i - p] if i >= p else free
            else:
                for i in range(n):
                    for j in range(i + 1):
                        lower[i, j] = q[i, j]
                    lower[i, i] += free
                for r in range(m):
                    weight = z[r] / s[r]
                    for i in range(n):
                        add(lower[i], weight * g[r, i], g[r], i + 1)
                for r in range(p):
                    for i in range(n):
                        add(lower[i], a[r, i], a[r], i + 1)
                cholesky(lower, n)
                for i in range(p):
                    for j in range(n):
                        across[i, j] = a[i, j]
                    forward(lower, across[i], n)
                    for j in range(i + 1):
                        schur[i, j] = dot(across[i], across[j], n)
                    schur[i, i] += free
            cholesky(schur, used)
            if step < 0:
                for j in range(n):
                    t[j] = -c[j]
                if of_rows:
                    for i in range(m):
                        u[p + i] = h[i]
                else:
                    for i in range(m):
                        add(t, h[i], g[i], n)
                    for i in range(p):
                        add(t, b[i], a[i], n)
                for i in range(p):
                    u[i] = b[i]
                solve(lower, across, schur, t, u, n, used)
                least_s = least_z = np.inf
                for j in range(n):
                    x[j] = t[j]
                for i in range(p):
                    y[i] = u[i]
                for i in range(m):
                    z[i] = dot(g[i], x, n) - h[i]
                    s[i] = -z[i]
                    least_s, least_z = min(least_s, s[i]), min(least_z, z[i])
                for i in range(m):
                    if least_s <= 0:
                        s[i] = max(s[i] - least_s, 0.0) + 1  # in this order: 1 is lost beside a large number
                    if least_z <= 0:
                        z[i] = max(z[i] - least_z, 0.0) + 1
                continue
            for i in range(m):
                k[i] = s[i] * z[i]
            length = 1.0
            for corrected in range(2):
                for j in range(n):
                    t[j] = -rd[j]
                if of_rows:
                    for i in range(m):
                        u[p + i] = k[i] / z[i] - rg[i]
                else:
                    for i in range(m):
                        add(t, k[i] / s[i] - z[i] / s[i] * rg[i], g[i], n)
                    for i in range(p):
                        add(t, -rp[i], a[i], n)
                for i in range(p):
                    u[i] = -rp[i]
                solve(lower, across, schur, t, u, n, used)
                for j in range(n):
                    dx[j] = t[j]
                for i in range(p):
                    dy[i] = u[i]
                for i in range(m):
                    ds[i] = -rg[i] - dot(g[i], dx, n)
                    dz[i] = -(k[i] + z[i] * ds[i]) / s[i]
                length = longest(s, z, ds, dz, m)
                if corrected == 0:
                    left = 0.0
                    for i in range(m):
                        left += (s[i] + length * ds[i]) * (z[i] + length * dz[i])
                    centring = min(1.0, (left / m / mean) ** 3)
                    for i in range(m):
                        k[i] += ds[i] * dz[i] - centring * mean
            length = min(1.0, 0.99 * length)
            if not length >= 1e-9:
                reason[problem] = 2
                break
            add(x, length, dx, n)
            add(y, length, dy, p)
            for i in range(m):
                s[i] = max(s[i] + length * ds[i], 1e-200)
                z[i] = max(z[i] + length * dz[i], 1e-200)
        for i in range(m):
            out_s[problem, i], out_z[problem, i] = s[i], z[i]
