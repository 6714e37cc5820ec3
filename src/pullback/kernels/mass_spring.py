"""Steps of masses and springs above a ground, steered by a network or by given commands, and their pullback.

The plain forms are :meth:`pullback.dynamics.MassSpring.simulate` and :func:`pullback.dynamics.steer` with
``method="reference"``. Both loops hold the network beside the springs: a compiled function refers to no other one.
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
    """Return ``run(u, network, rest, stiffness, amplitude, anchors, numbers, whole, x, v)`` and its pullback.

    ``run`` fills the positions ``x`` and velocities ``v [steps + 1, b, n, 2]`` from their first entries under the
    lengths ``rest (1 + amplitude u)``, u ``[ceil(steps / hold), b, m]``, each for ``hold`` steps. ``numbers`` are the
    time step, the factor of drag, gravity, the height of the ground, friction (negative: masses stick), dashpot, the
    square of the softening and the scale of what the network sees; ``whole`` are ``hold`` and whether the network is of
    sines (1) or hyperbolic tangents (0).

    ``network`` is ``(drive [k, b, h], inward [2 n, h], outward [h, m], offset [m], noise [k, b, m], inner, outer)``,
    the last two being room for its hidden and outer layer before they are bent; with h = 0 there is none and ``u`` is
    given, otherwise ``run`` writes it. ``pullback(same arguments, grad_x, grad_v, grad_u, grad_drive, grad_inward,
    grad_outward, grad_offset, grad_rest, grad_stiffness)`` has the cotangents of ``x``, ``v`` and ``u`` in their place;
    afterwards the first entries of those of x and v are those of the start, that of u is the noise's or the commands',
    and the others are added to. Both are ``None`` without numba.

    Example:
        >>> kernels = mass_spring()
        >>> kernels is None or len(kernels)
        2
    """
    jit = compiled()
    return None if jit is None else (jit(_run), jit(_pullback))


def _run(
    u: Any,
    network: Any,
    rest: Any,
    stiffness: Any,
    amplitude: Any,
    anchors: Any,
    numbers: Any,
    whole: Any,
    x: Any,
    v: Any,
) -> None:
    dt, decay, gravity, ground, friction, dashpot, soft, scale = numbers
    hold, sines = whole
    drive, inward, outward, offset, noise, inner, outer = network
    springs, units = len(rest), inward.shape[1]
    steps, batch, nodes = x.shape[0] - 1, x.shape[1], x.shape[2]
    for t in range(steps):
        k = t // hold
        for i in range(batch):
            old_x, old_v, new_x, new_v = x[t, i], v[t, i], x[t + 1, i], v[t + 1, i]
            if units and t % hold == 0:
                hidden, out = inner[k, i], outer[k, i]
                for h in range(units):
                    hidden[h] = drive[k, i, h]
                for d in range(2):
                    middle = 0.0
                    for n in range(nodes):
                        middle += old_x[n, d] / nodes
                    for n in range(nodes):
                        seen = (old_x[n, d] - middle) / scale
                        for h in range(units):
                            hidden[h] += inward[2 * n + d, h] * seen
                for s in range(springs):
                    out[s] = offset[s]
                for h in range(units):
                    bent = np.sin(hidden[h]) if sines else np.tanh(hidden[h])
                    for s in range(springs):
                        out[s] += outward[h, s] * bent
                for s in range(springs):
                    bent = np.sin(out[s]) if sines else np.tanh(out[s])
                    u[k, i, s] = min(max(bent + noise[k, i, s], -1.0), 1.0)
            for n in range(nodes):
                new_v[n, 0] = old_v[n, 0] * decay
                new_v[n, 1] = old_v[n, 1] * decay + dt * gravity
            for s in range(springs):
                a, b = anchors[s, 0], anchors[s, 1]
                dx, dy = old_x[a, 0] - old_x[b, 0], old_x[a, 1] - old_x[b, 1]
                length = np.sqrt(dx * dx + dy * dy + soft)
                dx, dy = dx / length, dy / length
                speed = (old_v[a, 0] - old_v[b, 0]) * dx + (old_v[a, 1] - old_v[b, 1]) * dy
                wanted = rest[s] * (1 + amplitude[s] * u[k, i, s])
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
    network: Any,
    rest: Any,
    stiffness: Any,
    amplitude: Any,
    anchors: Any,
    numbers: Any,
    whole: Any,
    x: Any,
    v: Any,
    grad_x: Any,
    grad_v: Any,
    grad_u: Any,
    grad_drive: Any,
    grad_inward: Any,
    grad_outward: Any,
    grad_offset: Any,
    grad_rest: Any,
    grad_stiffness: Any,
) -> None:
    dt, decay, gravity, ground, friction, dashpot, soft, scale = numbers
    hold, sines = whole
    _, inward, outward, _, noise, inner, outer = network
    springs, units = len(rest), inward.shape[1]
    steps, batch, nodes = x.shape[0] - 1, x.shape[1], x.shape[2]
    free = np.empty((nodes, 2), x.dtype)  # velocities before the contact, then their cotangents
    lengths = np.empty((springs, 4), x.dtype)  # direction, length, push
    of_out = np.empty(springs, x.dtype)
    for t in range(steps - 1, -1, -1):
        k = t // hold
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
                wanted = rest[s] * (1 + amplitude[s] * u[k, i, s])
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
                longer = 1 + amplitude[s] * u[k, i, s]
                of_length = -stiffness[s] * of_push
                grad_u[k, i, s] += of_length * rest[s] * amplitude[s]
                grad_rest[s] += of_length * longer
                grad_stiffness[s] += of_push * (length - rest[s] * longer)
            if units and t % hold == 0:
                hidden, out, of_u, of_hidden = inner[k, i], outer[k, i], grad_u[k, i], grad_drive[k, i]
                for s in range(springs):
                    bent = np.sin(out[s]) if sines else np.tanh(out[s])
                    slope = np.cos(out[s]) if sines else 1 - bent * bent
                    if abs(bent + noise[k, i, s]) > 1:
                        of_u[s] = 0.0
                    of_out[s] = of_u[s] * slope
                    grad_offset[s] += of_out[s]
                for h in range(units):
                    bent = np.sin(hidden[h]) if sines else np.tanh(hidden[h])
                    slope, total = np.cos(hidden[h]) if sines else 1 - bent * bent, 0.0
                    for s in range(springs):
                        total += outward[h, s] * of_out[s]
                        grad_outward[h, s] += bent * of_out[s]
                    of_hidden[h] = slope * total
                for d in range(2):
                    middle, mean = 0.0, 0.0
                    for n in range(nodes):
                        middle += old_x[n, d] / nodes
                    for n in range(nodes):
                        seen, of_seen = (old_x[n, d] - middle) / scale, 0.0
                        for h in range(units):
                            grad_inward[2 * n + d, h] += seen * of_hidden[h]
                            of_seen += inward[2 * n + d, h] * of_hidden[h]
                        to_x[n, d] += of_seen / scale
                        mean += of_seen / scale / nodes
                    for n in range(nodes):
                        to_x[n, d] -= mean
