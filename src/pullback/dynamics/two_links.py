"""Control tasks of two rods that hang together: one to be swung up by its elbow, one to reach for a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.core.checks import check_positive
from pullback.dynamics.environments import Environment

__all__ = ["acrobot", "reacher"]

_GRAVITY = 9.81


def acrobot(
    *,
    torque: float = 4.0,
    length: float = 1.0,
    mass: float = 1.0,
    damping: float = 0.0,
    dt: float = 0.05,
    repeat: int = 2,
) -> Environment:
    r"""Return the swing-up of two uniform rods by a motor in the joint between them.

    With the angles of both rods from upright, :math:`\varphi_1, \varphi_2`, the elbow's torque :math:`u = \tau a -
    c\,(\dot\varphi_2 - \dot\varphi_1)` and :math:`\delta = \varphi_1 - \varphi_2`,

    .. math::
        m l^2 \big( \tfrac43 \ddot\varphi_1 + \tfrac12 \cos\delta\, \ddot\varphi_2 + \tfrac12 \sin\delta\,
        \dot\varphi_2^2 \big) &= \tfrac32 m g l \sin\varphi_1 - u \\
        m l^2 \big( \tfrac12 \cos\delta\, \ddot\varphi_1 + \tfrac13 \ddot\varphi_2 - \tfrac12 \sin\delta\,
        \dot\varphi_1^2 \big) &= \tfrac12 m g l \sin\varphi_2 + u

    and the reward :math:`\exp(-2 (2 - \cos\varphi_1 - \cos\varphi_2))`. The state is both angles [rad] and both rates
    [rad/s], the observation (cos, sin of the first, cos, sin of the second, rates / 8); it starts hanging.

    Args:
        torque: largest, > 0 [N m].
        length: l of each rod, > 0 [m].
        mass: m of each rod, > 0 [kg].
        damping: c >= 0 of the elbow [N m s].
        dt: integration step, > 0 [s].
        repeat: steps an action is held.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> task = acrobot()
        >>> hanging = torch.tensor([math.pi, math.pi, 0.0, 0.0])
        >>> [bool(abs(v) > 1e-3) for v in task.step(hanging, torch.ones(1)).state[2:]]  # both rods turn
        [True, True]

    References:
        Spong (1995), The swing up control problem for the acrobot; Tassa et al. (2018), DeepMind control suite, arXiv
        1801.00690.
    """
    for name, value in (("torque", torque), ("length", length), ("mass", mass)):
        check_positive(name, value)
    check_positive("damping", damping, zero=True)
    inertia, weight = mass * length**2, mass * _GRAVITY * length

    def field(s: Tensor, a: Tensor) -> Tensor:
        first, second, slow, fast = s.unbind(-1)
        elbow = torque * a[..., 0] - damping * (fast - slow)
        push = 1.5 * weight * first.sin() - elbow, 0.5 * weight * second.sin() + elbow
        return _rates(s, push[0] / inertia, push[1] / inertia)

    def reward(s: Tensor, a: Tensor) -> Tensor:
        return (-2 * (2 - s[..., 0].cos() - s[..., 1].cos())).exp()

    low, high = (math.pi - 0.1, math.pi - 0.1, -0.1, -0.1), (math.pi + 0.1, math.pi + 0.1, 0.1, 0.1)
    return Environment(4, 1, 6, field, reward, _turning, low, high, dt, repeat)


def reacher(
    *,
    torque: float = 1.0,
    length: float = 0.5,
    mass: float = 1.0,
    damping: float = 0.5,
    width: float = 0.1,
    dt: float = 0.05,
    repeat: int = 2,
) -> Environment:
    r"""Return an arm of two uniform rods in a horizontal plane, whose tip is to be brought to a point.

    Its equations are those of :func:`acrobot` without gravity, with a motor and friction in each joint. The target p is
    part of the state and rests:

    .. math:: r = \exp(-|l\,(\sin\varphi_1 + \sin\varphi_2, \cos\varphi_1 + \cos\varphi_2) - p|^2 / (2 w^2))

    The state is both angles [rad], both rates [rad/s] and p [m], the observation that of :func:`acrobot`, then p and
    the way from the tip to it. The target is drawn from a square that the arm can reach.

    Args:
        torque: largest of each joint, > 0 [N m].
        length: l of each rod, > 0 [m].
        mass: m of each rod, > 0 [kg].
        damping: >= 0 of each joint [N m s].
        width: w > 0 [m].
        dt: integration step, > 0 [s].
        repeat: steps an action is held.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> straight = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
        >>> reacher().step(straight, torch.zeros(2)).reward
        tensor(1.)

    References:
        Tassa et al. (2018), DeepMind control suite, arXiv 1801.00690: the task of this name.
    """
    for name, value in (("torque", torque), ("length", length), ("mass", mass), ("width", width)):
        check_positive(name, value)
    check_positive("damping", damping, zero=True)
    inertia = mass * length**2

    def field(s: Tensor, a: Tensor) -> Tensor:
        slow, fast = s[..., 2], s[..., 3]
        shoulder = torque * a[..., 0] - damping * slow
        elbow = torque * a[..., 1] - damping * (fast - slow)
        moving = _rates(s[..., :4], (shoulder - elbow) / inertia, elbow / inertia)
        return torch.cat([moving, torch.zeros_like(s[..., 4:])], -1)

    def way(angles: Sequence[Tensor], target: Tensor) -> Tensor:
        return target - length * torch.stack([part.sum(-1) for part in angles], -1)

    def reward(s: Tensor, a: Tensor) -> Tensor:
        missing = way((s[..., :2].sin(), s[..., :2].cos()), s[..., 4:])
        return (-missing.square().sum(-1) / (2 * width**2)).exp()

    def observe(s: Tensor) -> Tensor:
        sines, cosines = s[..., :2].sin(), s[..., :2].cos()
        turning = torch.stack([cosines, sines], -1).flatten(-2)
        return torch.cat([turning, s[..., 2:4] / 8, s[..., 4:], way((sines, cosines), s[..., 4:])], -1)

    far = 1.2 * length  # the corners of the square are at 1.7 l
    low, high = (-math.pi, -math.pi, 0.0, 0.0, -far, -far), (math.pi, math.pi, 0.0, 0.0, far, far)
    return Environment(6, 2, 10, field, reward, observe, low, high, dt, repeat)


def _turning(s: Tensor) -> Tensor:
    angles = torch.stack([s[..., :2].cos(), s[..., :2].sin()], -1)
    return torch.cat([angles.flatten(-2), s[..., 2:] / 8], -1)


def _rates(s: Tensor, push: Tensor, pull: Tensor) -> Tensor:
    """Rates of angles and speeds under generalised forces on both rods, in units of m l^2."""
    first, second, slow, fast = s.unbind(-1)
    bend = first - second
    turn, coupling = bend.sin() / 2, bend.cos() / 2
    push, pull = push - turn * fast.square(), pull + turn * slow.square()
    determinant = 4 / 9 - coupling.square()
    one, two = (push / 3 - coupling * pull) / determinant, (4 / 3 * pull - coupling * push) / determinant
    return torch.stack([slow, fast, one, two], -1)
