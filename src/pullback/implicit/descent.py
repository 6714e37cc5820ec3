"""Methods for minima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.shapes import Tensor
from pullback.implicit.iteration import State, backtrack, dot, norm, ratio
from pullback.implicit.linear_solve import LinearOptions, Operator, solve_system

__all__ = ["FIRE", "LBFGS", "NewtonMinimum", "Objective", "ProximalGradient"]

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x [count, n] -> (value [count], gradient [count, n])``."""


class _Slope(NamedTuple):
    """Value ``[count]`` and gradient ``[count, n]`` at the point."""

    value: Tensor
    gradient: Tensor


def _steepness(slope: _Slope) -> Tensor:
    """Return the norm of the gradient, NaN where the value is none: from there nothing can descend."""
    return torch.where(torch.isfinite(slope.value), norm(slope.gradient), torch.nan)


def _descend(objective: Objective, state: State, slope: _Slope, direction: Tensor, active: Tensor) -> State:
    """Step along a descent direction with Armijo backtracking; the memory of the result is the slope there.

    References:
        Nocedal, Wright (2006), Numerical optimization, algorithm 3.1.
    """
    descent, slack = dot(direction, slope.gradient), 10 * torch.finfo(state.x.dtype).eps

    def accept(length: Tensor, found: tuple[Tensor, ...]) -> Tensor:
        # The slack lets the last steps through, where the decrease is below the rounding of the value.
        return found[0] <= slope.value + 1e-4 * length * descent + slack * slope.value.abs()

    x, found, failed = backtrack(objective, accept, state.x, tuple(slope), direction, active, halvings=40)
    return State(x, norm(found[1]), failed, _Slope(*found))


class _Curvature(NamedTuple):
    """The slope, and the last steps and changes of the gradient, ``[count, steps, n]``, the latest first."""

    slope: _Slope
    steps: Tensor
    changes: Tensor


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with backtracking.

    References:
        Nocedal, Wright (2006), Numerical optimization, algorithm 7.4.
    """

    objective: Objective
    memory: int = 10

    def init(self, x: Tensor) -> State:
        """Evaluate the slope; no curvature is known yet."""
        slope = _Slope(*self.objective(x))
        return State.moving(x, _steepness(slope), _Curvature(slope, *x.new_zeros(2, len(x), 0, x.shape[1])))

    def step(self, state: State, active: Tensor) -> State:
        """Step along the quasi-Newton direction and remember the pair."""
        slope, steps, changes = state.memory
        new = _descend(self.objective, state, slope, self._direction(state), active)
        step, change = new.x - state.x, new.memory.gradient - slope.gradient
        # A pair without positive curvature is kept as zeros, which have no effect.
        curved = (dot(step, change) > torch.finfo(step.dtype).eps * norm(step) * norm(change))[:, None]
        steps = torch.cat([torch.where(curved, step, 0)[:, None], steps], 1)[:, : self.memory]
        changes = torch.cat([torch.where(curved, change, 0)[:, None], changes], 1)[:, : self.memory]
        return new._replace(memory=_Curvature(new.memory, steps, changes))

    def _direction(self, state: State) -> Tensor:
        """Return the quasi-Newton direction by the two-loop recursion."""
        slope, steps, changes = state.memory
        if not steps.shape[1]:
            return -slope.gradient / norm(slope.gradient).clamp(min=1)[:, None]
        result, weights = slope.gradient, []
        pairs = list(zip(steps.unbind(1), changes.unbind(1), ratio(1.0, dot(steps, changes)).unbind(1), strict=True))
        for s, y, rho in pairs:
            weights.append(rho * dot(s, result))
            result = result - weights[-1][:, None] * y
        s, y, _ = pairs[0]
        last = ratio(dot(s, y), dot(y, y))
        result = torch.where(last > 0, last, 1)[:, None] * result
        for (s, y, rho), weight in zip(reversed(pairs), reversed(weights), strict=True):
            result = result + s * (weight - rho * dot(y, result))[:, None]
        return -result


@dataclass(frozen=True)
class NewtonMinimum:
    """Newton's method with backtracking; the negative gradient where the Newton direction does not descend."""

    objective: Objective
    hessian: Operator
    linear: LinearOptions

    def init(self, x: Tensor) -> State:
        """Evaluate the slope."""
        slope = _Slope(*self.objective(x))
        return State.moving(x, _steepness(slope), slope)

    def step(self, state: State, active: Tensor) -> State:
        """Step along the Newton direction, or down where that does not descend."""
        gradient = state.memory.gradient
        direction = -solve_system(self.hessian, gradient, (state.x,), self.linear).value
        descends = torch.isfinite(direction).all(1) & (dot(direction, gradient) < 0)
        direction = torch.where(descends[:, None], direction, -gradient)
        return _descend(self.objective, state, state.memory, direction, active)


class _Accelerated(NamedTuple):
    """The extrapolated point ``[count, n]``, the momentum ``[count]``, the step length of all rows."""

    point: Tensor
    momentum: Tensor
    length: float


@dataclass(frozen=True)
class ProximalGradient:
    """Accelerated proximal gradient with backtracking and restarts; one step length for the whole batch.

    The residual is the gradient mapping ``|x - prox(x - length * gradient, length)| / length``.

    References:
        Beck, Teboulle (2009), FISTA, section 4; O'Donoghue, Candès (2015), Adaptive restart, equation 12.
    """

    objective: Objective
    prox: Callable[[Tensor, float], Tensor]

    def init(self, x: Tensor) -> State:
        """Start without momentum, with a step of length 1."""
        slope = _Slope(*self.objective(x))
        residual = self._mapping(x, slope.gradient, 1.0) + 0 * _steepness(slope)
        return State.moving(x, residual, _Accelerated(x, x.new_ones(len(x)), 1.0))

    def step(self, state: State, active: Tensor) -> State:
        """Step from the extrapolated point, shorter until the quadratic bound holds."""
        point, momentum, length = state.memory
        value, gradient = self.objective(point)
        slack = 10 * torch.finfo(point.dtype).eps * (1 + value.abs())
        while True:
            x = self.prox(point - length * gradient, length)
            moved = x - point
            bound = value + dot(gradient, moved) + dot(moved, moved) / (2 * length)
            new_value, new_gradient = self.objective(x)
            if not bool((active & ~(new_value <= bound + slack)).any()) or length < 1e-20:
                break
            length /= 2
        restart = dot(point - x, x - state.x) > 0
        following = (1 + torch.sqrt(1 + 4 * momentum**2)) / 2
        push = torch.where(restart, 0, (momentum - 1) / following)
        point = x + push[:, None] * (x - state.x)
        memory = _Accelerated(point, torch.where(restart, 1, following), 1.05 * length)
        return State.moving(x, self._mapping(x, new_gradient, length), memory)

    def _mapping(self, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        return norm(x - self.prox(x - length * gradient, length)) / length


class _Dynamics(NamedTuple):
    """Force and velocity ``[count, n]``; time step, mixing and steps downhill, ``[count]``."""

    force: Tensor
    velocity: Tensor
    length: Tensor
    mixing: Tensor
    downhill: Tensor


@dataclass(frozen=True)
class FIRE:
    """Fast inertial relaxation: damped molecular dynamics that turns its velocity downhill.

    References:
        Bitzek, Koskinen, Gähler, Moseler, Gumbsch (2006), Structural relaxation made simple; constants of the paper.
    """

    objective: Objective
    length: float

    def init(self, x: Tensor) -> State:
        """Start at rest."""
        force = -self.objective(x)[1]
        one = x.new_ones(len(x))
        memory = _Dynamics(force, torch.zeros_like(x), self.length * one, 0.1 * one, 0 * one)
        return State.moving(x, norm(force), memory)

    def step(self, state: State, active: Tensor) -> State:
        """Turn the velocity downhill, or stop it where it goes uphill, and move."""
        force, velocity, length, mixing, downhill = state.memory
        ahead = dot(force, velocity) > 0
        steered = (norm(velocity) * ratio(1.0, state.residual))[:, None] * force
        velocity = torch.where(ahead[:, None], torch.lerp(velocity, steered, mixing[:, None]), 0)
        downhill = torch.where(ahead, downhill + 1, 0)
        faster = downhill > 5
        grown = torch.where(faster, (1.1 * length).clamp(max=10 * self.length), length)
        length = torch.where(ahead, grown, length / 2)
        mixing = torch.where(ahead, torch.where(faster, 0.99 * mixing, mixing), 0.1)
        velocity = velocity + length[:, None] * force
        x = state.x + length[:, None] * velocity
        force = -self.objective(x)[1]
        return State.moving(x, norm(force), _Dynamics(force, velocity, length, mixing, downhill))
