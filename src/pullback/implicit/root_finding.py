"""Methods for roots and fixed points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.shapes import Tensor
from pullback.implicit.iteration import Map, State, backtrack, norm
from pullback.implicit.linear_solve import LinearOptions, Operator, dense, solve_system

__all__ = ["Anderson", "Broyden", "NewtonRoot", "Picard"]


@dataclass(frozen=True)
class NewtonRoot:
    """Newton's method for ``function(x) = 0`` with backtracking on the residual norm.

    References:
        Dennis, Schnabel (1983), Numerical methods for unconstrained optimization and nonlinear equations, chapter 6.
    """

    function: Map
    jacobian: Operator
    linear: LinearOptions

    def init(self, x: Tensor) -> State:
        """Evaluate the function."""
        value = self.function(x)
        return State.moving(x, norm(value), value)

    def step(self, state: State, active: Tensor) -> State:
        """Take the Newton step, shorter until the residual falls enough."""
        direction = -solve_system(self.jacobian, state.memory, (state.x,), self.linear).value
        # No direction, where the residual is not 0, is what a singular Jacobian leaves.
        usable = torch.isfinite(direction).all(1) & (direction != 0).any(1)

        def accept(length: Tensor, found: tuple[Tensor, ...]) -> Tensor:
            return norm(found[0]) <= (1 - 1e-4 * length) * state.residual

        x, (value,), failed = backtrack(
            lambda x: (self.function(x),), accept, state.x, (state.memory,), direction, active & usable, halvings=30
        )
        return State(x, norm(value), failed | ~usable, value)


class _Secant(NamedTuple):
    """The value ``[count, n]``, the approximate inverse Jacobian ``[count, n, n]``, and whether it is exact."""

    value: Tensor
    inverse: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Broyden:
    """Broyden's first method: the Jacobian of the start, changed by a rank-one update a step.

    A row that its direction brings no nearer gets the Jacobian of where it is, and stalls when that does not help.

    References:
        Broyden (1965), A class of methods for solving nonlinear simultaneous equations; Dennis, Schnabel (1983),
        chapter 8.
    """

    function: Map
    jacobian: Operator

    def init(self, x: Tensor) -> State:
        """Evaluate the function and invert its Jacobian."""
        value = self.function(x)
        fresh = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return State.moving(x, norm(value), _Secant(value, self._invert(x), fresh))

    def step(self, state: State, active: Tensor) -> State:
        """Step along the approximate Newton direction and update."""
        value, inverse, fresh = state.memory
        direction = -(inverse @ value[..., None])[..., 0]
        usable = torch.isfinite(direction).all(1) & (direction != 0).any(1)

        def accept(length: Tensor, found: tuple[Tensor, ...]) -> Tensor:
            return norm(found[0]) <= (1 - 1e-4 * length) * state.residual

        # Nothing else is left to a row whose Jacobian is exact; one whose is not gets a new one first.
        halvings = 30 if bool((fresh & active).any()) else 10
        evaluate: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (self.function(x),)  # noqa: E731
        x, (new,), failed = backtrack(evaluate, accept, state.x, (value,), direction, active & usable, halvings)
        failed = failed | (active & ~usable)
        step, change = x - state.x, new - value
        pulled = (inverse @ change[..., None])[..., 0]
        across = (step[:, None] @ inverse)[:, 0]
        bottom = (step * pulled).sum(-1)
        updated = inverse + ((step - pulled)[..., :, None] * across[..., None, :]) / bottom[:, None, None]
        sound = torch.isfinite(updated).all((1, 2))[:, None, None]
        inverse = torch.where(sound, updated, inverse)
        again = failed & ~fresh
        if bool(again.any()):
            inverse = torch.where(again[:, None, None], self._invert(x), inverse)
        return State(x, norm(new), failed & fresh, _Secant(new, inverse, again))

    def _invert(self, x: Tensor) -> Tensor:
        matrix = dense(self.jacobian.at(x), x)
        wide = torch.promote_types(x.dtype, torch.float32)  # torch factorises nothing narrower
        return torch.linalg.inv_ex(matrix.to(wide))[0].to(x.dtype)


@dataclass(frozen=True)
class Picard:
    """``x <- x + damping * (map(x) - x)``."""

    map: Map
    damping: float

    def init(self, x: Tensor) -> State:
        """Evaluate the map."""
        gap = self.map(x) - x
        return State.moving(x, norm(gap), gap)

    def step(self, state: State, active: Tensor) -> State:
        """Move by a part of the gap."""
        return self.init(state.x + self.damping * state.memory)


class _Differences(NamedTuple):
    """The last gap, and the steps and the changes of the gap before it, ``[count, n, steps]``."""

    gap: Tensor
    steps: Tensor
    changes: Tensor


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration (type II): combine the last steps so that the combined residual is smallest.

    References:
        Walker, Ni (2011), Anderson acceleration for fixed-point iterations, equation 2.3.
    """

    map: Map
    damping: float
    memory: int

    def init(self, x: Tensor) -> State:
        """Evaluate the map; no steps are known yet."""
        gap = self.map(x) - x
        return State.moving(x, norm(gap), _Differences(gap, *x.new_zeros(2, *x.shape, 0)))

    def step(self, state: State, active: Tensor) -> State:
        """Move to where the last steps, combined, promise the smallest gap."""
        gap, steps, changes = state.memory
        update = self.damping * gap
        if steps.shape[-1]:
            update = update - ((steps + self.damping * changes) @ _weights(changes, gap))[..., 0]
        x = state.x + update
        new = self.map(x) - x
        steps = torch.cat([steps, (x - state.x)[..., None]], -1)[..., -self.memory :]
        changes = torch.cat([changes, (new - gap)[..., None]], -1)[..., -self.memory :]
        return State.moving(x, norm(new), _Differences(new, steps, changes))


def _weights(changes: Tensor, gap: Tensor) -> Tensor:
    """Return the least-squares weights ``[count, steps, 1]`` of the changes that make up the gap."""
    # A relative ridge, because the changes become parallel near the fixed point. LAPACK has no half precision.
    wide = changes.float() if changes.dtype in (torch.float16, torch.bfloat16) else changes
    gram = wide.mT @ wide
    scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=torch.finfo(wide.dtype).tiny)
    ridge = torch.finfo(changes.dtype).eps * scale * torch.eye(gram.shape[-1], dtype=wide.dtype, device=wide.device)
    weights = torch.linalg.solve_ex(gram + ridge, wide.mT @ gap.to(wide.dtype)[..., None])[0]
    return torch.where(torch.isfinite(weights).all(-2, keepdim=True), weights, 0).to(changes.dtype)
