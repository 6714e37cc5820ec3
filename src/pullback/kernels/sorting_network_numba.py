"""Compiled swaps of a sorting network; imported only where numba is installed.

Sixteen rows are sorted side by side, so that every swap is a vector operation whatever the distance of its wires, and
all arithmetic is in float64 whatever the dtype. A swap with inputs ``a`` (the wire that ends up smaller) and ``b``, ``d
= b - a`` and ``g = f(-beta d)`` returns ``a + d g`` and ``b - d g``. Its Jacobian ``[[1 - q, q], [q, 1 - q]]`` with
``q = g - beta d f'(beta d)`` is all that the backward pass of the values needs; the matrix also needs ``g`` and
``r = beta f'(beta d) = -dg/dd``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.polynomial import Chebyshev, Polynomial

__all__ = ["KINDS", "decide", "forward", "mass", "mass_transposed", "matrix", "matrix_transposed", "transposed"]

KINDS = {
    "logistic": 0,
    "cauchy": 1,
    "reciprocal": 2,
    "optimal": 3,
    "gaussian": 4,
    "linear": 5,
    "cubic": 6,
    "quintic": 7,
    "logistic_phi": 8,
}

_LANES = 16
_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693145751953125  # 16 bits of ln 2: k times it is exact
_LN2_LOW = 1.42860682030941723212e-6
_TAN_PI_8 = math.sqrt(2) - 1


def _polynomial(function: Callable[[Any], Any], degree: int, low: float, high: float) -> tuple[float, ...]:
    """Coefficients, constant first, of the interpolation of ``function`` in the Chebyshev points of an interval."""
    fit = Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(float(c) for c in fit.convert(kind=Polynomial).coef)


# Both are exact to rounding. They are written out below, as a loop over them would hide the vector operations.
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10 = _polynomial(np.exp, 10, -0.3466, 0.3466)
_A0, _A1, _A2, _A3, _A4, _A5, _A6, _A7, _A8, _A9, _A10 = _polynomial(
    lambda z: np.arctan(np.sqrt(z)) / np.sqrt(z), 10, 0.0, _TAN_PI_8**2
)


@njit(inline="always")
def _exp(x: Any) -> Any:
    """``exp`` of ``x <= 0`` without a call, so that the loop around it becomes vector code."""
    x = max(x, -708.0)
    k = math.floor(x * _LOG2_E + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    series = _E6 + r * (_E7 + r * (_E8 + r * (_E9 + r * _E10)))
    series = _E0 + r * (_E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * series)))))
    return series * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@njit(inline="always")
def _atan(x: Any) -> Any:
    """``arctan`` of ``|x| <= tan(pi/8)``."""
    square = x * x
    series = _A6 + square * (_A7 + square * (_A8 + square * (_A9 + square * _A10)))
    series = _A0 + square * (_A1 + square * (_A2 + square * (_A3 + square * (_A4 + square * (_A5 + square * series)))))
    return x * series


@njit(inline="always")
def _logistic(t: Any) -> Any:
    e = _exp(-4 * t)
    return e / (1 + e), 4 * e / ((1 + e) * (1 + e))


@njit(inline="always")
def _cauchy(t: Any) -> Any:
    u = math.pi * t
    near, far = u < _TAN_PI_8, u > 1 / _TAN_PI_8
    top = 1.0 if far else (u if near else u - 1)
    bottom = u if far else (1.0 if near else u + 1)
    angle = _atan(top / bottom) / math.pi
    return angle if far else ((0.5 if near else 0.25) - angle), 1 / (1 + u * u)


@njit(inline="always")
def _reciprocal(t: Any) -> Any:
    h = 1 / (1 + 2 * t)
    return 0.5 * h, h * h


@njit(inline="always")
def _optimal(t: Any) -> Any:
    h = 0.25 / max(t, 0.25)
    return (0.5 - t) if t <= 0.25 else 0.25 * h, h * h


@njit(inline="always")
def _gaussian(t: Any) -> Any:
    z = math.sqrt(math.pi) * t
    return 0.5 * math.erfc(z), math.exp(-z * z)


@njit(inline="always")
def _linear(t: Any) -> Any:
    p = max(0.5 - t, 0.0)
    return p, 1.0 if p > 0 else 0.0


@njit(inline="always")
def _cubic(t: Any) -> Any:
    p = max(0.5 - t / 1.5, 0.0)
    return p * p * (3 - 2 * p), 4 * p * (1 - p)


@njit(inline="always")
def _quintic(t: Any) -> Any:
    p = max(0.5 - t / 1.875, 0.0)
    return p * p * p * (10 - p * (15 - 6 * p)), 16 * p * p * (1 - p) * (1 - p)


@njit(inline="always")
def _logistic_phi(t: Any) -> Any:
    t = min(t, 1e6)
    square = t * t + 1e-8
    power = square**-0.125
    e = _exp(-4 * t * power)
    return e / (1 + e), 4 * power * (1 - 0.25 * t * t / square) * e / ((1 + e) * (1 + e))


@njit(inline="always")
def _tails(kind: Any, t: Any, small: Any, slope: Any) -> None:
    """Write ``f(-|t|)``, the side where no digits cancel, and ``f'(t)`` of every lane; a vector loop a distribution."""
    if kind == 0:
        for k in range(_LANES):
            small[k], slope[k] = _logistic(abs(t[k]))
    elif kind == 1:
        for k in range(_LANES):
            small[k], slope[k] = _cauchy(abs(t[k]))
    elif kind == 2:
        for k in range(_LANES):
            small[k], slope[k] = _reciprocal(abs(t[k]))
    elif kind == 3:
        for k in range(_LANES):
            small[k], slope[k] = _optimal(abs(t[k]))
    elif kind == 4:
        for k in range(_LANES):
            small[k], slope[k] = _gaussian(abs(t[k]))
    elif kind == 5:
        for k in range(_LANES):
            small[k], slope[k] = _linear(abs(t[k]))
    elif kind == 6:
        for k in range(_LANES):
            small[k], slope[k] = _cubic(abs(t[k]))
    elif kind == 7:
        for k in range(_LANES):
            small[k], slope[k] = _quintic(abs(t[k]))
    else:
        for k in range(_LANES):
            small[k], slope[k] = _logistic_phi(abs(t[k]))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def forward(
    x: Any, low: Any, high: Any, steepness: Any, kind: Any, hard: Any, sort: Any, q: Any, g: Any, r: Any
) -> None:
    """Send ``x`` ``[rows, n]`` through the swaps ``(low[p], high[p])``.

    Writes the outputs to ``sort`` ``[rows, n]`` and, unless they are empty, ``q``, ``g`` and ``r`` ``[blocks, swaps,
    min(16, rows)]``. ``hard`` swaps without error; then these are of the soft swap at the hard inputs.
    """
    rows, n = x.shape
    wires = np.zeros((n, _LANES))
    t, small, slope, weight = np.empty(_LANES), np.empty(_LANES), np.empty(_LANES), np.empty(_LANES)
    for block in range((rows + _LANES - 1) // _LANES):
        first = block * _LANES
        width = min(_LANES, rows - first)
        for lane in range(width):
            for i in range(n):
                wires[i, lane] = x[first + lane, i]
        for p in range(low.size):
            i, j = low[p], high[p]
            for k in range(_LANES):
                t[k] = steepness * (wires[j, k] - wires[i, k])
            _tails(kind, t, small, slope)
            for k in range(_LANES):
                a, b = wires[i, k], wires[j, k]
                # Where t is infinite or NaN (inf - inf) the swap is the hard one: 0 * inf must not appear.
                finite = abs(t[k]) < np.inf
                weight[k] = (small[k] if t[k] >= 0 else 1 - small[k]) if finite else (0.0 if a <= b else 1.0)
                slope[k] = slope[k] if finite else 0.0
                t[k] = t[k] if finite else 0.0
                soft = finite and not hard
                moved = (b - a) * weight[k]
                wires[i, k] = a + moved if soft else min(a, b)
                wires[j, k] = b - moved if soft else max(a, b)
            if q.size:
                for k in range(q.shape[2]):
                    q[block, p, k] = weight[k] - t[k] * slope[k]
            if g.size:
                for k in range(g.shape[2]):
                    g[block, p, k] = weight[k]
                    r[block, p, k] = steepness * slope[k]
        for lane in range(width):
            for i in range(n):
                sort[first + lane, i] = wires[i, lane]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def transposed(cotangent: Any, low: Any, high: Any, q: Any, injected: Any, out: Any) -> None:
    """Transpose the Jacobian of :func:`forward`: ``cotangent`` ``[rows, n]`` back to the input ``[rows, n]``.

    ``injected`` ``[rows, swaps]`` (or empty) is the cotangent of every difference ``b - a``, from the matrix.
    """
    rows, n = out.shape
    wires = np.zeros((n, _LANES))
    extra = np.zeros(_LANES)
    for block in range((rows + _LANES - 1) // _LANES):
        first = block * _LANES
        width = min(_LANES, rows - first)
        for lane in range(width):
            for i in range(n):
                wires[i, lane] = cotangent[first + lane, i]
        for p in range(low.size - 1, -1, -1):
            i, j = low[p], high[p]
            if injected.size:
                for lane in range(width):
                    extra[lane] = injected[first + lane, p]
            for lane in range(q.shape[2]):
                a, b = wires[i, lane], wires[j, lane]
                moved = (b - a) * q[block, p, lane] - extra[lane]
                wires[i, lane] = a + moved
                wires[j, lane] = b - moved
        for lane in range(width):
            for i in range(n):
                out[first + lane, i] = wires[i, lane]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def matrix(low: Any, high: Any, g: Any, out: Any) -> None:
    """Apply the swaps with the weights ``g`` of :func:`forward` to the identity: ``out`` ``[rows, n, n]``."""
    rows, n = out.shape[0], out.shape[1]
    weights = np.empty(low.size)
    columns = np.empty((n, _LANES))
    for row in range(rows):
        for p in range(low.size):
            weights[p] = g[row // _LANES, p, row % _LANES]
        for first in range(0, n, _LANES):
            width = min(_LANES, n - first)
            columns[:] = 0.0
            for k in range(width):
                columns[first + k, k] = 1.0
            for p in range(low.size):
                i, j, weight = low[p], high[p], weights[p]
                for k in range(_LANES):
                    moved = (columns[j, k] - columns[i, k]) * weight
                    columns[i, k] += moved
                    columns[j, k] -= moved
            for i in range(n):
                for k in range(width):
                    out[row, i, first + k] = columns[i, k]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def matrix_transposed(cotangent: Any, low: Any, high: Any, g: Any, r: Any, decided: Any, out: Any) -> None:
    """Return ``out`` ``[rows, swaps]``, the cotangent of every ``b - a``, from that of the matrix ``[rows, n, n]``.

    ``decided`` ``[rows, swaps]`` (or empty) are the hard swaps of the forward pass, 1 where the wires changed places.
    The columns of the matrix are independent, so sixteen at a time go forward (keeping what each swap mixed) and back.
    """
    rows, n = cotangent.shape[0], cotangent.shape[1]
    weights = np.empty(low.size)
    columns = np.empty((n, _LANES))
    differences = np.empty((low.size, _LANES), cotangent.dtype)
    for row in range(rows):
        for p in range(low.size):
            weights[p] = g[row // _LANES, p, row % _LANES]
            out[row, p] = 0.0
        for first in range(0, n, _LANES):
            width = min(_LANES, n - first)
            columns[:] = 0.0
            for k in range(width):
                columns[first + k, k] = 1.0
            for p in range(low.size):
                i, j = low[p], high[p]
                weight = decided[row, p] if decided.size else weights[p]
                for k in range(_LANES):
                    difference = columns[j, k] - columns[i, k]
                    differences[p, k] = difference
                    columns[i, k] += difference * weight
                    columns[j, k] -= difference * weight
            columns[:] = 0.0
            for i in range(n):
                for k in range(width):
                    columns[i, k] = cotangent[row, i, first + k]
            for p in range(low.size - 1, -1, -1):
                i, j, weight = low[p], high[p], weights[p]
                total = 0.0
                for k in range(_LANES):
                    difference = columns[j, k] - columns[i, k]
                    total -= difference * differences[p, k]
                    columns[i, k] += difference * weight
                    columns[j, k] -= difference * weight
                out[row, p] += total
        for p in range(low.size):
            # The weight falls with the difference: dg/dd = -r.
            out[row, p] *= -r[row // _LANES, p, row % _LANES]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def mass(low: Any, high: Any, g: Any, group: Any, differences: Any, out: Any) -> None:
    """Send the indicator of the last ``group`` places through the swaps in reverse: ``out`` ``[rows, n]``.

    ``g`` are the weights of :func:`forward`. Unless it is empty, ``differences`` ``[blocks, swaps, lanes]`` keeps what
    each swap mixed.
    """
    rows, n = out.shape
    wires = np.empty((n, _LANES))
    for block in range((rows + _LANES - 1) // _LANES):
        first = block * _LANES
        width = min(_LANES, rows - first)
        for i in range(n):
            wires[i, :] = 1.0 if i >= n - group else 0.0
        for p in range(low.size - 1, -1, -1):
            i, j = low[p], high[p]
            for k in range(g.shape[2]):
                difference = wires[j, k] - wires[i, k]
                wires[i, k] += difference * g[block, p, k]
                wires[j, k] -= difference * g[block, p, k]
                if differences.size:
                    differences[block, p, k] = difference
        for lane in range(width):
            for i in range(n):
                out[first + lane, i] = wires[i, lane]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def mass_transposed(cotangent: Any, low: Any, high: Any, g: Any, r: Any, differences: Any, out: Any) -> None:
    """Return ``out`` ``[rows, swaps]``, the cotangent of every ``b - a``, from that of :func:`mass` ``[rows, n]``."""
    rows, n = cotangent.shape
    wires = np.zeros((n, _LANES))
    for block in range((rows + _LANES - 1) // _LANES):
        first = block * _LANES
        width = min(_LANES, rows - first)
        for lane in range(width):
            for i in range(n):
                wires[i, lane] = cotangent[first + lane, i]
        for p in range(low.size):
            i, j = low[p], high[p]
            for k in range(width):
                difference = wires[j, k] - wires[i, k]
                # The weight falls with the difference: dg/dd = -r.
                out[first + k, p] = difference * differences[block, p, k] * r[block, p, k]
                wires[i, k] += difference * g[block, p, k]
                wires[j, k] -= difference * g[block, p, k]


@njit(cache=True, nogil=True)
def decide(rank: Any, low: Any, high: Any, out: Any) -> None:
    """Sort the distinct integers ``rank`` ``[rows, n]``; ``out`` ``[rows, swaps]`` is 1 where wires change places."""
    rows = rank.shape[0]
    for row in range(rows):
        wires = rank[row].copy()
        for p in range(low.size):
            i, j = low[p], high[p]
            change = wires[j] < wires[i]
            out[row, p] = 1.0 if change else 0.0
            if change:
                wires[i], wires[j] = wires[j], wires[i]
