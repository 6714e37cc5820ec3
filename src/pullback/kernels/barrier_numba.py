"""Compiled loops of the barrier steps; imported only where numba is installed."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["run"]

_JIT = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "arcp", "nsz"})


@_JIT
def invert(a: np.ndarray, block: np.ndarray) -> bool:
    """Gauss-Jordan in place, four pivots at a time; ``False`` at the first pivot that is not positive.

    ``block [4, 4]`` is work space. Two rows take the four pivot rows at once, so that each is read half as often.
    """
    nodes = a.shape[0]
    blocked = nodes - nodes % 4 if nodes >= 16 else 0
    for k in range(0, blocked, 4):
        block[:] = a[k : k + 4, k : k + 4]
        if not eliminate(block, 0):
            return False
        for i in range(4):
            for j in range(4):
                a[k + i, k + j] = 1.0 if i == j else 0.0
        for j in range(nodes):
            x, y, z, w = a[k, j], a[k + 1, j], a[k + 2, j], a[k + 3, j]
            for i in range(4):
                a[k + i, j] = block[i, 0] * x + block[i, 1] * y + block[i, 2] * z + block[i, 3] * w
        for i in range(0, blocked, 2):
            if i == k or i == k + 2:
                continue
            x, y, z, w = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
            p, q, r, s = a[i + 1, k], a[i + 1, k + 1], a[i + 1, k + 2], a[i + 1, k + 3]
            for j in range(4):
                a[i, k + j] = 0.0
                a[i + 1, k + j] = 0.0
            for j in range(nodes):
                e, f, g, h = a[k, j], a[k + 1, j], a[k + 2, j], a[k + 3, j]
                a[i, j] -= x * e + y * f + z * g + w * h
                a[i + 1, j] -= p * e + q * f + r * g + s * h
        for i in range(blocked, nodes):
            x, y, z, w = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
            for j in range(4):
                a[i, k + j] = 0.0
            for j in range(nodes):
                a[i, j] -= x * a[k, j] + y * a[k + 1, j] + z * a[k + 2, j] + w * a[k + 3, j]
    return eliminate(a, blocked)


@_JIT
def eliminate(a: np.ndarray, first: int) -> bool:
    """Gauss-Jordan in place from pivot ``first`` on, one by one."""
    nodes = a.shape[0]
    for k in range(first, nodes):
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
    """``C (W - I)``, two rows of the result and four of ``W`` at a time."""
    nodes = weights.shape[0]
    paired, blocked = nodes - nodes % 2, nodes - nodes % 4
    out[:] = -moments
    for i in range(0, paired, 2):
        for k in range(0, blocked, 4):
            a, b, c, d = moments[i, k], moments[i, k + 1], moments[i, k + 2], moments[i, k + 3]
            p, q, r, s = moments[i + 1, k], moments[i + 1, k + 1], moments[i + 1, k + 2], moments[i + 1, k + 3]
            for j in range(nodes):
                e, f, g, h = weights[k, j], weights[k + 1, j], weights[k + 2, j], weights[k + 3, j]
                out[i, j] += a * e + b * f + c * g + d * h
                out[i + 1, j] += p * e + q * f + r * g + s * h
        for k in range(blocked, nodes):
            a, b = moments[i, k], moments[i + 1, k]
            for j in range(nodes):
                out[i, j] += a * weights[k, j]
                out[i + 1, j] += b * weights[k, j]
    for i in range(paired, nodes):
        for k in range(nodes):
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
    block = np.empty((4, 4))
    for graph in range(all_weights.shape[0]):
        weights, direction = all_weights[graph], all_directions[graph]
        mean, square, moments = all_means[graph], all_squares[graph], all_moments[graph]
        mu, scale = mus[graph], scales[graph]
        for _ in range(count):
            if lefts[graph] or rates[graph] <= 1e-16:
                break
            shifted(weights, required, scale, inverse)
            inside = invert(inverse, block)
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
                inside = invert(inverse, block)
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
