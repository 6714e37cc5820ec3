"""Bilevel problems, and descent on them: some inner steps, one outer step along a hypergradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.optim import Optimizer

from pullback.core.checks import check_integer
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_function
from pullback.implicit.hypergradients import Hypergradient
from pullback.implicit.solution import Solution
from pullback.implicit.variables import Objective, Variables, check_optimizer, gradient

__all__ = ["BilevelDescent", "BilevelProblem", "BilevelState", "HypergradientOf"]


@dataclass(frozen=True)
class BilevelProblem:
    r"""``min_x upper(x, y*(x))`` with ``y*(x) = argmin_y lower(x, y)``, at a point that those who solve it move.

    Attributes:
        upper: ``upper(x, y)``, the outer objective, one number. Either objective may draw a minibatch at each call.
        lower: ``lower(x, y)``, the inner objective, one number.
        x: outer variable: a floating tensor, a nesting of tuples, lists and dicts of them, or a module, which is handed
            to the objectives as such. Solvers write into it, as optimizers do into parameters.
        y: inner variable, likewise.
    """

    upper: Callable[[Any, Any], Tensor]
    lower: Callable[[Any, Any], Tensor]
    x: Any
    y: Any

    def __post_init__(self) -> None:
        check_function("upper", self.upper)
        check_function("lower", self.lower)
        Variables.of("x", self.x)
        Variables.of("y", self.y)


class HypergradientOf(Protocol):
    """What gives a hypergradient at a point: a ``functools.partial`` of :func:`hypergradient` with its options."""

    def __call__(
        self, upper: Callable[[Any, Any], Tensor], lower: Callable[[Any, Any], Tensor], x: Any, y: Any, /
    ) -> Hypergradient:
        """Return the hypergradient at ``x`` and ``y``."""


class BilevelState(NamedTuple):
    """Where a step of :class:`BilevelDescent` came to.

    Attributes:
        step: how many steps were taken.
        upper: the outer objective before the outer step, no dimensions.
        lower: the inner objective before the last inner step; NaN where the hypergradient took the inner steps.
        gradient: in ``x``, as :class:`Hypergradient` has it.
        solution: of the linear system, ``None`` of methods that solve none.
    """

    step: int
    upper: Float[Tensor, ""]
    lower: Float[Tensor, ""]
    gradient: Any
    solution: Solution | None


class BilevelDescent:
    r"""Descent on a bilevel problem: ``inner_steps`` steps on ``lower`` in ``y``, one along the hypergradient in ``x``.

    ``y`` goes on from where it was (a warm start) unless ``restart`` is set. The problem's tensors are changed in place
    by the optimizers, which own learning rates, momentum and schedules. No graph outlives a step: memory depends on
    neither the number of steps nor that of inner steps (of the unrolled hypergradients, on the latter).

    Args:
        problem: what is solved.
        hypergradient: ``(upper, lower, x, y) -> Hypergradient``, such as
            ``functools.partial(hypergradient, method="cg", terms=10)``.
        outer_optimizer: over the tensors of ``problem.x``.
        inner_optimizer: over the tensors of ``problem.y``; ``None`` for hypergradients that take the inner steps
            themselves (``"unrolled"``, ``"truncated"``, ``"bda"``): ``y`` becomes their last one.
        inner_steps: >= 0, of ``inner_optimizer`` before each outer step.
        restart: whether ``y`` begins at its first value in each step.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count is out of range, an optimizer lacks a tensor of its variable.

    Example:
        >>> from functools import partial
        >>> from pullback.implicit import hypergradient
        >>> x, y = torch.zeros(1), torch.zeros(1)  # y*(x) = x, so upper is (x - 3)^2
        >>> problem = BilevelProblem(
        ...     lambda x, y: ((y - 3) ** 2).sum(), lambda x, y: ((y - x) ** 2).sum() / 2, x, y
        ... )
        >>> descent = BilevelDescent(
        ...     problem,
        ...     hypergradient=partial(hypergradient, method="neumann", terms=5, scale=0.5),
        ...     outer_optimizer=torch.optim.SGD([x], lr=0.2),
        ...     inner_optimizer=torch.optim.SGD([y], lr=0.5),
        ...     inner_steps=3,
        ... )
        >>> for _ in range(50):
        ...     state = descent.step()
        >>> state.step, round(x.item(), 3), round(y.item(), 3)
        (50, 3.0, 3.0)

    References:
        Lorraine, Vicol, Duvenaud (2020), Optimizing millions of hyperparameters by implicit differentiation,
        algorithm 1.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        hypergradient: HypergradientOf,
        outer_optimizer: Optimizer,
        inner_optimizer: Optimizer | None = None,
        inner_steps: int = 1,
        restart: bool = False,
    ) -> None:
        if not isinstance(problem, BilevelProblem):
            raise TypeError(f"problem must be a BilevelProblem, got {type(problem).__name__}")
        check_function("hypergradient", hypergradient)
        check_integer("inner_steps", inner_steps, 0)
        self._outer, self._inner = Variables.of("x", problem.x), Variables.of("y", problem.y)
        check_optimizer("outer_optimizer", outer_optimizer, self._outer)
        if inner_optimizer is not None:
            check_optimizer("inner_optimizer", inner_optimizer, self._inner)
        self.problem = problem
        self.taken = 0
        self._lower = Objective("lower", problem.lower, self._outer, self._inner)
        self._hypergradient = hypergradient
        self._outer_optimizer, self._inner_optimizer = outer_optimizer, inner_optimizer
        self._inner_steps = inner_steps
        self._first = [leaf.detach().clone() for leaf in self._inner.leaves] if restart else None

    def step(self) -> BilevelState:
        """Take the inner steps and an outer one.

        Raises:
            ValueError, ConvergenceError: as :func:`hypergradient` does.
        """
        if self._first is not None:
            self._inner.assign(self._first)
        lower = self._descend()
        problem = self.problem
        found = self._hypergradient(problem.upper, problem.lower, problem.x, problem.y)
        if self._inner_optimizer is None:
            self._inner.assign(self._inner.like("the hypergradient's y", found.y))
        for leaf, slope in zip(self._outer.leaves, self._outer.like("the hypergradient", found.gradient), strict=True):
            leaf.grad = slope
        self._outer_optimizer.step()
        self._outer_optimizer.zero_grad()
        self.taken += 1
        value = found.value.new_full((), torch.nan) if lower is None else lower
        return BilevelState(self.taken, found.value, value, found.gradient, found.solution)

    def _descend(self) -> Tensor | None:
        value = None
        if self._inner_optimizer is not None:
            x = [leaf.detach() for leaf in self._outer.leaves]
            for _ in range(self._inner_steps):
                with torch.enable_grad():
                    y = self._inner.live()
                    value = self._lower(x, y)
                    _, slopes = gradient("lower", value, [], y)
                for leaf, slope in zip(self._inner.leaves, slopes, strict=True):
                    leaf.grad = slope
                self._inner_optimizer.step()
            self._inner_optimizer.zero_grad()
        return None if value is None else value.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes: both variables, both optimizers and the count."""
        inner = self._inner_optimizer
        return {
            "x": [leaf.detach() for leaf in self._outer.leaves],
            "y": [leaf.detach() for leaf in self._inner.leaves],
            "outer": self._outer_optimizer.state_dict(),
            "inner": None if inner is None else inner.state_dict(),
            "taken": self.taken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._outer.assign(state["x"])
        self._inner.assign(state["y"])
        self._outer_optimizer.load_state_dict(state["outer"])
        if self._inner_optimizer is not None:
            self._inner_optimizer.load_state_dict(state["inner"])
        self.taken = state["taken"]
