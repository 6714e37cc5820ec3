"""Small control tasks in plain torch: batched, differentiable, with a reward and an observation of every state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.core.transforms import can_look
from pullback.dynamics.chaotic import rk4_step

__all__ = ["Environment", "EnvironmentStep", "cartpole", "double_integrator", "pendulum", "point_mass"]

_GRAVITY = 9.81


class EnvironmentStep(NamedTuple):
    """What follows an action.

    Attributes:
        state: ``[*batch, n]`` reached.
        reward: ``[*batch]`` of the state reached, and of the action.
    """

    state: Float[Tensor, "*batch n"]
    reward: Float[Tensor, "*batch"]


@dataclass(frozen=True)
class Environment:
    r"""A control task :math:`\dot s = f(s, a)`, acted on in intervals of ``repeat * dt`` with a in [-1, 1].

    Attributes:
        state_size: n.
        action_size: m.
        observation_size: o.
        field: ``field(state, action)``, the rate of the state.
        reward: ``reward(state, action)``, ``[*batch]``.
        observe: ``observe(state)``, ``[*batch, o]``: angles as cosines and sines.
        low: where :meth:`reset` draws from, n numbers.
        high: n numbers, at least ``low``.
        dt: length of an integration step (Runge-Kutta of order 4) [s].
        repeat: integration steps an action is held.

    Raises:
        ValueError: a size or length out of range, or bounds of another length than n.

    Example:
        >>> task = pendulum()
        >>> state = task.reset(3, generator=torch.Generator().manual_seed(0))
        >>> after = task.step(state, torch.zeros(3, 1))
        >>> task.observe(after.state).shape, after.reward.shape
        (torch.Size([3, 3]), torch.Size([3]))
    """

    state_size: int
    action_size: int
    observation_size: int
    field: Callable[[Tensor, Tensor], Tensor]
    reward: Callable[[Tensor, Tensor], Tensor]
    observe: Callable[[Tensor], Tensor]
    low: Sequence[float]
    high: Sequence[float]
    dt: float = 0.05
    repeat: int = 1

    def __post_init__(self) -> None:
        for name in ("state_size", "action_size", "observation_size", "repeat"):
            check_integer(name, getattr(self, name), 1)
        check_positive("dt", self.dt)
        if not len(self.low) == len(self.high) == self.state_size:
            raise ValueError(f"low and high must have {self.state_size} numbers, got {self.low} and {self.high}")

    def reset(
        self, *batch: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*batch n"]:
        """Draw states to start from, uniform between ``low`` and ``high``."""
        shape = [check_integer("batch", size, 0) for size in batch]
        low, high = (torch.tensor(list(bound), dtype=torch.float64) for bound in (self.low, self.high))
        device = drawing_device(generator, torch.device("cpu"))
        drawn = torch.rand(*shape, self.state_size, generator=generator, device=device, dtype=torch.float64)
        return (low.to(device) + (high - low).to(device) * drawn).to(dtype)

    def step(self, state: Float[Tensor, "*#batch n"], action: Float[Tensor, "*#batch m"]) -> EnvironmentStep:
        """Hold an action for ``repeat`` integration steps; the reward is that of the state reached.

        Raises:
            TypeError: a tensor is not floating, or the dtypes differ.
            ValueError: shapes do not fit, or an action is outside of [-1, 1].
        """
        check_shape("state", check_floating("state", state), (self.state_size,))
        check_shape("action", check_floating("action", action), (self.action_size,))
        check_same_dtype(state=state, action=action)
        batch = check_broadcast(state=tuple(state.shape[:-1]), action=tuple(action.shape[:-1]))
        if can_look(action) and not bool((action.detach().abs() <= 1).all()):
            raise ValueError(f"action must be in [-1, 1], got a largest size of {float(action.detach().abs().max())}")
        state, action = state.expand(*batch, self.state_size), action.expand(*batch, self.action_size)
        time = state.new_zeros(())
        for _ in range(self.repeat):
            state = rk4_step(lambda t, s: self.field(s, action), time, state, self.dt)
        return EnvironmentStep(state, self.reward(state, action))


def pendulum(
    *,
    torque: float = 4.0,
    length: float = 1.0,
    mass: float = 1.0,
    damping: float = 0.0,
    dt: float = 0.05,
    repeat: int = 4,
) -> Environment:
    r"""Return the swing-up of a pendulum: a motor too weak to lift it at once has to swing it.

    .. math:: \ddot\theta = \frac g l \sin\theta + \frac{\tau a - c\,\dot\theta}{m l^2}, \qquad
              r = \exp(-4 (1 - \cos\theta) - \tfrac1{10}\dot\theta^2)

    The state is the angle from upright [rad] and its rate [rad/s], the observation (cos, sin, rate / 8); it starts
    hanging. Below ``torque = m g l`` swinging is needed.

    Args:
        torque: largest, > 0 [N m].
        length: of the massless rod, > 0 [m].
        mass: at its end, > 0 [kg].
        damping: c >= 0 [N m s].
        dt: integration step, > 0 [s].
        repeat: steps an action is held.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> hanging, upright = torch.tensor([[math.pi, 0.0], [0.0, 0.0]])
        >>> [round(float(pendulum().step(s, torch.zeros(1)).reward), 3) for s in (hanging, upright)]
        [0.0, 1.0]

    References:
        Tassa et al. (2018), DeepMind control suite, arXiv 1801.00690: the equations with length 0.5, torque 1 and
        damping 0.1.
    """
    for name, value in (("torque", torque), ("length", length), ("mass", mass)):
        check_positive(name, value)
    check_positive("damping", damping, zero=True)
    pull, inertia = _GRAVITY / length, mass * length**2

    def field(s: Tensor, a: Tensor) -> Tensor:
        angle, rate = s.unbind(-1)
        return torch.stack([rate, pull * angle.sin() + (torque * a[..., 0] - damping * rate) / inertia], -1)

    def reward(s: Tensor, a: Tensor) -> Tensor:
        return (-4 * (1 - s[..., 0].cos()) - 0.1 * s[..., 1].square()).exp()

    def observe(s: Tensor) -> Tensor:
        return torch.stack([s[..., 0].cos(), s[..., 0].sin(), s[..., 1] / 8], -1)

    low, high = (math.pi - 0.3, -0.3), (math.pi + 0.3, 0.3)
    return Environment(2, 1, 3, field, reward, observe, low, high, dt, repeat)


def cartpole(
    *,
    force: float = 10.0,
    cart: float = 1.0,
    pole: float = 0.1,
    length: float = 1.0,
    dt: float = 0.02,
    repeat: int = 4,
) -> Environment:
    r"""Return the swing-up of a pole on a cart. With h half of the length of the uniform pole and F = force a,

    .. math:: \ddot\theta = \frac{g\sin\theta - \cos\theta\, (F + m h\dot\theta^2\sin\theta) / (M + m)}
              {h (4/3 - m \cos^2\theta / (M + m))}, \qquad
              \ddot x = \frac{F + m h (\dot\theta^2\sin\theta - \ddot\theta\cos\theta)}{M + m}

    and the reward :math:`\exp(-2 (1 - \cos\theta) - x^2 / 4)`. The state is x [m], the angle from upright [rad] and
    their rates, the observation (x, cos, sin, rate / 2, rate / 8); it starts hanging near x = 0.

    Args:
        force: largest, > 0 [N].
        cart: M > 0 [kg].
        pole: m > 0 [kg].
        length: of the pole, > 0 [m].
        dt: integration step, > 0 [s].
        repeat: steps an action is held.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> task = cartpole(repeat=1)
        >>> task.step(torch.zeros(4), torch.ones(1)).state[:2].sign().tolist()  # the pole falls back
        [1.0, -1.0]

    References:
        Barto, Sutton, Anderson (1983), Neuronlike adaptive elements that can solve difficult learning control
        problems, without friction; Tassa et al. (2018), arXiv 1801.00690, for its sizes.
    """
    for name, value in (("force", force), ("cart", cart), ("pole", pole), ("length", length)):
        check_positive(name, value)
    total, half = cart + pole, length / 2

    def field(s: Tensor, a: Tensor) -> Tensor:
        _, angle, speed, rate = s.unbind(-1)
        c, swing = angle.cos(), pole * half * rate.square() * angle.sin()
        pushed = (force * a[..., 0] + swing) / total
        turning = (_GRAVITY * angle.sin() - c * pushed) / (half * (4 / 3 - pole / total * c.square()))
        return torch.stack([speed, rate, pushed - pole * half / total * turning * c, turning], -1)

    def reward(s: Tensor, a: Tensor) -> Tensor:
        return (-2 * (1 - s[..., 1].cos()) - s[..., 0].square() / 4).exp()

    def observe(s: Tensor) -> Tensor:
        x, angle, speed, rate = s.unbind(-1)
        return torch.stack([x, angle.cos(), angle.sin(), speed / 2, rate / 8], -1)

    low, high = (-0.2, math.pi - 0.2, -0.1, -0.1), (0.2, math.pi + 0.2, 0.1, 0.1)
    return Environment(4, 1, 5, field, reward, observe, low, high, dt, repeat)


def double_integrator(*, force: float = 1.0, effort: float = 0.1, dt: float = 0.1, repeat: int = 1) -> Environment:
    r"""Return a mass of 1 kg on a line, to be brought to rest at 0: its linear-quadratic answer is :func:`lqr`.

    .. math:: \ddot x = F a, \qquad r = -(x^2 + \tfrac1{10}\dot x^2 + \rho\, a^2)

    Over an interval T = ``repeat * dt`` it is exactly :math:`x + T v + F a T^2/2` and :math:`v + F a T`.

    Args:
        force: F > 0 [N].
        effort: rho >= 0.
        dt: integration step, > 0 [s].
        repeat: steps an action is held.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> double_integrator(dt=1.0).step(torch.tensor([1.0, 2.0]), torch.ones(1)).state
        tensor([3.5000, 3.0000])

    References:
        Bertsekas (2017), Dynamic programming and optimal control I, section 3.1.
    """
    check_positive("force", force)
    check_positive("effort", effort, zero=True)

    def field(s: Tensor, a: Tensor) -> Tensor:
        return torch.stack([s[..., 1], force * a[..., 0]], -1)

    def reward(s: Tensor, a: Tensor) -> Tensor:
        return -(s[..., 0].square() + 0.1 * s[..., 1].square() + effort * a[..., 0].square())

    return Environment(2, 1, 2, field, reward, lambda s: s, (-1.0, -0.5), (1.0, 0.5), dt, repeat)


def point_mass(
    *, force: float = 2.0, friction: float = 0.5, width: float = 0.3, dt: float = 0.05, repeat: int = 2
) -> Environment:
    r"""Return a mass in the plane, to be brought to the origin, which only near by is rewarded.

    .. math:: \ddot x = F a - c\,\dot x, \qquad r = \exp(-|x|^2 / (2 w^2))

    The state, which is the observation, is the position [m] and the velocity [m/s].

    Args:
        force: F > 0 along each axis [N].
        friction: c >= 0 [1/s].
        width: w > 0 [m].
        dt: integration step, > 0 [s].
        repeat: steps an action is held.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> point_mass().step(torch.zeros(4), torch.zeros(2)).reward
        tensor(1.)

    References:
        Tassa et al. (2018), DeepMind control suite, arXiv 1801.00690: the task of this name.
    """
    check_positive("force", force)
    check_positive("friction", friction, zero=True)
    check_positive("width", width)

    def field(s: Tensor, a: Tensor) -> Tensor:
        return torch.cat([s[..., 2:], force * a - friction * s[..., 2:]], -1)

    def reward(s: Tensor, a: Tensor) -> Tensor:
        return (-s[..., :2].square().sum(-1) / (2 * width**2)).exp()

    low, high = (-1.0, -1.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0)
    return Environment(4, 2, 4, field, reward, lambda s: s, low, high, dt, repeat)
