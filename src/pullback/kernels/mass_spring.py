"""Steps of masses and springs above a ground, and their pullback: one pass over the springs a step.

The plain form is :meth:`pullback.dynamics.MassSpring.simulate` with ``method="reference"``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled

__all__ = ["mass_spring"]


@cache
def mass_spring() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return ``run(u, rest, stiffness, amplitude, anchors, numbers, x, v)`` and its pullback, ``None`` without numba.

    ``run`` fills the positions ``x`` and velocities ``v [steps + 1, b, n, 2]`` from their first entries under the
    lengths ``rest (1 + amplitude u)``, u ``[steps, b, m]``. ``numbers`` are the time step, the factor of drag, gravity,
    the height of the ground, friction (negative: masses stick), dashpot and the square of the softening.
    ``pullback(same arguments, grad_x, grad_v, grad_u, grad_rest, grad_stiffness)`` has the cotangents of ``x`` and
    ``v`` in ``grad_x`` and ``grad_v``; afterwards their first entries are those of the start.

    Example:
        >>> kernels = mass_spring()
        >>> kernels is None or len(kernels)
        2
    """
    jit = compiled()
    return None if jit is None else (jit(_run), jit(_pullback))


def _run(u: Any, rest: Any, stiffness: Any, amplitude: Any, anchors: Any, numbers: Any, x: Any, v: Any) -> None:
    dt, decay, gravity, ground, friction, dashpot, soft = numbers
    steps, batch, springs = u.shape
    nodes = x.shape[2]
    for t in range(steps):
        for i in range(batch):
            old_x, old_v, new_x, new_v = x[t, i], v[t, i], x[t + 1, i], v[t + 1, i]
            for n in range(nodes):
                new_v[n, 0] = old_v[n, 0] * decay
                new_v[n, 1] = old_v[n, 1] * decay + dt * gravity
            for s in range(springs):
                a, b = anchors[s, 0], anchors[s, 1]
                dx, dy = old_x[a, 0] - old_x[b, 0], old_x[a, 1] - old_x[b, 1]
                length = np.sqrt(dx * dx + dy * dy + soft)
                dx, dy = dx / length, dy / length
                speed = (old_v[a, 0] - old_v[b, 0]) * dx + (old_v[a, 1] - old_v[b, 1]) * dy
                wanted = rest[s] * (1 + amplitude[s] * u[t, i, s])
                push = -dt * (stiffness[s] * (length - wanted) + dashpot * speed)
                new_v[a, 0] += push * dx
                new_v[a, 1] += push * dy
                new_v[b, 0] -= push * dx
                new_v[b, 1] -= push * dy
            for n in range(nodes):
                vx, vy = new_v[n, 0], new_v[n, 1]
                new_x[n, 0] = old_x[n, 0] + dt * vx
                new_x[n, 1] = old_x[n, 1] + dt * vy
                if new_x[n, 1] < ground and vy < -1e-4:
                    above = old_x[n, 1] > ground
                    toi = (ground - old_x[n, 1]) / vy if above else 0.0
                    left = max(abs(vx) + friction * vy, 0.0) if friction >= 0 else 0.0
                    slid = left if vx >= 0 else -left
                    new_v[n, 0], new_v[n, 1] = slid, 0.0
                    new_x[n, 0] = old_x[n, 0] + toi * vx + (dt - toi) * slid
                    new_x[n, 1] = ground if above else old_x[n, 1]


def _pullback(
    u: Any,
    rest: Any,
    stiffness: Any,
    amplitude: Any,
    anchors: Any,
    numbers: Any,
    x: Any,
    v: Any,
    grad_x: Any,
    grad_v: Any,
    grad_u: Any,
    grad_rest: Any,
    grad_stiffness: Any,
) -> None:
    dt, decay, gravity, ground, friction, dashpot, soft = numbers
    steps, batch, springs = u.shape
    nodes = x.shape[2]
    free = np.empty((nodes, 2), x.dtype)  # velocities before the contact, then their cotangents
    lengths = np.empty((springs, 4), x.dtype)  # direction, length, push
    for t in range(steps - 1, -1, -1):
        for i in range(batch):
            old_x, old_v = x[t, i], v[t, i]
            to_x, to_v, of_x, of_v = grad_x[t, i], grad_v[t, i], grad_x[t + 1, i], grad_v[t + 1, i]
            for n in range(nodes):
                free[n, 0] = old_v[n, 0] * decay
                free[n, 1] = old_v[n, 1] * decay + dt * gravity
            for s in range(springs):
                a, b = anchors[s, 0], anchors[s, 1]
                dx, dy = old_x[a, 0] - old_x[b, 0], old_x[a, 1] - old_x[b, 1]
                length = np.sqrt(dx * dx + dy * dy + soft)
                dx, dy = dx / length, dy / length
                speed = (old_v[a, 0] - old_v[b, 0]) * dx + (old_v[a, 1] - old_v[b, 1]) * dy
                wanted = rest[s] * (1 + amplitude[s] * u[t, i, s])
                push = -dt * (stiffness[s] * (length - wanted) + dashpot * speed)
                lengths[s, 0], lengths[s, 1], lengths[s, 2], lengths[s, 3] = dx, dy, length, push
                free[a, 0] += push * dx
                free[a, 1] += push * dy
                free[b, 0] -= push * dx
                free[b, 1] -= push * dy
            for n in range(nodes):
                vx, vy = free[n, 0], free[n, 1]
                gx, gy = of_x[n, 0], of_x[n, 1]
                if old_x[n, 1] + dt * vy < ground and vy < -1e-4:
                    above = old_x[n, 1] > ground
                    toi = (ground - old_x[n, 1]) / vy if above else 0.0
                    slides = friction >= 0 and abs(vx) + friction * vy > 0
                    side = 1.0 if vx >= 0 else -1.0
                    slid = vx + side * friction * vy if slides else 0.0
                    along = of_v[n, 0] + (dt - toi) * gx if slides else 0.0
                    free[n, 0] = toi * gx + along
                    free[n, 1] = side * friction * along
                    to_x[n, 0] += gx
                    if above:
                        of_toi = gx * (vx - slid) / vy
                        to_x[n, 1] -= of_toi
                        free[n, 1] -= of_toi * toi
                    else:
                        to_x[n, 1] += gy
                else:
                    to_x[n, 0] += gx
                    to_x[n, 1] += gy
                    free[n, 0] = of_v[n, 0] + dt * gx
                    free[n, 1] = of_v[n, 1] + dt * gy
                to_v[n, 0] += decay * free[n, 0]
                to_v[n, 1] += decay * free[n, 1]
            for s in range(springs):
                a, b = anchors[s, 0], anchors[s, 1]
                ex, ey, length, push = lengths[s, 0], lengths[s, 1], lengths[s, 2], lengths[s, 3]
                gx, gy = free[a, 0] - free[b, 0], free[a, 1] - free[b, 1]
                of_push = -dt * (gx * ex + gy * ey)
                wx, wy = old_v[a, 0] - old_v[b, 0], old_v[a, 1] - old_v[b, 1]
                hx, hy = push * gx + dashpot * of_push * wx, push * gy + dashpot * of_push * wy
                along = hx * ex + hy * ey
                dx = stiffness[s] * of_push * ex + (hx - along * ex) / length
                dy = stiffness[s] * of_push * ey + (hy - along * ey) / length
                to_x[a, 0] += dx
                to_x[a, 1] += dy
                to_x[b, 0] -= dx
                to_x[b, 1] -= dy
                to_v[a, 0] += dashpot * of_push * ex
                to_v[a, 1] += dashpot * of_push * ey
                to_v[b, 0] -= dashpot * of_push * ex
                to_v[b, 1] -= dashpot * of_push * ey
                longer = 1 + amplitude[s] * u[t, i, s]
                of_length = -stiffness[s] * of_push
                grad_u[t, i, s] = of_length * rest[s] * amplitude[s]
                grad_rest[s] += of_length * longer
                grad_stiffness[s] += of_push * (length - rest[s] * longer)
