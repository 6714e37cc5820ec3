"""Compiled loops of the barrier steps; imported only where numba is installed."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["run"]

_JIT = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "arcp", "nsz"})


@_JIT
def invert(a: np.ndarray) -> bool:
    """Gauss-Jordan in place; ``False`` at the first pivot that is not positive."""
    nodes = a.shape[0]
    for k in range(nodes):
        pivot = a[k, k]
        if not pivot > 0.0:
            return False
        reciprocal = 1.0 / pivot
        a[k, k] = 1.0
        for j in range(nodes):
            a[k, j] *= reciprocal
        for i in range(nodes):
            factor = a[i, k]
            if i == k or factor == 0.0:
                continue
            a[i, k] = 0.0
            for j in range(nodes):
                a[i, j] -= factor * a[k, j]
    return True


@_JIT
def shifted(weights: np.ndarray, required: np.ndarray, scale: float, out: np.ndarray) -> None:
    nodes = weights.shape[0]
    for i in range(nodes):
        for j in range(nodes):
            out[i, j] = -weights[i, j] * weights[i, j] - required[i, j]
        out[i, i] += scale


@_JIT
def score_gradient(moments: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """``C (W - I)``, four rows of ``W`` at a time."""
    nodes = weights.shape[0]
    blocked = nodes - nodes % 4
    for i in range(nodes):
        for j in range(nodes):
            out[i, j] = -moments[i, j]
        for k in range(0, blocked, 4):
            a, b, c, d = moments[i, k], moments[i, k + 1], moments[i, k + 2], moments[i, k + 3]
            for j in range(nodes):
                out[i, j] += a * weights[k, j] + b * weights[k + 1, j] + c * weights[k + 2, j] + d * weights[k + 3, j]
        for k in range(blocked, nodes):
            a = moments[i, k]
            for j in range(nodes):
                out[i, j] += a * weights[k, j]


@_JIT
def run(
    all_weights: np.ndarray,
    all_means: np.ndarray,
    all_squares: np.ndarray,
    all_directions: np.ndarray,
    rates: np.ndarray,
    steps: np.ndarray,
    lefts: np.ndarray,
    all_moments: np.ndarray,
    mus: np.ndarray,
    scales: np.ndarray,
    penalty: np.ndarray,
    allowed: np.ndarray,
    required: np.ndarray,
    count: int,
) -> None:
    """Take the steps of :func:`pullback.kernels.barrier.barrier_steps` in place, graph by graph."""
    nodes = all_weights.shape[1]
    inverse = np.empty((nodes, nodes))
    gradient = np.empty((nodes, nodes))
    for graph in range(all_weights.shape[0]):
        weights, direction = all_weights[graph], all_directions[graph]
        mean, square, moments = all_means[graph], all_squares[graph], all_moments[graph]
        mu, scale = mus[graph], scales[graph]
        for _ in range(count):
            if lefts[graph] or rates[graph] <= 1e-16:
                break
            shifted(weights, required, scale, inverse)
            inside = invert(inverse)
            while not inside:
                if steps[graph] == 0 or scale <= 0.9:
                    lefts[graph] = True
                    break
                back = 0.5 * rates[graph]
                for i in range(nodes):
                    for j in range(nodes):
                        weights[i, j] += back * direction[i, j]
                rates[graph] = back
                if back <= 1e-16:
                    break
                shifted(weights, required, scale, inverse)
                inside = invert(inverse)
            if not inside:
                break
            steps[graph] += 1
            score_gradient(moments, weights, gradient)
            first = 1 / (1 - 0.99 ** steps[graph])
            second = 1 / (1 - 0.999 ** steps[graph])
            rate = rates[graph]
            for i in range(nodes):
                for j in range(nodes):
                    w = weights[i, j]
                    g = mu * (gradient[i, j] + penalty[i, j] * np.sign(w)) + 2 * w * inverse[j, i]
                    m = 0.99 * mean[i, j] + 0.01 * g
                    v = 0.999 * square[i, j] + 0.001 * g * g
                    mean[i, j], square[i, j] = m, v
                    q = allowed[i, j] * m * first / (math.sqrt(v * second) + 1e-8)
                    direction[i, j] = q
                    weights[i, j] = w - rate * q
