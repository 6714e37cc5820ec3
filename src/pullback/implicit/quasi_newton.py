"""Quasi-Newton methods for minima: dense, with a short memory, between bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.shapes import Tensor
from pullback.implicit.descent import Objective, Slope, descend, slope_at, steepness
from pullback.implicit.iteration import State, backtrack, dot, norm, ratio

__all__ = ["BFGS", "LBFGS", "BoundedLBFGS"]


class _Curvature(NamedTuple):
    """The slope, and the last steps and changes of the gradient, ``[count, steps, n]``, the latest first."""

    slope: Slope
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
        slope = slope_at(self.objective, x)
        return State.moving(x, steepness(slope), _Curvature(slope, *x.new_zeros(2, len(x), 0, x.shape[1])))

    def step(self, state: State, active: Tensor) -> State:
        """Step along the quasi-Newton direction and remember the pair."""
        slope, steps, changes = state.memory
        new = descend(self.objective, state, slope, self._direction(state), active)
        step, change = new.x - state.x, new.memory.gradient - slope.gradient
        return new._replace(memory=_Curvature(new.memory, *_remember(steps, changes, step, change, self.memory)))

    def _direction(self, state: State) -> Tensor:
        """Return the quasi-Newton direction by the two-loop recursion."""
        slope, steps, changes = state.memory
        return -_two_loops(slope.gradient, steps, changes)


def _two_loops(gradient: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """Return the limited-memory inverse Hessian times the gradient; without pairs a step of length at most 1."""
    if not steps.shape[1]:
        return gradient / norm(gradient).clamp(min=1)[:, None]
    result, weights = gradient, []
    pairs = list(zip(steps.unbind(1), changes.unbind(1), ratio(1.0, dot(steps, changes)).unbind(1), strict=True))
    for s, y, rho in pairs:
        weights.append(rho * dot(s, result))
        result = result - weights[-1][:, None] * y
    s, y, _ = pairs[0]
    last = ratio(dot(s, y), dot(y, y))
    result = torch.where(last > 0, last, 1)[:, None] * result
    for (s, y, rho), weight in zip(reversed(pairs), reversed(weights), strict=True):
        result = result + s * (weight - rho * dot(y, result))[:, None]
    return result


def _remember(steps: Tensor, changes: Tensor, step: Tensor, change: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """Put the latest pair in front; one without positive curvature is kept as zeros, which have no effect."""
    curved = (dot(step, change) > torch.finfo(step.dtype).eps * norm(step) * norm(change))[:, None]
    steps = torch.cat([torch.where(curved, step, 0)[:, None], steps], 1)[:, :memory]
    return steps, torch.cat([torch.where(curved, change, 0)[:, None], changes], 1)[:, :memory]


@dataclass(frozen=True)
class BoundedLBFGS:
    """Limited-memory BFGS between bounds: entries that a bound holds back take no part in a step.

    The residual is ``|x - clip(x - gradient)|``.

    References:
        Bertsekas (1982), Projected Newton methods for optimization problems with simple constraints; Byrd, Lu, Nocedal,
        Zhu (1995), A limited memory algorithm for bound constrained optimization.
    """

    objective: Objective
    low: Tensor
    high: Tensor
    memory: int = 10

    def init(self, x: Tensor) -> State:
        """Move between the bounds and evaluate the slope."""
        x = self._clip(x)
        slope = slope_at(self.objective, x)
        return State.moving(x, self._gap(x, slope), _Curvature(slope, *x.new_zeros(2, len(x), 0, x.shape[1])))

    def step(self, state: State, active: Tensor) -> State:
        """Step along the quasi-Newton direction of the free entries, cut off at the bounds."""
        slope, steps, changes = state.memory
        gradient = slope.gradient
        # Near is less than what is left to do: bounds may lie closer together than any fixed distance.
        near = torch.minimum(1e-9 * (1 + state.x.abs()), 0.01 * state.residual[:, None] / state.x.shape[1] ** 0.5)
        held = ((state.x <= self.low + near) & (gradient > 0)) | ((state.x >= self.high - near) & (gradient < 0))
        free = (~held)[:, None]
        own = torch.where(free, steps, 0), torch.where(free, changes, 0)
        curved = (dot(*own) > 0)[..., None]
        direction = -_two_loops(torch.where(held, 0, gradient), *(torch.where(curved, v, 0) for v in own))
        direction = torch.where(held, 0, direction)
        slack = 10 * torch.finfo(state.x.dtype).eps * slope.value.abs()

        def evaluate(x: Tensor) -> tuple[Tensor, ...]:
            inside = self._clip(x)
            return (*self.objective(inside), inside)

        def accept(length: Tensor, found: tuple[Tensor, ...]) -> Tensor:
            return found[0] <= slope.value + 1e-4 * dot(gradient, found[2] - state.x) + slack

        current = (slope.value, gradient, state.x)
        _, (value, new, x), failed = backtrack(evaluate, accept, state.x, current, direction, active, halvings=40)
        found = Slope(value, new)
        pairs = _remember(steps, changes, x - state.x, new - gradient, self.memory)
        return State(x, self._gap(x, found), failed, _Curvature(found, *pairs))

    def _clip(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def _gap(self, x: Tensor, slope: Slope) -> Tensor:
        return norm(x - self._clip(x - slope.gradient)) + 0 * steepness(slope)


class _Inverse(NamedTuple):
    """The slope, the approximate inverse Hessian ``[count, n, n]`` and which rows know any curvature ``[count]``."""

    slope: Slope
    inverse: Tensor
    known: Tensor


@dataclass(frozen=True)
class BFGS:
    """Quasi-Newton with a dense inverse Hessian.

    References:
        Nocedal, Wright (2006), Numerical optimization, algorithm 6.1 and equation 6.20 for the first scale.
    """

    objective: Objective

    def init(self, x: Tensor) -> State:
        """Evaluate the slope; the inverse Hessian is the identity."""
        slope = slope_at(self.objective, x)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        known = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return State.moving(x, steepness(slope), _Inverse(slope, eye, known))

    def step(self, state: State, active: Tensor) -> State:
        """Step along the quasi-Newton direction and update."""
        slope, inverse, known = state.memory
        direction = -(inverse @ slope.gradient[..., None])[..., 0]
        first = direction / norm(direction).clamp(min=1)[:, None]
        direction = torch.where(known[:, None], direction, first)
        new = descend(self.objective, state, slope, direction, active)
        step, change = new.x - state.x, new.memory.gradient - slope.gradient
        product = dot(step, change)
        curved = product > torch.finfo(step.dtype).eps * norm(step) * norm(change)
        scale = torch.where(known, 1, ratio(product, dot(change, change)))[:, None, None]
        inverse = torch.where(curved[:, None, None], scale * inverse, inverse)
        rho = ratio(1.0, product)[:, None, None]
        pulled = (inverse @ change[..., None])[..., 0]
        both = rho * step[..., :, None] * pulled[..., None, :]
        outer = rho * (1 + rho * dot(change, pulled)[:, None, None]) * step[..., :, None] * step[..., None, :]
        inverse = torch.where(curved[:, None, None], inverse - both - both.mT + outer, inverse)
        return new._replace(memory=_Inverse(new.memory, inverse, known | curved))
