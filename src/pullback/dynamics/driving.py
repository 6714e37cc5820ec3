"""How vehicles move in traffic: a bicycle that is steered, and a driver who follows another."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.checks import check_broadcast, check_floating, check_positive, check_same_dtype, check_shape
from pullback.core.shapes import Float

__all__ = ["bicycle_step", "intelligent_driver"]


def bicycle_step(
    state: Float[Tensor, "*#batch 4"],
    acceleration: Float[Tensor, "*#batch"],
    steering: Float[Tensor, "*#batch"],
    *,
    wheelbase: float = 2.7,
    dt: float = 0.25,
) -> Float[Tensor, "*batch 4"]:
    r"""Return where a vehicle is after a time in which it accelerates evenly and its front wheels are held.

    Its rear axle drives along a circle of curvature :math:`\kappa = \tan(\delta) / L`, exactly:

    .. math::
        v' = \max(v + a\,dt, 0), \quad d = \tfrac12 (v + v')\,dt, \quad \theta' = \theta + \kappa d, \quad
        p' = p + d\,\frac{\sin(\kappa d / 2)}{\kappa d / 2}
             \big(\cos(\theta + \tfrac{\kappa d}2), \sin(\theta + \tfrac{\kappa d}2)\big) .

    Args:
        state: ``[*batch, 4]`` x, y [m], heading [rad], speed [m/s], >= 0.
        acceleration: a, ``[*batch]`` [m/s^2]. A vehicle that brakes to a halt does so at the end of the time.
        steering: delta, ``[*batch]`` [rad], within a right angle to either side, positive to the left.
        wheelbase: L > 0 [m].
        dt: > 0 [s].

    Returns:
        ``[*batch, 4]`` the next state.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes do not fit, or a number is out of range.

    Example:
        >>> zero = torch.tensor(0.0)
        >>> bicycle_step(torch.tensor([0.0, 0.0, 0.0, 8.0]), zero, zero).tolist()
        [2.0, 0.0, 0.0, 8.0]

    References:
        Rajamani (2012), Vehicle dynamics and control, section 2.2.
    """
    given = {"state": state, "acceleration": acceleration, "steering": steering}
    for name, value in given.items():
        check_floating(name, value)
    check_shape("state", state, (4,))
    check_same_dtype(**given)
    batch = check_broadcast(
        state=tuple(state.shape[:-1]), acceleration=tuple(acceleration.shape), steering=tuple(steering.shape)
    )
    check_positive("wheelbase", wheelbase)
    check_positive("dt", dt)
    x, y, heading, speed = state.expand(*batch, 4).unbind(-1)
    after = (speed + dt * acceleration).clamp(min=0)
    distance = 0.5 * dt * (speed + after)
    half = 0.5 * distance * steering.tan() / wheelbase
    chord, middle = distance * torch.sinc(half / torch.pi), heading + half
    return torch.stack([x + chord * middle.cos(), y + chord * middle.sin(), heading + 2 * half, after], -1)


def intelligent_driver(
    speed: Float[Tensor, "*#batch"],
    gap: Float[Tensor, "*#batch"],
    closing: Float[Tensor, "*#batch"],
    desired: Float[Tensor, "*#batch"],
    *,
    acceleration: float = 2.0,
    braking: float = 3.0,
    headway: float = 1.2,
    standstill: float = 2.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the acceleration of a driver who would like to be fast and keeps a distance to the one ahead.

    .. math:: a \Big[ 1 - \Big(\frac v{v_0}\Big)^4 - \Big(\frac{s^*}{s}\Big)^2 \Big], \qquad
              s^* = s_0 + \max\Big( vT + \frac{v\,\Delta v}{2\sqrt{ab}}, 0 \Big)

    Args:
        speed: v >= 0, ``[*batch]`` [m/s].
        gap: s, ``[*batch]`` [m] to the rear of the one ahead; ``inf`` for a free road. Below 0.1 it counts as 0.1.
        closing: the speed less that of the one ahead, ``[*batch]`` [m/s].
        desired: v_0 > 0, ``[*batch]`` [m/s].
        acceleration: a > 0, from a standstill on a free road [m/s^2].
        braking: b > 0, that is felt as comfortable [m/s^2].
        headway: T >= 0 [s].
        standstill: s_0 >= 0, the gap in a jam [m].

    Returns:
        ``[*batch]`` [m/s^2].

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes do not fit, or a number is out of range.

    Example:
        >>> speed, far = torch.tensor([0.0, 10.0, 10.0]), torch.tensor([torch.inf, torch.inf, 14.0])
        >>> intelligent_driver(speed, far, torch.zeros(3), torch.tensor([10.0, 10.0, 20.0])).tolist()
        [2.0, 0.0, -0.125]

    References:
        Treiber, Hennecke, Helbing (2000), Congested traffic states in empirical observations and microscopic
        simulations, Physical Review E 62, equations 3 to 5.
    """
    given = {"speed": speed, "gap": gap, "closing": closing, "desired": desired}
    for name, value in given.items():
        check_floating(name, value)
    check_same_dtype(**given)
    check_broadcast(**{name: tuple(value.shape) for name, value in given.items()})
    check_positive("acceleration", acceleration)
    check_positive("braking", braking)
    check_positive("headway", headway, zero=True)
    check_positive("standstill", standstill, zero=True)
    wanted = standstill + (headway * speed + speed * closing / (2 * (acceleration * braking) ** 0.5)).clamp(min=0)
    return acceleration * (1 - (speed / desired) ** 4 - (wanted / gap.clamp(min=0.1)).square())
