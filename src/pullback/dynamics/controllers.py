"""Controllers whose parameters carry a gradient: a bounded network, and a PID controller with limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_range, check_shape
from pullback.core.shapes import Float

__all__ = ["BoundedPolicy", "PIDController", "PIDState"]


class BoundedPolicy(nn.Module):
    """A perceptron whose outputs stay between bounds: ``low + (high - low) sigmoid(net(x))``, and smooth everywhere.

    Args:
        inputs: size of x.
        outputs: size of the result.
        low: bound of every output, or one an output.
        high: bound, above ``low``.
        hidden: sizes of the hidden layers.
        start: in (0, 1), where between the bounds the outputs are when the net is 0: the last layer begins at a
            hundredth of torch's weights around it, so that training begins from a nearly constant policy.
        activation: makes the function between layers.

    Raises:
        ValueError: a size below 1, bounds the wrong way round, ``start`` out of range.

    Example:
        >>> policy = BoundedPolicy(3, 1, low=0.0, high=10.0, start=0.1)
        >>> abs(policy(torch.ones(5, 3)) - 1.0).max().item() < 0.2
        True

    References:
        Drgona, Tuor, Vrabie (2022), Learning constrained parametric differentiable predictive control policies with
        guarantees, arXiv 2004.11184; Wasi (2024), arXiv 2402.13852.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        low: float | Sequence[float] = -1.0,
        high: float | Sequence[float] = 1.0,
        hidden: Sequence[int] = (32, 32),
        start: float = 0.5,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        check_integer("outputs", outputs, 1)
        sizes = [check_integer("inputs", inputs, 1), *(check_integer("hidden", size, 1) for size in hidden)]
        check_range("start", start, 0, 1)
        if start in (0, 1):
            raise ValueError(f"start must be in (0, 1), got {start}")
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.get_default_dtype()).expand(outputs).clone())
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.get_default_dtype()).expand(outputs).clone())
        if not bool((self.low < self.high).all() and (self.high - self.low).isfinite().all()):
            raise ValueError(f"low must be below high and both finite, got {low} and {high}")
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        last = nn.Linear(sizes[-1], outputs)
        with torch.no_grad():
            last.weight *= 0.01
            last.bias.fill_(torch.tensor(start).logit())
        self.inputs = inputs
        self.net = nn.Sequential(*layers, last)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return outputs in [low, high], ``[*batch, outputs]``."""
        check_floating("x", x)
        check_shape("x", x, (self.inputs,))
        return self.low + (self.high - self.low) * torch.sigmoid(self.net(x))


class PIDState(NamedTuple):
    """What a :class:`PIDController` remembers.

    Attributes:
        integral: ``[*batch]`` of the error over time.
        error: ``[*batch]`` the last error.
    """

    integral: Tensor
    error: Tensor


class PIDController(nn.Module):
    r"""A PID controller with limits: :math:`u = \mathrm{clip}(b + k_p e + k_i \int e + k_d \dot e)`, e = y - setpoint.

    The sign is that of a plant which u lowers (insulin, cooling): give negative gains for the others. The integral
    stands still while u is at the limit towards which it pushes (anti-windup). All gains are parameters: through a
    differentiable plant they are tuned by gradient.

    Args:
        kp: proportional gain.
        ki: integral gain, per unit of time.
        kd: derivative gain, times a unit of time.
        setpoint: of y.
        bias: b, u without error.
        low: limit of u.
        high: limit of u, above ``low``.
        step: time between calls, > 0.

    Raises:
        ValueError: limits the wrong way round, ``step`` not positive.

    Example:
        >>> pid = PIDController(0.5, 0.1, 0.0, setpoint=2.0, low=0.0, high=10.0)
        >>> u, state = pid(torch.tensor([4.0]))
        >>> u.tolist(), state.integral.tolist()
        ([1.2000000476837158], [2.0])

    References:
        Astrom, Hagglund (2006), Advanced PID control, section 3.5.
    """

    def __init__(
        self,
        kp: float,
        ki: float = 0.0,
        kd: float = 0.0,
        *,
        setpoint: float = 0.0,
        bias: float = 0.0,
        low: float = -1.0,
        high: float = 1.0,
        step: float = 1.0,
    ) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        check_positive("step", step)
        self.gains = nn.Parameter(torch.tensor([float(kp), float(ki), float(kd), float(bias)]))
        self.setpoint, self.low, self.high, self.step = setpoint, low, high, step

    def forward(self, y: Float[Tensor, "*batch"], state: PIDState | None = None) -> tuple[Tensor, PIDState]:
        """Return u ``[*batch]`` for a measurement, and what to give to the next call; without a state it begins."""
        error = check_floating("y", y) - self.setpoint
        before = PIDState(torch.zeros_like(error), error) if state is None else state
        kp, ki, kd, bias = self.gains
        integral = before.integral + self.step * error
        free = bias + kp * error + ki * integral + kd * (error - before.error) / self.step
        pushed = ki * error
        held = ((free > self.high) & (pushed > 0)) | ((free < self.low) & (pushed < 0))
        return free.clamp(self.low, self.high), PIDState(torch.where(held, before.integral, integral), error)
