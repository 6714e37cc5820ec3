r"""What an adaptive step of a Runge-Kutta method is worth, and where the next begins: one pass over its stages.

Of M clocks (one for each sample, or one for all) with the error :math:`e=h\sum_iw_ik_i` of a step of h,

.. math:: \mathrm{err}=\sqrt{\mathrm{mean}\Big(\frac{e}{\mathrm{atol}+\mathrm{rtol}\max(|y|,|y'|)}\Big)^2},\qquad
    h'=h\,\mathrm{clip}(\mathrm{safety}\cdot\mathrm{err}^{-1/p},\,\mathrm{shrink},\,\mathrm{grow}).

The plain form is :mod:`pullback.dynamics.pace`, in torch's operations.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pullback.kernels.compiled import compiled

__all__ = ["step_control"]


@cache
def step_control() -> tuple[Any, Any, Any, Any] | None:
    """Return the compiled loops ``(first, second, judge, place)``, or ``None`` without numba.

    ``first`` and ``second`` are the two halves of the guess of a first step, with an evaluation of the field between;
    ``judge`` is the rest; ``place`` puts times and states of some samples among those of all.

    Example:
        >>> step_control() is None or len(step_control())
        4
    """
    jit = compiled(reassociate=True, nan=True)
    if jit is None:
        return None

    @jit
    def first(y, k, rtol, atol, pairs, t, span, sizes, guess):  # type: ignore[no-untyped-def]
        """Norms of y and k by the tolerances into ``sizes [2, M]``, the step of Euler's method into ``guess [M]``."""
        samples, size = y.shape
        clocks = len(t)
        sizes[:] = 0
        for n in range(samples):
            m = n if clocks > 1 else 0
            a = b = 0.0
            for c in range(size):
                v = abs(y[n, c])
                if pairs:
                    v = (y[n, c - c % 2] ** 2 + y[n, c - c % 2 + 1] ** 2) ** 0.5
                scale = v * rtol[c] + atol[c]
                a += (y[n, c] / scale) ** 2
                b += (k[n, c] / scale) ** 2
            sizes[0, m] += a
            sizes[1, m] += b
        count = max(1, size * samples // clocks // (2 if pairs else 1))
        for m in range(clocks):
            d0, d1 = (sizes[0, m] / count) ** 0.5, (sizes[1, m] / count) ** 0.5
            sizes[1, m] = d1
            tiny = 1e-6 * (span[m] if span[m] < 1e300 else 1 + abs(t[m]))
            h = tiny if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
            guess[m] = min(h, span[m])

    @jit
    def second(y, k, slope, rtol, atol, pairs, order, t, span, d1, guess, h):  # type: ignore[no-untyped-def]
        """The first step into ``h [M]``; ``d1`` is overwritten."""
        samples, size = y.shape
        clocks = len(t)
        change = h
        change[:] = 0
        for n in range(samples):
            m = n if clocks > 1 else 0
            a = 0.0
            for c in range(size):
                v = abs(y[n, c])
                if pairs:
                    v = (y[n, c - c % 2] ** 2 + y[n, c - c % 2 + 1] ** 2) ** 0.5
                a += ((slope[n, c] - k[n, c]) / (v * rtol[c] + atol[c])) ** 2
            change[m] += a
        count = max(1, size * samples // clocks // (2 if pairs else 1))
        for m in range(clocks):
            h0 = guess[m]
            d2 = (change[m] / count) ** 0.5 / (h0 if h0 > 0 else 1.0)
            most = max(d1[m], d2) if d2 == d2 else d2
            tiny = 1e-6 * (span[m] if span[m] < 1e300 else 1 + abs(t[m]))
            best = max(tiny, 1e-3 * h0) if most <= 1e-15 else (0.01 / most) ** (1.0 / order)
            found = min(100 * h0, best, span[m])
            h[m] = found if 0 < found < 1e300 else tiny

    @jit
    def judge(  # type: ignore[no-untyped-def]
        stages, weights, y, new, rtol, atol, pairs, options, t, t_next, step, h, end, floor, active,
        accept, alive, at, out,
    ):  # fmt: skip
        """Judge a step ``[M]`` from ``t`` to ``t_next`` and go on.

        ``options`` are the order and the numbers of the control; ``floor`` is the resolution of time. Written are
        ``accept`` and ``alive [M]``, in ``at [M]`` the time reached, and in ``out [3, M]`` the step proposed, and end
        and length of the next attempt. Returned are how many accepted, are under way after, and can go on no more.
        """
        order, safety, shrink, grow, smallest, largest, stretch = options
        samples, size = y.shape
        clocks = len(t)
        count = max(1, size * samples // clocks // (2 if pairs else 1))
        kinds = len(weights)
        taken, after, stuck = 0, 0, 0
        total = 0.0
        for n in range(samples):
            m = n if clocks > 1 else 0
            if m == n:
                total = 0.0
            if active[m]:
                for c in range(size):
                    e = 0.0
                    for i in range(kinds):
                        e += weights[i] * stages[i, n, c]
                    old, now = abs(y[n, c]), abs(new[n, c])
                    if pairs:
                        left = c - c % 2
                        old = (y[n, left] ** 2 + y[n, left + 1] ** 2) ** 0.5
                        now = (new[n, left] ** 2 + new[n, left + 1] ** 2) ** 0.5
                    scale = max(old, now) * rtol[c] + atol[c] + 0 * now  # not a number where the new state is none
                    total += (step[m] * e / scale) ** 2
            if clocks == 1 and n + 1 < samples:
                continue
            at[m], out[0, m] = t[m], h[m]
            accept[m] = alive[m] = False
            if active[m]:
                norm = (total / count) ** 0.5
                good = norm <= 1.0 or (step[m] <= smallest * 1.001 and norm < 1e300)
                factor = grow if norm == 0 else safety * norm ** (-1.0 / order)
                if factor != factor:
                    factor = shrink
                proposed = step[m] * min(max(factor, shrink), grow)
                if good:
                    accept[m] = True
                    taken += 1
                    at[m] = t_next[m]
                lost = not good and proposed <= floor[m]
                stuck += lost
                alive[m] = not lost and at[m] < end[m]
                after += alive[m]
                out[0, m] = proposed
            wide = min(max(out[0, m], smallest), largest)
            out[1, m] = end[m] if at[m] + stretch * wide >= end[m] else at[m] + wide
            out[2, m] = out[1, m] - at[m] if alive[m] else 0.0
        return taken, after, stuck

    @jit
    def place(rows, t, y, all_t, all_y):  # type: ignore[no-untyped-def]
        """Write row n of ``t [m, 1]`` and ``y [m, size]`` into row ``rows[n]`` of the others."""
        for n in range(len(rows)):
            all_t[rows[n], 0] = t[n, 0]
            for c in range(y.shape[1]):
                all_y[rows[n], c] = y[n, c]

    return first, second, judge, place
