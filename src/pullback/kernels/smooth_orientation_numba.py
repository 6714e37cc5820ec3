"""Compiled loops of the annealed orientations; imported only where numba is installed."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["run"]

_JIT = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "arcp", "nsz"})


@_JIT
def unit_scale(x: np.ndarray) -> float:
    total = 0.0
    for value in x.flat:
        total += value * value
    return 1.0 / math.sqrt(total) if total > 0.0 else 0.0


@_JIT
def run(
    strengths: np.ndarray,
    priorities: np.ndarray,
    strength_means: np.ndarray,
    strength_squares: np.ndarray,
    priority_means: np.ndarray,
    priority_squares: np.ndarray,
    all_moments: np.ndarray,
    allowed: np.ndarray,
    temperatures: np.ndarray,
    taken: int,
    lr: float,
    l1: float,
    l2: float,
    lp: float,
    shift: float,
) -> None:
    """Take the steps of :func:`pullback.kernels.smooth_orientation.anneal` in place, model by model."""
    rows, nodes = priorities.shape
    share = rows // all_moments.shape[1]
    last = all_moments.shape[0] - 1  # one of all steps, or one a step
    oriented = np.empty((nodes, nodes), strengths.dtype)
    weights = np.empty((nodes, nodes), strengths.dtype)
    outer = np.empty((nodes, nodes), strengths.dtype)
    pull = np.empty(nodes, strengths.dtype)
    blocked = nodes - nodes % 4
    for row in range(rows):
        h, p = strengths[row], priorities[row]
        h_mean, h_square = strength_means[row], strength_squares[row]
        p_mean, p_square = priority_means[row], priority_squares[row]
        for count in range(temperatures.shape[0]):
            moments = all_moments[min(count, last), row // share]
            inverse = 1.0 / temperatures[count]
            step = taken + count + 1
            rate = lr / (1.0 - 0.9**step)
            second = 1.0 / (1.0 - 0.999**step)
            for u in range(nodes):
                for v in range(nodes):
                    s = allowed[u, v] / (1.0 + math.exp(-(p[v] - p[u] - shift) * inverse))
                    oriented[u, v] = s
                    weights[u, v] = h[u, v] * s
                oriented[u, u] = 0.0
                weights[u, u] = -1.0
            for u in range(nodes):
                for v in range(nodes):
                    outer[u, v] = 0.0
                for k in range(0, blocked, 4):
                    a, b, c, d = moments[u, k], moments[u, k + 1], moments[u, k + 2], moments[u, k + 3]
                    for v in range(nodes):
                        outer[u, v] += (
                            a * weights[k, v] + b * weights[k + 1, v] + c * weights[k + 2, v] + d * weights[k + 3, v]
                        )
                for k in range(blocked, nodes):
                    a = moments[u, k]
                    for v in range(nodes):
                        outer[u, v] += a * weights[k, v]
            of_norm = l2 * unit_scale(h)
            for v in range(nodes):
                pull[v] = 0.0
            for u in range(nodes):
                taken_from = 0.0
                for v in range(nodes):
                    s, w = oriented[u, v], h[u, v]
                    g = 2.0 / nodes * outer[u, v]
                    force = g * w * s * (1.0 - s) * inverse
                    pull[v] += force
                    taken_from += force
                    g = g * s + l1 * np.sign(w) + of_norm * w
                    m = 0.9 * h_mean[u, v] + 0.1 * g
                    q = 0.999 * h_square[u, v] + 0.001 * g * g
                    h_mean[u, v], h_square[u, v] = m, q
                    h[u, v] = w - rate * m / (math.sqrt(q * second) + 1e-8)
                pull[u] -= taken_from
            of_norm = lp * unit_scale(p)
            for v in range(nodes):
                g = pull[v] + of_norm * p[v]
                m = 0.9 * p_mean[v] + 0.1 * g
                q = 0.999 * p_square[v] + 0.001 * g * g
                p_mean[v], p_square[v] = m, q
                p[v] -= rate * m / (math.sqrt(q * second) + 1e-8)
