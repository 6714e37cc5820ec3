r"""Steps to a barycentre on a grid by products with one kernel, compiled: two passes over the kernel a step.

The steps are those of :func:`pullback.transport.barycenter`, which has them in torch too, to be differentiated.

References:
    Janati, Cuturi, Gramfort (2020), Debiased Sinkhorn barycenters, algorithm 1.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled, over_rows

__all__ = ["barycenter_loops"]


def barycenter_loops(
    kernel: np.ndarray, a: np.ndarray, shares: np.ndarray, debiased: bool, count: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Step until what the columns of each problem miss of its barycentre is within the tolerance.

    Args:
        kernel: ``[p, m, m]`` float64, symmetric.
        a: ``[p, k, m]`` masses >= 0 of sum 1.
        shares: ``[p, k]`` weights of sum 1.
        debiased: whether the blur is taken out.
        count: steps at most.
        tolerance: of the sum that is missed.

    Returns:
        ``[p, m]`` the barycentres, ``[p]`` the residuals (NaN or infinite where numbers left their range), ``[p]`` the
        steps. ``None`` without numba.

    Example:
        >>> found = barycenter_loops(np.eye(2)[None], np.full((1, 1, 2), 0.5), np.ones((1, 1)), True, 9, 1e-9)
        >>> found is None or found[0].tolist()
        [[0.5, 0.5]]
    """
    loop = _loop()
    if loop is None:
        return None
    problems, _, m = a.shape
    b, residual, steps = np.empty((problems, m)), np.empty(problems), np.zeros(problems, np.int64)
    over_rows(loop, kernel, a, shares, b, residual, steps, debiased, count, tolerance)
    return b, residual, steps


def _steps(
    kernel: Any, a: Any, shares: Any, found: Any, missed: Any, steps: Any, debiased: bool, count: int, tolerance: float
) -> None:
    problems, k, m = a.shape
    rows = k + 1 if debiased else k
    scales, spread, reach = np.empty((rows, m)), np.empty((rows, m)), np.empty((k, m))
    for p in range(problems):
        b = found[p]
        scales[:] = 1.0
        step = 0
        while True:
            spread[:] = 0.0
            for i in range(m):
                for r in range(rows):
                    x = scales[r, i]
                    for j in range(m):
                        spread[r, j] += x * kernel[p, i, j]
            for r in range(k):
                for j in range(m):
                    spread[r, j] = a[p, r, j] * (1 / max(spread[r, j], 1e-300))
            reach[:] = 0.0
            for i in range(m):
                for r in range(k):
                    x = spread[r, i]
                    for j in range(m):
                        reach[r, j] += x * kernel[p, i, j]
            total = 0.0
            for j in range(m):
                x = 0.0
                for r in range(k):
                    x += shares[p, r] * np.log(reach[r, j])
                x = np.exp(x) * (scales[k, j] if debiased else 1.0)
                b[j] = x
                total += x
            inverse, worst = 1 / max(total, 1e-300), 0.0
            for j in range(m):
                b[j] *= inverse
            for r in range(rows):
                off = 0.0
                for j in range(m):
                    x = scales[r, j] * (reach[r, j] if r < k else spread[r, j])
                    off += abs(x - b[j])
                    x = b[j] / max(x, 1e-300)
                    spread[r, j] = x if r < k else np.sqrt(x)
                worst = off if not off <= worst else worst
            missed[p] = worst
            if step == count or not worst > tolerance:
                break
            for r in range(rows):
                for j in range(m):
                    scales[r, j] *= spread[r, j]
            step += 1
        steps[p] = step


@cache
def _loop() -> Any | None:
    """The compiled loop, or ``None`` without numba."""
    jit = compiled(True, nan=True)
    return None if jit is None else jit(_steps)
