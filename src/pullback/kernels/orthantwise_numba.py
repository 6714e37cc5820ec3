"""Compiled loops of the orthant-wise steps; imported only where numba is installed."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["run"]

_JIT = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "arcp", "nsz"})


@_JIT
def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    nodes = a.shape[0]
    blocked = nodes - nodes % 4
    for i in range(nodes):
        for j in range(nodes):
            out[i, j] = 0.0
        for k in range(0, blocked, 4):
            p, q, r, s = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
            for j in range(nodes):
                out[i, j] += p * b[k, j] + q * b[k + 1, j] + r * b[k + 2, j] + s * b[k + 3, j]
        for k in range(blocked, nodes):
            p = a[i, k]
            for j in range(nodes):
                out[i, j] += p * b[k, j]


@_JIT
def exponential(a: np.ndarray, powers: np.ndarray, out: np.ndarray, spare: np.ndarray) -> bool:
    """``exp(a)`` of a non-negative matrix: Taylor of degree 16 at norm one (no term cancels), then squarings."""
    nodes = a.shape[0]
    norm = 0.0
    for j in range(nodes):
        column = 0.0
        for i in range(nodes):
            column += a[i, j]
        norm = max(norm, column)
    if not norm < 700.0:  # the entries would overflow
        return False
    squarings = max(0, math.ceil(math.log2(norm))) if norm > 1.0 else 0
    factor = 0.5**squarings
    for i in range(nodes):
        for j in range(nodes):
            powers[0, i, j] = factor * a[i, j]
    multiply(powers[0], powers[0], powers[1])
    multiply(powers[0], powers[1], powers[2])
    multiply(powers[1], powers[1], powers[3])
    # sum_k a^k / k! as a polynomial in a^4 whose coefficients are cubics in a
    last = 1.0
    for k in range(1, 17):
        last /= k
    for i in range(nodes):
        for j in range(nodes):
            out[i, j] = last * powers[3, i, j]
    coefficient = last
    for block in range(3, -1, -1):
        top = 4 * block + 3
        c3 = coefficient * (top + 1)
        c2 = c3 * top
        c1 = c2 * (top - 1)
        coefficient = c1 * (top - 2)
        for i in range(nodes):
            for j in range(nodes):
                out[i, j] += c1 * powers[0, i, j] + c2 * powers[1, i, j] + c3 * powers[2, i, j]
            out[i, i] += coefficient
        if block > 0:
            multiply(out, powers[3], spare)
            out[:] = spare
    for _ in range(squarings):
        multiply(out, out, spare)
        out[:] = spare
    return True


@_JIT
def evaluate(
    w: np.ndarray,
    moments: np.ndarray,
    alpha: float,
    rho: float,
    penalty: np.ndarray,
    allowed: np.ndarray,
    required: np.ndarray,
    gradient: np.ndarray,
    work: np.ndarray,
) -> tuple[float, float]:
    """Objective and ``h``; the gradient of the smooth part into ``gradient``."""
    nodes = w.shape[0]
    squared, residual, slope, exponent, spare = work[0], work[1], work[2], work[3], work[4]
    for i in range(nodes):
        for j in range(nodes):
            squared[i, j] = w[i, j] * w[i, j] + required[i, j]
            residual[i, j] = -w[i, j]
        residual[i, i] += 1.0
    if not exponential(squared, work[5:], exponent, spare):
        return math.inf, math.inf
    multiply(moments, residual, slope)
    h = -float(nodes)
    value = 0.0
    size = 0.0
    for i in range(nodes):
        h += exponent[i, i]
        for j in range(nodes):
            value += residual[i, j] * slope[i, j]
            size += penalty[i, j] * abs(w[i, j])
    force = 2.0 * (alpha + rho * h)
    for i in range(nodes):
        for j in range(nodes):
            gradient[i, j] = allowed[i, j] * (force * w[i, j] * exponent[j, i] - slope[i, j])
    return 0.5 * value + (alpha + 0.5 * rho * h) * h + size, h


@_JIT
def dot(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            total += a[i, j] * b[i, j]
    return total


@_JIT
def add(out: np.ndarray, factor: float, a: np.ndarray) -> None:
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[i, j] += factor * a[i, j]


@_JIT
def minimise(
    x: np.ndarray,
    moments: np.ndarray,
    alpha: float,
    rho: float,
    penalty: np.ndarray,
    allowed: np.ndarray,
    required: np.ndarray,
    iterations: int,
    tolerance: float,
) -> tuple[float, float]:
    nodes = x.shape[0]
    memory = 10
    work = np.empty((9, nodes, nodes))
    steps = np.zeros((memory, nodes, nodes))
    changes = np.zeros((memory, nodes, nodes))
    weight = np.zeros(memory)
    share = np.zeros(memory)
    gradient, new_gradient = np.empty((nodes, nodes)), np.empty((nodes, nodes))
    uphill, direction, trial = np.empty((nodes, nodes)), np.empty((nodes, nodes)), np.empty((nodes, nodes))
    value, h = evaluate(x, moments, alpha, rho, penalty, allowed, required, gradient, work)
    kept, newest, idle = 0, 0, 0
    for _ in range(iterations):
        total = 0.0
        for i in range(nodes):
            for j in range(nodes):
                g, threshold = gradient[i, j], penalty[i, j]
                if x[i, j] > 0:
                    g += threshold
                elif x[i, j] < 0 or g > threshold:
                    g -= threshold
                elif g < -threshold:
                    g += threshold
                else:
                    g = 0.0
                uphill[i, j] = g
                direction[i, j] = -g
                total += abs(g)
        for age in range(kept):
            k = (newest - age) % memory
            share[k] = weight[k] * dot(steps[k], direction)
            add(direction, -share[k], changes[k])
        if kept:
            curvature = 1.0 / (weight[newest] * dot(changes[newest], changes[newest]))
        else:
            curvature = 1.0 / max(total, 1.0)
        for i in range(nodes):
            for j in range(nodes):
                direction[i, j] *= curvature
        for age in range(kept - 1, -1, -1):
            k = (newest - age) % memory
            add(direction, share[k] - weight[k] * dot(changes[k], direction), steps[k])
        slope = 0.0
        for i in range(nodes):
            for j in range(nodes):
                product = direction[i, j] * uphill[i, j]
                if product < 0:
                    slope += product
                else:
                    direction[i, j] = 0.0
        if not slope < 0:
            break
        length = 1.0
        accepted = False
        new_value, new_h = value, h
        for _ in range(30):
            gain = 0.0
            for i in range(nodes):
                for j in range(nodes):
                    moved = x[i, j] + length * direction[i, j]
                    sign = x[i, j] if x[i, j] != 0 else -uphill[i, j]
                    if not moved * sign > 0:
                        moved = 0.0
                    trial[i, j] = moved
                    gain += uphill[i, j] * (moved - x[i, j])
            new_value, new_h = evaluate(trial, moments, alpha, rho, penalty, allowed, required, new_gradient, work)
            if new_value <= value + 1e-4 * gain:
                accepted = True
                break
            shorter = 0.1 * length
            if new_value < math.inf:
                parabola = -slope * length * length / (2.0 * (new_value - value - slope * length))
                shorter = min(max(parabola, shorter), 0.5 * length)
            length = shorter
        if not accepted:
            if kept == 0:
                break
            kept = 0
            idle = 0
            continue
        place = (newest + 1) % memory
        inner, size = 0.0, 0.0
        for i in range(nodes):
            for j in range(nodes):
                step, change = trial[i, j] - x[i, j], new_gradient[i, j] - gradient[i, j]
                inner += step * change
                size += change * change
        if inner > 1e-12 * size:
            newest = place
            kept = min(kept + 1, memory)
            weight[newest] = 1.0 / inner
            for i in range(nodes):
                for j in range(nodes):
                    steps[newest, i, j] = trial[i, j] - x[i, j]
                    changes[newest, i, j] = new_gradient[i, j] - gradient[i, j]
        x[:] = trial
        gradient[:] = new_gradient
        idle = idle + 1 if value - new_value <= tolerance * abs(new_value) else 0
        value, h = new_value, new_h
        if idle == 2:
            break
    return value, h


@_JIT
def run(
    weights: np.ndarray,
    acyclicity: np.ndarray,
    objective: np.ndarray,
    moments: np.ndarray,
    alpha: np.ndarray,
    rho: np.ndarray,
    penalty: np.ndarray,
    allowed: np.ndarray,
    required: np.ndarray,
    iterations: int,
    tolerance: float,
) -> None:
    """Minimise as :func:`pullback.kernels.orthantwise.minimise_lagrangian` does, in place, graph by graph."""
    for graph in range(weights.shape[0]):
        objective[graph], acyclicity[graph] = minimise(
            weights[graph],
            moments[graph],
            alpha[graph],
            rho[graph],
            penalty,
            allowed,
            required,
            iterations,
            tolerance,
        )
