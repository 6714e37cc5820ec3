"""The iterations of the solvers, on rows ``[*batch, n]`` without derivatives: one problem a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.implicit.linear_solve import LinearOptions, Operator, solve_system

__all__ = ["Found", "Objective", "anderson", "fire", "lbfgs", "newton_minimum", "newton_root", "picard", "proximal"]

Map = Callable[[Tensor], Tensor]
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x [*batch, n] -> (value [*batch], gradient [*batch, n])``."""


@dataclass(frozen=True)
class Found:
    """Where an iteration stopped: the rows, the norm of what should be zero there, and the iterations of each."""

    x: Float[Tensor, "*batch n"]
    residual: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]


def newton_root(
    function: Map, operator: Operator, x: Tensor, tolerance: float, limit: int, options: LinearOptions
) -> Found:
    """Newton's method for ``function(x) = 0`` with backtracking on the residual norm."""
    value = function(x)
    size, count = _norm(value), _count(x)
    active = size > tolerance
    for _ in range(limit):
        if not active.any():
            break
        direction = -solve_system(operator, value, (x,), options).value
        usable = torch.isfinite(direction).all(-1)
        scale = torch.ones_like(size)
        searching = active & usable
        for _ in range(30):
            if not searching.any():
                break
            trial = x + torch.where(searching, scale, 0)[..., None] * torch.where(usable[..., None], direction, 0)
            trial_value = function(trial)
            good = searching & (_norm(trial_value) <= (1 - 1e-4 * scale) * size)  # false for NaN
            x = torch.where(good[..., None], trial, x)
            value = torch.where(good[..., None], trial_value, value)
            searching = searching & ~good
            scale = torch.where(searching, scale / 2, scale)
        count = count + active
        size = _norm(value)
        active = active & usable & ~searching & (size > tolerance)  # no step reduces the residual: give up on it
    return Found(x, size, count)


def picard(map: Map, x: Tensor, tolerance: float, limit: int, damping: float) -> Found:
    """``x <- x + damping * (map(x) - x)``."""
    gap = map(x) - x
    count = _count(x)
    active = _norm(gap) > tolerance
    for _ in range(limit):
        if not active.any():
            break
        x = torch.where(active[..., None], x + damping * gap, x)
        gap = torch.where(active[..., None], map(x) - x, gap)
        count = count + active
        active = active & (_norm(gap) > tolerance)
    return Found(x, _norm(gap), count)


def anderson(map: Map, x: Tensor, tolerance: float, limit: int, damping: float, memory: int) -> Found:
    """Anderson acceleration (type II): combine the last steps so that the combined residual is smallest.

    References:
        Walker, Ni (2011), Anderson acceleration for fixed-point iterations, equation 2.3.
    """
    gap = map(x) - x
    count = _count(x)
    active = _norm(gap) > tolerance
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for _ in range(limit):
        if not active.any():
            break
        update = damping * gap
        if steps:
            moved, changed = torch.stack(steps, -1), torch.stack(changes, -1)
            # A relative ridge, because the changes become parallel near the fixed point.
            gram = changed.mT @ changed
            scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=torch.finfo(x.dtype).tiny)
            ridge = torch.finfo(x.dtype).eps * scale * torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
            weights = torch.linalg.solve_ex(gram + ridge, changed.mT @ gap[..., None])[0]
            weights = torch.where(torch.isfinite(weights).all(-2, keepdim=True), weights, 0)
            update = update - ((moved + damping * changed) @ weights)[..., 0]
        new = torch.where(active[..., None], x + update, x)
        new_gap = torch.where(active[..., None], map(new) - new, gap)
        steps, changes = [*steps, new - x][-memory:], [*changes, new_gap - gap][-memory:]
        x, gap = new, new_gap
        count = count + active
        active = active & (_norm(gap) > tolerance)
    return Found(x, _norm(gap), count)


def proximal(
    objective: Objective, prox: Callable[[Tensor, float], Tensor], x: Tensor, tolerance: float, limit: int
) -> Found:
    """Accelerated proximal gradient with backtracking and restarts; one step length for the whole batch.

    References:
        Beck, Teboulle (2009), FISTA, section 4; O'Donoghue, Candès (2015), Adaptive restart, equation 12.
    """
    point, momentum, step = x, torch.ones(x.shape[:-1], dtype=x.dtype, device=x.device), 1.0
    count, slack = _count(x), 10 * torch.finfo(x.dtype).eps
    value, gradient = objective(x)
    residual = _norm(x - prox(x - step * gradient, step)) / step
    active = residual > tolerance
    for _ in range(limit):
        if not active.any():
            break
        value, gradient = objective(point)
        while True:
            new = prox(point - step * gradient, step)
            moved = new - point
            bound = value + _dot(gradient, moved) + _dot(moved, moved) / (2 * step)
            new_value = objective(new)[0]
            if not bool((active & ~(new_value <= bound + slack * (1 + value.abs()))).any()) or step < 1e-20:
                break
            step /= 2
        new = torch.where(active[..., None], new, x)
        restart = _dot(point - new, new - x) > 0
        following = (1 + torch.sqrt(1 + 4 * momentum**2)) / 2
        push = torch.where(restart, 0, (momentum - 1) / following)
        momentum = torch.where(restart, 1, following)
        mapped = _norm(new - point) / step
        point, x = new + push[..., None] * (new - x), new
        count = count + active
        # The mapping at the extrapolated point is small long before the one at x is known: measure at x only then.
        if bool((active & (mapped <= tolerance)).any()):
            at_x = _norm(x - prox(x - step * objective(x)[1], step)) / step
            active = active & (at_x > tolerance)
        step *= 1.05
    residual = _norm(x - prox(x - step * objective(x)[1], step)) / step
    return Found(x, residual, count)


def lbfgs(objective: Objective, x: Tensor, tolerance: float, limit: int, memory: int = 10) -> Found:
    """Limited-memory BFGS with backtracking.

    References:
        Nocedal, Wright (2006), Numerical optimization, algorithms 7.4 and 3.1.
    """
    steps: list[Tensor] = []
    changes: list[Tensor] = []

    def direction(x: Tensor, gradient: Tensor) -> Tensor:
        if not steps:
            return -gradient / _norm(gradient).clamp(min=1)[..., None]
        result, weights = gradient, []
        inverse = [_safe(1.0, _dot(s, y)) for s, y in zip(steps, changes, strict=True)]
        for s, y, rho in zip(reversed(steps), reversed(changes), reversed(inverse), strict=True):
            weights.append(rho * _dot(s, result))
            result = result - weights[-1][..., None] * y
        last = _safe(_dot(steps[-1], changes[-1]), _dot(changes[-1], changes[-1]))
        result = torch.where(last > 0, last, 1)[..., None] * result
        for s, y, rho, weight in zip(steps, changes, inverse, reversed(weights), strict=True):
            result = result + s * (weight - rho * _dot(y, result))[..., None]
        return -result

    def remember(step: Tensor, change: Tensor) -> None:
        curved = _dot(step, change) > torch.finfo(step.dtype).eps * _norm(step) * _norm(change)
        steps.append(torch.where(curved[..., None], step, 0))
        changes.append(torch.where(curved[..., None], change, 0))
        del steps[:-memory], changes[:-memory]

    return _line_search_loop(objective, direction, x, tolerance, limit, remember)


def newton_minimum(
    objective: Objective, hessian: Operator, x: Tensor, tolerance: float, limit: int, options: LinearOptions
) -> Found:
    """Newton's method with backtracking; the negative gradient where the Newton direction does not descend."""

    def direction(x: Tensor, gradient: Tensor) -> Tensor:
        step = -solve_system(hessian, gradient, (x,), options).value
        descends = torch.isfinite(step).all(-1) & (_dot(step, gradient) < 0)
        return torch.where(descends[..., None], step, -gradient)

    return _line_search_loop(objective, direction, x, tolerance, limit, lambda step, change: None)


def fire(objective: Objective, x: Tensor, tolerance: float, limit: int, step: float) -> Found:
    """Fast inertial relaxation: damped molecular dynamics that turns its velocity downhill.

    References:
        Bitzek, Koskinen, Gähler, Moseler, Gumbsch (2006), Structural relaxation made simple; constants of the paper.
    """
    velocity = torch.zeros_like(x)
    length = torch.full(x.shape[:-1], step, dtype=x.dtype, device=x.device)
    mixing, downhill, count = torch.full_like(length, 0.1), _count(x), _count(x)
    force = -objective(x)[1]
    active = _norm(force) > tolerance
    for _ in range(limit):
        if not active.any():
            break
        power = _dot(force, velocity)
        ahead = power > 0
        steered = _norm(velocity)[..., None] * force * _safe(1.0, _norm(force))[..., None]
        velocity = (1 - mixing)[..., None] * velocity + mixing[..., None] * steered
        velocity = torch.where(ahead[..., None], velocity, 0)
        downhill = torch.where(ahead, downhill + 1, 0)
        faster = downhill > 5
        length = torch.where(ahead, torch.where(faster, (1.1 * length).clamp(max=10 * step), length), length / 2)
        mixing = torch.where(ahead, torch.where(faster, 0.99 * mixing, mixing), 0.1)
        velocity = velocity + length[..., None] * force
        x = torch.where(active[..., None], x + length[..., None] * velocity, x)
        force = torch.where(active[..., None], -objective(x)[1], force)
        count = count + active
        active = active & (_norm(force) > tolerance)
    return Found(x, _norm(force), count)


def _line_search_loop(
    objective: Objective,
    direction: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    tolerance: float,
    limit: int,
    remember: Callable[[Tensor, Tensor], None],
) -> Found:
    """Descend along ``direction(x, gradient)`` with Armijo backtracking."""
    value, gradient = objective(x)
    count, slack = _count(x), 10 * torch.finfo(x.dtype).eps
    active = _norm(gradient) > tolerance
    for _ in range(limit):
        if not active.any():
            break
        step = direction(x, gradient)
        slope = _dot(step, gradient)
        scale = torch.ones_like(value)
        searching: Bool[Tensor, "*batch"] = active
        start, start_gradient = x, gradient
        for _ in range(40):
            if not searching.any():
                break
            trial = start + torch.where(searching, scale, 0)[..., None] * step
            trial_value, trial_gradient = objective(trial)
            # The slack lets the last steps through, where the decrease is below the rounding of the value.
            good = searching & (trial_value <= value + 1e-4 * scale * slope + slack * value.abs())
            x = torch.where(good[..., None], trial, x)
            value = torch.where(good, trial_value, value)
            gradient = torch.where(good[..., None], trial_gradient, gradient)
            searching = searching & ~good
            scale = torch.where(searching, scale / 2, scale)
        remember(x - start, gradient - start_gradient)
        count = count + active
        active = active & ~searching & (_norm(gradient) > tolerance)
    return Found(x, _norm(gradient), count)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1)


def _count(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)


def _safe(top: Tensor | float, bottom: Tensor) -> Tensor:
    return torch.where(bottom != 0, top / torch.where(bottom != 0, bottom, 1), 0)
