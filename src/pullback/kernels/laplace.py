"""Products with the Laplace kernel ``K_ij = exp(-|y_i - y_j|)`` of sorted points, in O(n) each.

For sorted points ``K`` is semiseparable: the part left of i is ``A_i = (A_{i-1} + V_{i-1}) exp(y_{i-1} - y_i)``, one
scan from each side, every exponent <= 0. The same scans run the symmetric Sinkhorn iteration and its linear systems.

Every function takes ``y [b, n]`` ascending and detached, and has a compiled form (numba, on the CPU) and a plain form,
taken on other devices and where numba is not installed: its scans combine pairs, pairs of pairs and so on, O(n log n)
time and O(n) memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pullback.kernels.compiled import compiled, over_rows

__all__ = ["balance", "laplace_product", "laplace_product_plain", "softsort", "solve_balanced"]


def laplace_product(y: Tensor, v: Tensor, signed: bool = False) -> Tensor:
    """Return ``sum_j s_ij exp(-|y_i - y_j|) v_cj``, with ``s_ij = 1`` or (``signed``) ``sign(y_i - y_j)``.

    Args:
        y: ``[b, n]`` ascending.
        v: ``[b, c, n]`` channels of weights.
        signed: take the antisymmetric kernel, which is what derivatives need.

    Returns:
        ``[b, c, n]``.

    Example:
        >>> laplace_product(torch.zeros(1, 3), torch.ones(1, 1, 3)).tolist()
        [[[3.0, 3.0, 3.0]]]
    """
    if y.device.type != "cpu" or _scans() is None:
        return laplace_product_plain(y, v, signed)
    out = torch.zeros_like(v, memory_format=torch.contiguous_format)
    over_rows(_scans()[0], y.contiguous().numpy(), v.contiguous().numpy(), signed, out.numpy())  # type: ignore[index]
    return out


def laplace_product_plain(y: Tensor, v: Tensor, signed: bool = False) -> Tensor:
    """Return the same as :func:`laplace_product` by scans of torch's own operations.

    Example:
        >>> laplace_product_plain(torch.tensor([[0.0, 0.0, 200.0]]), torch.ones(1, 1, 3)).tolist()
        [[[2.0, 2.0, 1.0]]]
    """
    if not v.numel():
        return v.clone()
    decay = torch.exp(y[:, :-1] - y[:, 1:]).unsqueeze(1)
    left, right = _scan(v, decay), _scan(v.flip(-1), decay.flip(-1)).flip(-1)
    if not signed:
        return left + right - v
    # Tied points have sign 0: each takes the sums beyond its ties.
    index = torch.arange(y.shape[-1], device=y.device)
    new = torch.nn.functional.pad(y[:, 1:] != y[:, :-1], (1, 0), value=True)
    first = torch.where(new, index, 0).cummax(-1).values.unsqueeze(1).expand_as(v)
    ends = torch.nn.functional.pad(new[:, 1:], (0, 1), value=True)
    last = torch.where(ends, index, y.shape[-1]).flip(-1).cummin(-1).values.flip(-1).unsqueeze(1).expand_as(v)
    before = torch.nn.functional.pad(left[..., :-1] * decay, (1, 0))
    after = torch.nn.functional.pad(right[..., 1:] * decay, (0, 1))
    return before.gather(-1, first) - after.gather(-1, last)


def _scan(v: Tensor, decay: Tensor) -> Tensor:
    """Return ``s_i = v_i + decay_{i-1} s_{i-1}`` for ``v [b, c, n]`` and ``decay [b, 1, n - 1]`` in [0, 1].

    Each place has the sum of the last ``reach`` entries and the decay over them (Hillis, Steele 1986).
    """
    total = v
    over = torch.nn.functional.pad(decay, (1, 0))  # nothing stands before the first place
    reach = 1
    while reach < v.shape[-1]:
        total = torch.cat([total[..., :reach], total[..., reach:] + over[..., reach:] * total[..., :-reach]], -1)
        over = torch.cat([over[..., :reach], over[..., reach:] * over[..., :-reach]], -1)
        reach *= 2
    return total


def balance(y: Tensor) -> Tensor:
    """Return ``f [b, n]`` that makes ``exp(f_i - |y_i - y_j| + f_j)`` doubly stochastic (symmetric Sinkhorn).

    The averaged step ``u <- sqrt(u / K u)`` contracts the error of ``log u`` by at least 1/2, as K is positive
    definite.

    Example:
        >>> f = balance(torch.tensor([[0.0, 1.0]]))
        >>> round(float(2 * f[0, 0]), 4) == round(-float(torch.log1p(torch.exp(torch.tensor(-1.0)))), 4)
        True
    """
    tolerance = 1e-14 if y.dtype == torch.float64 else 1e-7
    if y.device.type == "cpu" and _scans() is not None:
        f = torch.empty_like(y, memory_format=torch.contiguous_format)
        over_rows(_scans()[1], y.contiguous().numpy(), tolerance, f.numpy())  # type: ignore[index]
        return f
    u = laplace_product_plain(y, torch.ones_like(y).unsqueeze(1)).squeeze(1).rsqrt()
    for _ in range(80):
        k_u = laplace_product_plain(y, u.unsqueeze(1)).squeeze(1)
        done = bool(((u * k_u - 1).abs() <= tolerance).all())
        u = (u / k_u).sqrt()
        if done:
            break
    return u.log()


def solve_balanced(y: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Return ``w [b, n]`` with ``(I + P) w = g``, ``P_ij = exp(f_i - |y_i - y_j| + f_j)`` doubly stochastic.

    P is positive semidefinite with row sums 1, so I + P has its spectrum in [1, 2] and the Chebyshev iteration gains a
    factor 5.8 a step whatever the size (Golub, Varga 1961).

    Example:
        >>> y = torch.zeros(1, 2)
        >>> solve_balanced(y, balance(y), torch.tensor([[1.0, 1.0]])).tolist()
        [[0.5, 0.5]]
    """
    steps = 21 if y.dtype == torch.float64 else 11
    if y.device.type == "cpu" and _scans() is not None:
        out = torch.empty_like(g, memory_format=torch.contiguous_format)
        arrays = [t.contiguous().numpy() for t in (y, f, g)]
        over_rows(_scans()[2], *arrays, steps, out.numpy())  # type: ignore[index]
        return out
    u = f.exp()
    w, residual, direction, rho = torch.zeros_like(g), g, g / 1.5, 1 / 3
    for _ in range(steps):
        w = w + direction
        p_d = u * laplace_product_plain(y, (u * direction).unsqueeze(1)).squeeze(1)
        residual = residual - direction - p_d
        previous, rho = rho, 1 / (6 - rho)
        direction = rho * previous * direction + 4 * rho * residual
    return w


@cache
def _scans() -> tuple[Callable[..., Any], ...] | None:
    """Compile the scans, or return ``None`` where numba is not installed."""
    jit = compiled()
    if jit is None:
        return None
    import numpy as np

    @jit
    def product(y: Any, v: Any, signed: bool, out: Any) -> None:
        b, c, n = v.shape
        decay = np.empty(n)
        for k in range(b):
            for i in range(1, n):
                decay[i] = np.exp(y[k, i - 1] - y[k, i])
            for a in range(c):
                left, left_ties, right, right_ties = 0.0, 0.0, 0.0, 0.0
                for i in range(n):
                    if i > 0 and y[k, i] != y[k, i - 1]:
                        left = (left + left_ties) * decay[i]
                        left_ties = 0.0
                    j = n - 1 - i
                    if i > 0 and y[k, j] != y[k, j + 1]:
                        right = (right + right_ties) * decay[j + 1]
                        right_ties = 0.0
                    if signed:
                        out[k, a, i] += left
                        out[k, a, j] -= right
                        left_ties += v[k, a, i]
                    else:
                        left_ties += v[k, a, i]
                        out[k, a, i] += left + left_ties
                        out[k, a, j] += right + right_ties
                    right_ties += v[k, a, j]

    @jit
    def balanced(y: Any, tolerance: float, f: Any) -> None:
        def scan(decay: Any, v: Any, out: Any) -> None:
            n = v.shape[0]
            left, right = 0.0, 0.0
            for i in range(n):
                out[i] = 0.0
            for i in range(n):
                j = n - 1 - i
                left = left * decay[i] + v[i]
                out[i] += left
                out[j] += right
                right = (right + v[j]) * decay[j]

        b, n = y.shape
        decay, u, k_u = np.empty(n), np.empty(n), np.empty(n)
        for k in range(b):
            for i in range(n):
                u[i] = 1.0
                decay[i] = np.exp(y[k, i - 1] - y[k, i]) if i > 0 else 0.0
            scan(decay, u, k_u)
            for i in range(n):
                u[i] = 1.0 / np.sqrt(k_u[i])
            for _ in range(80):
                scan(decay, u, k_u)
                worst = 0.0
                for i in range(n):
                    worst = max(worst, abs(u[i] * k_u[i] - 1.0))
                    u[i] = np.sqrt(u[i] / k_u[i])
                if worst <= tolerance:
                    break
            for i in range(n):
                f[k, i] = np.log(u[i])

    @jit
    def solve(y: Any, f: Any, g: Any, steps: int, out: Any) -> None:
        def scan(decay: Any, v: Any, out: Any) -> None:
            n = v.shape[0]
            left, right = 0.0, 0.0
            for i in range(n):
                out[i] = 0.0
            for i in range(n):
                j = n - 1 - i
                left = left * decay[i] + v[i]
                out[i] += left
                out[j] += right
                right = (right + v[j]) * decay[j]

        b, n = y.shape
        decay, u, scaled, k_d = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
        w, residual, direction = np.empty(n), np.empty(n), np.empty(n)
        for k in range(b):
            for i in range(n):
                decay[i] = np.exp(y[k, i - 1] - y[k, i]) if i > 0 else 0.0
                u[i] = np.exp(f[k, i])
                w[i] = 0.0
                residual[i] = g[k, i]
                direction[i] = residual[i] / 1.5
            rho = 1.0 / 3.0
            for _ in range(steps):
                for i in range(n):
                    scaled[i] = u[i] * direction[i]
                scan(decay, scaled, k_d)
                previous = rho
                rho = 1.0 / (6.0 - rho)
                for i in range(n):
                    w[i] += direction[i]
                    residual[i] -= direction[i] + u[i] * k_d[i]
                    direction[i] = rho * previous * direction[i] + 4.0 * rho * residual[i]
            for i in range(n):
                out[k, i] = w[i]

    return product, balanced, solve


@cache
def softsort() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return SoftSort's mean ``K o / K 1`` and its gradient as one compiled pass each, or ``None`` without numba.

    ``mean(y, o, values, total)`` fills ``values [b, n]`` and ``total = K 1``. ``gradient(y, o, g, values, total,
    grad_o, grad_y)`` fills the last two: with ``p = g / total``, ``q = -p values``, ``grad_o = K p`` and
    ``grad_y = -(p S o + q S 1 + o S p + S q)``.

    Example:
        >>> softsort() is None or len(softsort())
        2
    """
    jit = compiled()
    if jit is None:
        return None
    import numpy as np

    @jit
    def mean(y: Any, o: Any, values: Any, total: Any) -> None:
        b, n = y.shape
        decay, weight, moment = np.empty(n + 1), np.empty(n), np.empty(n)
        for k in range(b):
            decay[0] = 0.0
            for i in range(1, n):
                decay[i] = np.exp(y[k, i - 1] - y[k, i])
            w, m = 0.0, 0.0
            for i in range(n):
                w = w * decay[i] + 1.0
                m = m * decay[i] + o[k, i]
                weight[i] = w
                moment[i] = m
            w, m = 0.0, 0.0
            for i in range(n - 1, -1, -1):
                weight[i] += w
                total[k, i] = weight[i]
                values[k, i] = (moment[i] + m) / weight[i]
                w = (w + 1.0) * decay[i]
                m = (m + o[k, i]) * decay[i]

    @jit
    def gradient(y: Any, o: Any, g: Any, values: Any, total: Any, grad_o: Any, grad_y: Any) -> None:
        b, n = y.shape
        p, q, decay = np.empty(n), np.empty(n), np.empty(n + 1)
        into, back = np.empty(n), np.empty(n)
        for k in range(b):
            for i in range(n):
                p[i] = g[k, i] / total[k, i]
                q[i] = -p[i] * values[k, i]
                decay[i] = np.exp(y[k, i - 1] - y[k, i]) if i > 0 else 0.0
            # Sums over the strictly smaller points, then those tied with the current one: ties have sign 0.
            s_o, s_1, s_p, s_q = 0.0, 0.0, 0.0, 0.0
            t_o, t_1, t_p, t_q = 0.0, 0.0, 0.0, 0.0
            for i in range(n):
                if i > 0 and y[k, i] != y[k, i - 1]:
                    s_o, s_1 = (s_o + t_o) * decay[i], (s_1 + t_1) * decay[i]
                    s_p, s_q = (s_p + t_p) * decay[i], (s_q + t_q) * decay[i]
                    t_o, t_1, t_p, t_q = 0.0, 0.0, 0.0, 0.0
                back[i] = -(p[i] * s_o + q[i] * s_1 + o[k, i] * s_p + s_q)
                t_o, t_1, t_p, t_q = t_o + o[k, i], t_1 + 1.0, t_p + p[i], t_q + q[i]
                into[i] = s_p + t_p
            s_o, s_1, s_p, s_q = 0.0, 0.0, 0.0, 0.0
            t_o, t_1, t_p, t_q = 0.0, 0.0, 0.0, 0.0
            for i in range(n - 1, -1, -1):
                if i < n - 1 and y[k, i] != y[k, i + 1]:
                    s_o, s_1 = (s_o + t_o) * decay[i + 1], (s_1 + t_1) * decay[i + 1]
                    s_p, s_q = (s_p + t_p) * decay[i + 1], (s_q + t_q) * decay[i + 1]
                    t_o, t_1, t_p, t_q = 0.0, 0.0, 0.0, 0.0
                grad_y[k, i] = back[i] + p[i] * s_o + q[i] * s_1 + o[k, i] * s_p + s_q
                grad_o[k, i] = into[i] + s_p + t_p
                t_o, t_1, t_p, t_q = t_o + o[k, i], t_1 + 1.0, t_p + p[i], t_q + q[i]

    return mean, gradient
