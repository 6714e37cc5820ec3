"""What a solve is made of: the problem, the way of differentiating it, and what the backward pass is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from pullback.dynamics.control import Control
from pullback.dynamics.field import FlatField
from pullback.dynamics.storage import Keep, Storage
from pullback.dynamics.tableaux import Tableau

if TYPE_CHECKING:
    from pullback.dynamics.loop import OnStep

__all__ = ["Adjoint", "Problem", "Reverse", "Solved"]


@dataclass(frozen=True)
class Adjoint:
    """One way to differentiate a solve.

    Attributes:
        name: what the user calls it.
        exact: whether it is the gradient of the discrete solution, or approximates that of the continuous one.
        keeps: what it needs of the accepted steps.
        keeps_states: whether it needs the states at the output times.
        backward: ``backward(problem, solved, params, cotangents)`` returns the cotangents of ``y0`` and of ``params``;
            ``None`` leaves it to autograd.
    """

    name: str
    exact: bool
    keeps: Keep = "nothing"
    keeps_states: bool = False
    backward: Callable[[Problem, Solved, list[Tensor], Cotangents], Gradients] | None = None


@dataclass(frozen=True)
class Reverse:
    """How the adjoint of a solve is solved, where that is a solve of its own."""

    tableau: Tableau
    control: Control
    on_step: OnStep | None = None


@dataclass(frozen=True)
class Problem:
    """All that defines a solve but its differentiable inputs."""

    field: FlatField
    tableau: Tableau
    control: Control
    adjoint: Adjoint
    dense: bool
    reverse: Reverse
    on_step: OnStep | None = None

    def within(self, low: Tensor, high: Tensor) -> Problem:
        """The same, its field asked at no time outside of ``[low, high]``."""
        return replace(self, field=self.field.within(low, high))


@dataclass
class Solved:
    """What the backward pass of a solve starts from.

    Attributes:
        y0: ``[samples, size]``.
        times: ``[times, M, 1]`` ascending.
        reached: ``[M, 1]`` last time of each sample.
        nodes: on a grid, the number of steps before each output time; ``None`` where steps adapted.
        steps: what was kept of them.
        states: ``[times, samples, size]``, where the adjoint keeps them.
    """

    y0: Tensor
    times: Tensor
    reached: Tensor
    nodes: list[int] | None
    steps: Storage
    states: Tensor | None = None


Cotangents = tuple[Tensor, ...]
"""Of the states ``[times, samples, size]`` and, where dense output was asked for, of starts and stages of the steps."""

Gradients = tuple[Tensor, list[Tensor | None]]
"""Cotangents of ``y0`` and of each parameter, ``None`` for one that was never met."""
