"""Constrained problems, and ascent on their duals: some primal steps on a Lagrangian, one step of its multipliers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from pullback.core.checks import check_floating, check_integer, check_positive, check_range
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_function, check_number
from pullback.implicit.multipliers import InfeasibleError, Multipliers, check_limit
from pullback.implicit.variables import Function, Variables, check_optimizer

__all__ = ["AugmentedLagrangian", "ConstrainedProblem", "DualAscent", "DualState"]


@dataclass(frozen=True)
class ConstrainedProblem:
    r"""``min_x objective(x)`` subject to ``constraint_i(x) <= bound_i``, at a point that those who solve it move.

    Attributes:
        losses: ``losses(x)``, the objective (one number) and all constraints (``[m]``) from one evaluation, so that
            they share what they compute and the minibatch that they draw.
        bounds: ``[m]``, one for each constraint.
        x: the variable: a floating tensor, a nesting of tuples, lists and dicts of them, or a module, which is handed
            to ``losses`` as such. Solvers write into it, as optimizers do into parameters.
    """

    losses: Callable[[Any], tuple[Tensor, Tensor]]
    bounds: Float[Tensor, "m"]
    x: Any

    def __post_init__(self) -> None:
        check_function("losses", self.losses)
        check_floating("bounds", self.bounds)
        if self.bounds.ndim != 1 or not len(self.bounds) or bool(self.bounds.isnan().any()):
            raise ValueError(f"bounds must be [m] numbers, one for each of m >= 1 constraints, got {self.bounds}")
        Variables.of("x", self.x)


class DualState(NamedTuple):
    """Where the primal steps of one dual step came to.

    Attributes:
        step: how many steps were taken before.
        objective: no dimensions.
        slacks: ``[m]``, constraints minus bounds: a constraint is violated where its slack is positive.
        multipliers: ``[m]``, those of the primal steps.
        dual: the Lagrangian ``objective + sum_i multiplier_i slack_i``. Where the primal steps minimise it, it is
            the dual function, below the objective of every feasible point.
        gap: ``objective - dual``, the lack of complementary slackness.
    """

    step: int
    objective: Float[Tensor, ""]
    slacks: Float[Tensor, "m"]
    multipliers: Float[Tensor, "m"]
    dual: Float[Tensor, ""]
    gap: Float[Tensor, ""]


class _Alternation:
    """Steps of an optimizer on a merit function of objective and slacks, then one step of the multipliers."""

    def __init__(
        self,
        problem: ConstrainedProblem,
        optimizer: Optimizer,
        primal_steps: int,
        restart: bool,
        measure: Callable[[Any], tuple[Tensor, Tensor]] | None,
        keep: int,
    ) -> None:
        if not isinstance(problem, ConstrainedProblem):
            raise TypeError(f"problem must be a ConstrainedProblem, got {type(problem).__name__}")
        check_integer("primal_steps", primal_steps, 1)
        check_integer("keep", keep, 0)
        if measure is not None:
            check_function("measure", measure)
        self._x = Variables.of("x", problem.x)
        check_optimizer("optimizer", optimizer, self._x)
        self.problem = problem
        self.taken = 0
        self.states: deque[DualState] = deque(maxlen=keep)
        self._optimizer, self._primal_steps = optimizer, primal_steps
        self._losses = Function("losses", problem.losses, self._x)
        self._measure = Function("measure", problem.losses if measure is None else measure, self._x)
        self._first = [leaf.detach().clone() for leaf in self._x.leaves] if restart else None

    @property
    def multipliers(self) -> Float[Tensor, "m"]:
        """The multipliers of the next primal steps."""
        raise NotImplementedError

    def _merit(self, objective: Tensor, slacks: Tensor) -> Tensor:
        raise NotImplementedError

    def _ascend(self, state: DualState) -> None:
        raise NotImplementedError

    def step(self) -> DualState:
        """Take the primal steps, and one of the multipliers.

        Raises:
            ValueError: ``losses`` does not return one number and one constraint for each bound.
            InfeasibleError: a multiplier grew beyond its limit; it carries the ``states``, with how it grew.
        """
        if self._first is not None:
            self._x.assign(self._first)
        for _ in range(self._primal_steps):
            self._optimizer.step(self._closure)
        self._optimizer.zero_grad()
        with torch.enable_grad():  # losses may take gradients of their own
            found = self._evaluate(self._measure, [leaf.detach() for leaf in self._x.leaves])
        objective, slacks = (value.detach() for value in found)
        state = _state(self.taken, objective, slacks, self.multipliers.clone())
        self.states.append(state)
        self._ascend(state)
        self.taken += 1
        return state

    def _closure(self) -> float:
        with torch.enable_grad():
            live = self._x.live()
            value = self._merit(*self._evaluate(self._losses, live))
            slopes = torch.autograd.grad(value, live, allow_unused=True)
        for leaf, slope in zip(self._x.leaves, slopes, strict=True):
            leaf.grad = None if slope is None else slope.contiguous()  # L-BFGS takes views of them
        return value.item()

    def _evaluate(self, losses: Function, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
        found, bounds = losses(leaves), self.problem.bounds
        name = losses.name
        if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(part, Tensor) for part in found):
            raise ValueError(f"{name} must return a pair of tensors, the objective and the constraints")
        objective, constraints = found
        if objective.numel() != 1:
            raise ValueError(f"{name} must return an objective of one element, got shape {tuple(objective.shape)}")
        if constraints.shape != bounds.shape:
            raise ValueError(
                f"{name} must return one constraint for each of {len(bounds)} bounds, got shape "
                f"{tuple(constraints.shape)}"
            )
        return objective.reshape(()), constraints - bounds

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes: the variable, the optimizer, the multipliers and the count."""
        return {
            "x": [leaf.detach() for leaf in self._x.leaves],
            "optimizer": self._optimizer.state_dict(),
            "multipliers": self.multipliers,
            "taken": self.taken,
            "states": [(s.objective, s.slacks, s.multipliers) for s in self.states],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._x.assign(state["x"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.multipliers.copy_(state["multipliers"])
        self.taken = state["taken"]
        first = self.taken - len(state["states"])
        self.states.clear()
        self.states.extend(_state(first + k, *parts) for k, parts in enumerate(state["states"]))


def _state(step: int, objective: Tensor, slacks: Tensor, multipliers: Tensor) -> DualState:
    term = (multipliers * slacks).sum()
    return DualState(step, objective, slacks, multipliers, objective + term, -term)


class DualAscent(_Alternation):
    r"""Dual ascent: ``theta ~ argmin_x L(x, lambda)``, then ``lambda <- max(0, lambda + dual_lr slack(theta))``.

    ``L(x, lambda) = objective(x) + sum_i lambda_i slack_i(x)``. The minimum is approached by ``primal_steps`` steps of
    the optimizer, from where the last ones ended unless ``restart`` is set. Where the parametrisation of a model is
    rich, the last minimiser is close to feasible although the problem is not convex.

    Args:
        problem: what is solved.
        optimizer: over the tensors of ``problem.x``; also one that evaluates a closure, as ``torch.optim.LBFGS``.
        dual_lr: step size of the multipliers, >= 0; with 0 they stay ``initial``, a fixed penalty.
        primal_steps: >= 1, of the optimizer before each step of the multipliers.
        restart: whether ``x`` begins at its first value before each step of the multipliers.
        initial: every multiplier before the first step, >= 0.
        limit: largest multiplier that is accepted, > 0: beyond it the bounds count as infeasible.
        measure: losses by which the multipliers step and which the states report, such as those of all samples where
            ``problem.losses`` draws a minibatch. ``None`` takes ``problem.losses``.
        keep: >= 0, how many of the last states are kept.

    Attributes:
        problem: the problem.
        taken: how many steps were taken.
        multipliers: ``[m]``, of the next step.
        states: the :class:`DualState` of each step, the last ``keep`` of them.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of range, or the optimizer lacks a tensor of ``x``.

    Example:
        >>> x = torch.zeros(2)  # the point of x_0 + x_1 <= 1 next to (1, 2); its multiplier is 2
        >>> problem = ConstrainedProblem(
        ...     lambda x: (((x - torch.tensor([1.0, 2.0])) ** 2).sum(), x.sum()[None]), torch.ones(1), x
        ... )
        >>> ascent = DualAscent(problem, optimizer=torch.optim.SGD([x], lr=0.25), dual_lr=0.5, primal_steps=5)
        >>> for _ in range(50):
        ...     state = ascent.step()
        >>> [round(v, 2) for v in (*x.tolist(), ascent.multipliers.item(), state.objective.item(), state.dual.item())]
        [0.0, 1.0, 2.0, 2.0, 2.0]

    References:
        Elenter, Chamon, Ribeiro (2024), Near-optimal solutions of constrained learning problems, algorithm 1.
    """

    def __init__(
        self,
        problem: ConstrainedProblem,
        *,
        optimizer: Optimizer,
        dual_lr: float,
        primal_steps: int = 1,
        restart: bool = False,
        initial: float = 0.0,
        limit: float = math.inf,
        measure: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        keep: int = 1000,
    ) -> None:
        super().__init__(problem, optimizer, primal_steps, restart, measure, keep)
        check_number("dual_lr", dual_lr, zero=True)
        self._price = Multipliers(len(problem.bounds), lr=dual_lr, initial=initial, limit=limit).to(problem.bounds)

    @property
    def multipliers(self) -> Float[Tensor, "m"]:
        """The multipliers of the next primal steps."""
        return self._price.values

    def _merit(self, objective: Tensor, slacks: Tensor) -> Tensor:
        return objective + self._price(slacks)

    def _ascend(self, state: DualState) -> None:
        try:
            self._price.ascend(state.slacks)
        except InfeasibleError as error:
            error.result = self.states
            raise


class AugmentedLagrangian(_Alternation):
    r"""Method of multipliers: primal steps on a Lagrangian with a quadratic penalty, then the multipliers it implies.

    ``L(x, lambda) = objective(x) + sum_i (max(0, lambda_i + rho slack_i)^2 - lambda_i^2) / (2 rho)`` and
    ``lambda <- max(0, lambda + rho slack)``. The penalty makes the Lagrangian convex near a solution of a problem that
    is not; ``rho`` grows by the factor ``growth`` while the largest violation does not fall by the factor ``progress``.

    Args:
        problem: what is solved.
        optimizer: over the tensors of ``problem.x``; also one that evaluates a closure.
        penalty: the first ``rho``, > 0.
        growth: >= 1.
        progress: in [0, 1], what the largest violation is multiplied by or less in a step that leaves ``rho``.
        primal_steps: >= 1, of the optimizer before each step of the multipliers.
        restart: whether ``x`` begins at its first value before each step of the multipliers.
        limit: largest multiplier that is accepted, > 0.
        measure: as :class:`DualAscent` has it.
        keep: as there.

    Attributes:
        problem: the problem.
        taken: how many steps were taken.
        penalty: ``rho`` of the next step.
        multipliers: ``[m]``, of the next step.
        states: the :class:`DualState` of each step, the last ``keep`` of them.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of range, or the optimizer lacks a tensor of ``x``.

    Example:
        >>> x = torch.full((1,), 0.9)  # -x^2 is concave: its Lagrangian has no minimum, the augmented one does
        >>> problem = ConstrainedProblem(lambda x: (-(x**2).sum(), x), torch.ones(1), x)
        >>> method = AugmentedLagrangian(problem, optimizer=torch.optim.SGD([x], lr=0.05), penalty=10, primal_steps=50)
        >>> for _ in range(20):
        ...     state = method.step()
        >>> round(x.item(), 3), round(method.multipliers.item(), 3)
        (1.0, 2.0)

    References:
        Nocedal, Wright (2006), Numerical optimization, section 17.4; Rockafellar (1973), The multiplier method of
        Hestenes and Powell applied to convex programming.
    """

    def __init__(
        self,
        problem: ConstrainedProblem,
        *,
        optimizer: Optimizer,
        penalty: float,
        growth: float = 2.0,
        progress: float = 0.5,
        primal_steps: int = 1,
        restart: bool = False,
        limit: float = math.inf,
        measure: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        keep: int = 1000,
    ) -> None:
        super().__init__(problem, optimizer, primal_steps, restart, measure, keep)
        check_number("penalty", penalty)
        check_number("growth", growth)
        if growth < 1:
            raise ValueError(f"growth must be >= 1, got {growth}")
        check_range("progress", progress, 0, 1)
        if limit != math.inf:
            check_positive("limit", limit)
        self.penalty = float(penalty)
        self._growth, self._progress, self._limit = growth, progress, limit
        self._values = torch.zeros_like(problem.bounds)
        self._violation = math.inf

    @property
    def multipliers(self) -> Float[Tensor, "m"]:
        """The multipliers of the next primal steps."""
        return self._values

    def _merit(self, objective: Tensor, slacks: Tensor) -> Tensor:
        shifted = torch.relu(self._values + self.penalty * slacks)
        return objective + (shifted**2 - self._values**2).sum() / (2 * self.penalty)

    def _ascend(self, state: DualState) -> None:
        self._values = torch.relu(self._values + self.penalty * state.slacks)
        check_limit(self._values, self._limit, state.slacks, self.states)
        violation = max(0.0, float(state.slacks.max()))
        if violation > self._progress * self._violation:
            self.penalty *= self._growth
        self._violation = violation

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes: the variable, the optimizer, multipliers, penalty and the count."""
        return super().state_dict() | {"penalty": self.penalty, "violation": self._violation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        super().load_state_dict(state)
        self.penalty, self._violation = state["penalty"], state["violation"]
