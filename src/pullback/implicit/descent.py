"""Methods for minima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.shapes import Tensor
from pullback.implicit.iteration import State, backtrack, dot, norm, ratio
from pullback.implicit.linear_solve import LinearOptions, Operator, solve_system

__all__ = [
    "FIRE",
    "BlockCoordinate",
    "NewtonMinimum",
    "NonlinearCG",
    "Objective",
    "ProximalGradient",
    "Slope",
    "descend",
    "slope_at",
    "steepness",
]

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x [count, n] -> (value [count], gradient [count, n])``."""


class Slope(NamedTuple):
    """Value ``[count]`` and gradient ``[count, n]`` at the point."""

    value: Tensor
    gradient: Tensor


def slope_at(objective: Objective, x: Tensor) -> Slope:
    """Return the slope at ``x``."""
    return Slope(*objective(x))


def steepness(slope: Slope) -> Tensor:
    """Return the norm of the gradient, NaN where the value is none: from there nothing can descend."""
    return torch.where(torch.isfinite(slope.value), norm(slope.gradient), torch.nan)


def descend(objective: Objective, state: State, slope: Slope, direction: Tensor, active: Tensor) -> State:
    """Step along a descent direction with Armijo backtracking; the memory of the result is the slope there.

    References:
        Nocedal, Wright (2006), Numerical optimization, algorithm 3.1.
    """
    descent, slack = dot(direction, slope.gradient), 10 * torch.finfo(state.x.dtype).eps

    def accept(length: Tensor, found: tuple[Tensor, ...]) -> Tensor:
        # The slack lets the last steps through, where the decrease is below the rounding of the value.
        return found[0] <= slope.value + 1e-4 * length * descent + slack * slope.value.abs()

    x, found, failed = backtrack(objective, accept, state.x, tuple(slope), direction, active, halvings=40)
    return State(x, norm(found[1]), failed, Slope(*found))


class _Conjugate(NamedTuple):
    """The slope, the last direction ``[count, n]`` and the length of its step ``[count]``."""

    slope: Slope
    direction: Tensor
    length: Tensor


@dataclass(frozen=True)
class NonlinearCG:
    """Nonlinear conjugate gradients; on a quadratic function those of a linear system.

    References:
        Hager, Zhang (2005), A new conjugate gradient method with guaranteed descent and an efficient line search,
        equations 1.3 to 1.6.
    """

    objective: Objective

    def init(self, x: Tensor) -> State:
        """Evaluate the slope; the first direction is straight down."""
        slope = slope_at(self.objective, x)
        steep = steepness(slope)
        return State.moving(x, steep, _Conjugate(slope, -slope.gradient, ratio(1.0, steep).clamp(max=1)))

    def step(self, state: State, active: Tensor) -> State:
        """Search along the direction, then conjugate the new slope with it."""
        slope, direction, length = state.memory
        whole = (2 * length)[:, None] * direction
        new = descend(self.objective, state, slope, whole, active)
        x, found = self._refine(state, new)
        change = found.gradient - slope.gradient
        along = dot(direction, change)
        part = change - 2 * direction * ratio(dot(change, change), along)[:, None]
        beta = ratio(dot(part, found.gradient), along)
        least = -1 / (norm(direction) * norm(slope.gradient).clamp(max=0.01)).clamp(min=1e-30)
        following = -found.gradient + torch.maximum(beta, least)[:, None] * direction
        down = (dot(following, found.gradient) < 0) & torch.isfinite(following).all(1)
        following = torch.where(down[:, None], following, -found.gradient)
        taken = ratio(norm(x - state.x), norm(direction))
        # A step as long as the last one where the slope is as steep; where that has all but vanished the estimate is
        # beyond what halving brings back.
        steeper = ratio(dot(direction, slope.gradient), dot(following, found.gradient))
        expected = taken * steeper.clamp(max=1e3)
        memory = _Conjugate(found, following, torch.where(expected > 0, expected, length))
        return State(x, norm(found.gradient), new.stalled, memory)

    def _refine(self, state: State, new: State) -> tuple[Tensor, Slope]:
        """Return where the slope along the step would vanish, were it linear, if that point is lower."""
        slope, step = state.memory.slope, new.x - state.x
        descent = dot(step, slope.gradient)
        bend = dot(step, new.memory.gradient) - descent  # of slopes: values have too few digits near the minimum
        factor = torch.where(bend > 0, ratio(-descent, bend), 1).clamp(max=10)
        x = state.x + factor[:, None] * step
        found = slope_at(self.objective, x)
        # Where values are equal but for rounding the flatter point is the better one.
        slack = 10 * torch.finfo(x.dtype).eps * slope.value.abs()
        flatter = norm(found.gradient) < norm(new.memory.gradient)
        lower = (found.value < new.memory.value - slack) | ((found.value <= new.memory.value + slack) & flatter)
        parts = zip(found, new.memory, strict=True)
        kept = Slope(*(torch.where(lower if a.ndim == 1 else lower[:, None], a, b) for a, b in parts))
        return torch.where(lower[:, None], x, new.x), kept


@dataclass(frozen=True)
class NewtonMinimum:
    """Newton's method with backtracking; the negative gradient where the Newton direction does not descend."""

    objective: Objective
    hessian: Operator
    linear: LinearOptions

    def init(self, x: Tensor) -> State:
        """Evaluate the slope."""
        slope = slope_at(self.objective, x)
        return State.moving(x, steepness(slope), slope)

    def step(self, state: State, active: Tensor) -> State:
        """Step along the Newton direction, or down where that does not descend."""
        gradient = state.memory.gradient
        direction = -solve_system(self.hessian, gradient, (state.x,), self.linear).value
        descends = torch.isfinite(direction).all(1) & (dot(direction, gradient) < 0)
        direction = torch.where(descends[:, None], direction, -gradient)
        return descend(self.objective, state, state.memory, direction, active)


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
        slope = slope_at(self.objective, x)
        residual = self._mapping(x, slope.gradient, 1.0) + 0 * steepness(slope)
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


@dataclass(frozen=True)
class BlockCoordinate:
    """Cyclic block coordinate proximal gradient: each block steps by its own length, found by backtracking.

    The residual is the gradient mapping of all blocks at their lengths. One length a block for the whole batch.

    References:
        Beck, Tetruashvili (2013), On the convergence of block coordinate descent type methods, equation 3.1; Fercoq,
        Bianchi (2019).
    """

    objective: Objective
    partial: Callable[[Tensor, slice], Slope]
    prox: Callable[[Tensor, float], Tensor]
    blocks: list[slice]

    def init(self, x: Tensor) -> State:
        """Start with steps of length 1."""
        lengths = [1.0] * len(self.blocks)
        return State.moving(x, self._mapping(x, lengths), lengths)

    def step(self, state: State, active: Tensor) -> State:
        """Go through the blocks once."""
        x, lengths = state.x, list(state.memory)
        for i, block in enumerate(self.blocks):
            value, gradient = self.partial(x, block)
            slack = 10 * torch.finfo(x.dtype).eps * (1 + value.abs())
            length = 2 * lengths[i]
            while True:
                trial = self._moved(x, block, gradient, length)
                moved = trial[:, block] - x[:, block]
                bound = value + dot(gradient, moved) + dot(moved, moved) / (2 * length)
                found = self.objective(trial)[0]
                if not bool((active & ~(found <= bound + slack)).any()) or length < 1e-20:
                    break
                length /= 2
            x, lengths[i] = trial, length
        return State.moving(x, self._mapping(x, lengths), lengths)

    def _moved(self, x: Tensor, block: slice, gradient: Tensor, length: float) -> Tensor:
        """``x`` with one block moved down its gradient and to the prox there."""
        ahead = torch.cat([x[:, : block.start], x[:, block] - length * gradient, x[:, block.stop :]], 1)
        return torch.cat([x[:, : block.start], self.prox(ahead, length)[:, block], x[:, block.stop :]], 1)

    def _mapping(self, x: Tensor, lengths: list[float]) -> Tensor:
        slope = slope_at(self.objective, x)
        if not self.blocks:  # nothing to move
            return 0 * steepness(slope)
        parts = [
            (x - self._moved(x, block, slope.gradient[:, block], length))[:, block] / length
            for block, length in zip(self.blocks, lengths, strict=True)
        ]
        return norm(torch.cat(parts, 1)) + 0 * steepness(slope)


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
