"""Chaotic systems with known physics: a flow of three numbers, a double pendulum, two discs that collide in a box.

Multiples are added by ``alpha=`` where they can be: in forward mode torch spends 0.2 ms on a product with a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_integer, check_positive, check_scalar, check_shape
from pullback.core.shapes import Float, Scalar
from pullback.core.transforms import can_look

__all__ = ["colliding_discs", "double_pendulum", "lorenz", "rk4_step"]

_OVERLAP = 1e-2
"""What rounding in half precision may make of a contact."""


def rk4_step(
    field: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Float[Tensor, "*shape"], h: float
) -> Float[Tensor, "*shape"]:
    """Return one step of the classical Runge-Kutta method, as a plain map ``y -> y(t + h)`` to be iterated.

    Args:
        field: ``field(t, y)``.
        t: time.
        y: the state.
        h: length of the step.

    Raises:
        TypeError: ``field`` is not callable.

    Example:
        >>> y = rk4_step(lambda t, y: -y, torch.zeros(()), torch.ones(1), 0.1)
        >>> round(float(y), 4)  # exp(-0.1)
        0.9048

    References:
        Kutta (1901), Beitrag zur näherungsweisen Integration totaler Differentialgleichungen.
    """
    check_callable("field", field)
    k1 = field(t, y)
    k2 = field(t + h / 2, torch.add(y, k1, alpha=h / 2))
    k3 = field(t + h / 2, torch.add(y, k2, alpha=h / 2))
    k4 = field(t + h, torch.add(y, k3, alpha=h))
    return torch.add(torch.add(y, k1 + k4, alpha=h / 6), k2 + k3, alpha=h / 3)


def lorenz(t: Tensor, y: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Convection in three numbers: ``x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 8/3 z``.

    Its Lyapunov exponents are 0.906, 0 and -14.572; they sum to the divergence, -41/3.

    Args:
        t: time, unused.
        y: ``[*batch, 3]``.

    Example:
        >>> lorenz(torch.zeros(1), torch.tensor([1.0, 1.0, 3.0])).tolist()
        [0.0, 24.0, -7.0]

    References:
        Lorenz (1963), Deterministic nonperiodic flow.
    """
    check_shape("y", y, (3,))
    a, b, c = y.unbind(-1)
    linear = torch.tensor([[-10.0, 28, 0], [10, -1, 0], [0, 0, -8 / 3]], dtype=y.dtype, device=y.device)
    return y @ linear + torch.stack([torch.zeros_like(a), -a * c, a * b], -1)


def double_pendulum(
    t: Tensor, y: Float[Tensor, "*batch 4"], torque: float | Tensor = 0.0, friction: float | Tensor = 0.0
) -> Float[Tensor, "*batch 4"]:
    """Two rods of 1 m with 1 kg at their ends, hanging from each other, under 9.81 m/s^2.

    Without torque and friction it keeps its energy
    ``u^2 + v^2 / 2 + u v cos(a - b) - 9.81 (2 cos a + cos b)``, and is chaotic where that is large.

    Args:
        t: time, unused.
        y: ``[*batch, 4]`` angles ``a`` and ``b`` of both rods from the vertical [rad], their rates ``u`` and ``v``.
        torque: on the first rod [N m]; a number or ``[*batch]``.
        friction: deceleration by the rate [1/s]; a number or ``[*batch]``.

    Returns:
        Rates and accelerations.

    Example:
        >>> double_pendulum(torch.zeros(1), torch.tensor([0.0, 0.0, 1.0, 0.0])).tolist()
        [1.0, 0.0, 0.0, 0.0]

    References:
        Landau, Lifshitz, Mechanics, section 5, problem 1.
    """
    check_shape("y", y, (4,))
    g = 9.81
    a, b, u, v = y.unbind(-1)
    c, n = (a - b).cos(), (a - b).sin()
    inertia = 2 - c * c
    first = torch.add(torch.add(torque - n * (v * v + u * u * c), a.sin(), alpha=-2 * g), b.sin() * c, alpha=g)
    second = n * torch.add(v * v * c, torch.add(u * u, a.cos(), alpha=g), alpha=2) - c * torque
    return torch.stack([u, v, first / inertia - friction * u, second / inertia - friction * v], -1)


def colliding_discs(
    state: Float[Tensor, "*batch 2 2 2"],
    mass: Scalar = 1.0,
    *,
    duration: float = 0.2,
    radius: float = 0.15,
    contacts: int = 4,
) -> Float[Tensor, "*batch 2 2 2"]:
    """Let two discs fly and collide elastically in the unit box, exactly, from contact to contact.

    Derivatives take the times of the contacts into account; they exist wherever the order of contacts does not change.

    Args:
        state: ``[*batch, 2, 2, 2]`` position or velocity, disc, axis; discs inside of the box and apart.
        mass: of the second disc, > 0, the first has 1; a number or a tensor without dimensions.
        duration: of the flight, > 0.
        radius: of both, in (0, 1/4).
        contacts: >= 1, the most that are resolved; the flight ends at the last of them.

    Returns:
        The state after ``duration``.

    Raises:
        ValueError: ``state`` has another shape, discs outside of the box or over each other, or velocities that are not
            finite; or a number is out of range.

    Example:
        >>> head_on = torch.tensor([[[0.2, 0.5], [0.8, 0.5]], [[1.0, 0.0], [-1.0, 0.0]]])
        >>> [round(v, 2) for v in colliding_discs(head_on, duration=0.25)[0, :, 0].tolist()]  # they met after 0.15
        [0.25, 0.75]

    References:
        Alder, Wainwright (1959), Studies in molecular dynamics.
    """
    check_shape("state", state, (2, 2, 2))
    check_scalar("mass", mass)
    check_positive("duration", duration)
    check_positive("radius", radius)
    check_integer("contacts", contacts, 1)
    if not radius < 0.25:
        raise ValueError(f"radius must be < 0.25, got {radius}")
    x, v = state.unbind(-3)
    if can_look(state):
        distance = torch.linalg.vector_norm((x[..., 1, :] - x[..., 0, :]).detach(), dim=-1)
        inside = ((x - 0.5).abs() <= 0.5 - radius + _OVERLAP).all() & (distance >= 2 * radius - _OVERLAP).all()
        if not bool(inside & torch.isfinite(v).all()):
            raise ValueError("state must have discs inside of the unit box and apart, with finite velocities")
    left = torch.full_like(x[..., 0, 0], duration)
    for _ in range(contacts):
        gap = torch.where(v > 0, 1 - radius - x, x - radius)
        speed = torch.where(v == 0, 1.0, v.abs())
        walls = torch.where(v == 0, math.inf, (gap / speed).clamp_min(0)).flatten(-2)
        apart, closing = x[..., 1, :] - x[..., 0, :], v[..., 1, :] - v[..., 0, :]
        b, a = (apart * closing).sum(-1), closing.square().sum(-1)
        square = b * b - a * (apart.square().sum(-1) - 4 * radius**2)
        meets = (b < 0) & (square > 0)
        root, a = torch.where(meets, square, 1.0).sqrt(), torch.where(meets, a, 1.0)
        each_other = torch.where(meets, ((-b - root) / a).clamp_min(0), math.inf)
        soonest, which = torch.cat([walls, each_other[..., None]], -1).min(-1)
        met, move = soonest <= left, torch.minimum(soonest, left)
        x, left = x + move[..., None, None] * v, left - move
        wall = (which[..., None] == torch.arange(4, device=x.device)) & met[..., None]
        normal = (x[..., 1, :] - x[..., 0, :]) / (2 * radius)
        push = torch.where(met & (which == 4), 2 / (1 + 1 / mass) * (normal * closing).sum(-1), 0.0)[..., None] * normal
        v = torch.where(wall.unflatten(-1, (2, 2)), -v, v) + torch.stack([push, -push / mass], -2)
    return torch.stack([x, v], -3)
