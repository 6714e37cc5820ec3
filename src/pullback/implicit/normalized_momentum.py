"""Bilevel problems whose outer objective is steep without bound: steps of known length, inner updates now and then."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_integer, check_range
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_number
from pullback.implicit.bilevel import BilevelProblem
from pullback.implicit.stationarity import Stationarity
from pullback.implicit.variables import Objective, Variables, gradient, length

__all__ = ["NormalizedBilevelMomentum", "NormalizedState"]


class NormalizedState(NamedTuple):
    """Where a step of :class:`NormalizedBilevelMomentum` began.

    Attributes:
        step: the number of the step, from 0.
        upper: the outer objective, no dimensions.
        lower: the inner objective.
        slope: norm of the estimated hypergradient.
        momentum: norm of its running mean, by which the step was divided.
    """

    step: int
    upper: Float[Tensor, ""]
    lower: Float[Tensor, ""]
    slope: Float[Tensor, ""]
    momentum: Float[Tensor, ""]


class NormalizedBilevelMomentum:
    r"""Normalised momentum on ``x`` with an inner problem that is refined first and updated periodically (BO-REP).

    Where the curvature of ``upper`` grows with its gradient, as of recurrent networks, no step size is small enough for
    plain descent. Here ``|x_{t+1} - x_t| = lr`` whatever the gradient, so ``y*(x)`` drifts by a known length, and a few
    inner steps every ``period`` steps follow it. In each step

    * ``z <- z - linear_lr (D_yy lower z - D_y upper)``
    * ``m <- momentum m + (1 - momentum) (D_x upper - D_xy lower z)``
    * ``x <- x - lr m / |m|``

    Before the first step ``y`` is refined: descent on ``lower`` in epochs, each with half the step of the one before
    and from the mean of its points. Every ``period`` steps ``y`` becomes the mean of ``lower_steps`` points of descent,
    each kept within ``radius`` of where ``y`` was. The problem's tensors are changed in place; objectives may draw a
    minibatch at each call.

    Args:
        problem: what is solved; ``lower`` is strongly convex in ``y``.
        lr: > 0, length of a step of ``x``. With a constant one, ``x`` ends within about ``lr`` of a stationary point.
        lower_lr: > 0, step size of the descent on ``lower``.
        linear_lr: > 0, step size of ``z``, below 2 / (largest eigenvalue of ``D_yy lower``).
        momentum: in [0, 1).
        period: >= 1, steps from one update of ``y`` to the next.
        lower_steps: >= 1, of an update.
        radius: > 0, or ``math.inf``.
        refinement_epochs: >= 0.
        refinement_steps: >= 1, of each epoch.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an option is out of range.

    Example:
        >>> from pullback.implicit import BilevelProblem
        >>> x, y = torch.full((1,), 4.0), torch.zeros(1)  # y*(x) = x: upper is cosh(x - 1), least at 1
        >>> problem = BilevelProblem(
        ...     lambda x, y: torch.cosh(y - 1).sum(), lambda x, y: ((y - x) ** 2).sum() / 2, x, y
        ... )
        >>> method = NormalizedBilevelMomentum(problem, lr=0.05, lower_lr=0.5, linear_lr=0.5)
        >>> for _ in range(200):
        ...     state = method.step()
        >>> abs(x.item() - 1) < 0.2
        True

    References:
        Hao, Gong, Liu (2024), Bilevel optimization under unbounded smoothness: a new algorithm and convergence
        analysis, algorithms 1 to 3.
        Hazan, Kale (2014), Beyond the regret minimization barrier: epochs.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr: float,
        lower_lr: float,
        linear_lr: float,
        momentum: float = 0.9,
        period: int = 2,
        lower_steps: int = 10,
        radius: float = math.inf,
        refinement_epochs: int = 5,
        refinement_steps: int = 20,
    ) -> None:
        if not isinstance(problem, BilevelProblem):
            raise TypeError(f"problem must be a BilevelProblem, got {type(problem).__name__}")
        for name, value in (("lr", lr), ("lower_lr", lower_lr), ("linear_lr", linear_lr)):
            check_number(name, value)
        check_range("momentum", momentum, 0, 1)
        if momentum == 1:
            raise ValueError("momentum must be in [0, 1), got 1")
        if radius != math.inf:
            check_number("radius", radius)
        check_integer("period", period, 1)
        check_integer("lower_steps", lower_steps, 1)
        check_integer("refinement_epochs", refinement_epochs, 0)
        check_integer("refinement_steps", refinement_steps, 1)
        self.problem = problem
        self.lr, self.lower_lr, self.linear_lr = lr, lower_lr, linear_lr
        self.taken = 0
        self._momentum, self._period, self._lower_steps, self._radius = momentum, period, lower_steps, radius
        self._refinement = refinement_epochs, refinement_steps
        self._outer, self._inner = Variables.of("x", problem.x), Variables.of("y", problem.y)
        self._upper = Objective("upper", problem.upper, self._outer, self._inner)
        self._lower = Objective("lower", problem.lower, self._outer, self._inner)
        self._z = [torch.zeros_like(leaf) for leaf in self._inner.leaves]
        self._m = [torch.zeros_like(leaf) for leaf in self._outer.leaves]

    def step(self) -> NormalizedState:
        """Update ``y`` if it is due, then move ``z`` and ``x``; where the momentum is 0, ``x`` stays.

        Raises:
            ValueError: an objective does not depend on ``y`` or returns no single number.
            ConvergenceError: ``z`` became infinite or NaN: ``linear_lr`` or ``lower_lr`` is too large. It carries the
                :class:`NormalizedState` of the step.
        """
        if self.taken == 0:
            for epoch in range(self._refinement[0]):
                self._descend(self._refinement[1], self.lower_lr / 2**epoch)
        elif self.taken % self._period == 0:
            self._descend(self._lower_steps, self.lower_lr)
        at = Stationarity(self._upper, self._lower, self._outer, self._inner, self._z, 0.0)
        beta = self._momentum
        m = [torch.lerp(slope, old, beta) for slope, old in zip(at.of_x, self._m, strict=True)]
        size = length(m)
        state = NormalizedState(self.taken, at.upper, at.lower, length(at.of_x), size)
        z = [torch.sub(old, gap, alpha=self.linear_lr) for old, gap in zip(self._z, at.of_v, strict=True)]
        if not all(bool(torch.isfinite(leaf).all()) for leaf in (*z, *m)):
            raise ConvergenceError(
                f"NormalizedBilevelMomentum: z or the momentum became infinite or NaN in step {self.taken}; "
                "take a smaller linear_lr or lower_lr",
                state,
            )
        self._z, self._m = z, m
        far = torch.where(size > 0, self.lr / torch.where(size > 0, size, 1), 0)
        self._outer.assign([leaf.detach() - far * v for leaf, v in zip(self._outer.leaves, m, strict=True)])
        self.taken += 1
        return state

    def _descend(self, steps: int, rate: float) -> None:
        """Move ``y`` to the mean of ``steps`` points of descent, each within the radius of where it was."""
        x, centre = [leaf.detach() for leaf in self._outer.leaves], [leaf.detach() for leaf in self._inner.leaves]
        y, total = centre, [torch.zeros_like(leaf) for leaf in centre]
        for _ in range(steps):
            with torch.enable_grad():
                live = [leaf.clone().requires_grad_() for leaf in y]
                _, slopes = gradient("lower", self._lower(x, live), [], live)
            moved = [torch.sub(v.detach() - c, g, alpha=rate) for v, c, g in zip(live, centre, slopes, strict=True)]
            if self._radius < math.inf:
                back = (self._radius / length(moved)).clamp(max=1)  # 1 where nothing moved
                moved = [back * v for v in moved]
            y = [c + v for c, v in zip(centre, moved, strict=True)]
            total = [t + v for t, v in zip(total, moved, strict=True)]
        self._inner.assign([c + t / steps for c, t in zip(centre, total, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes: both variables, ``z``, the momentum and the count."""
        tensors = {"x": self._outer.leaves, "y": self._inner.leaves, "z": self._z, "m": self._m}
        return {key: [leaf.detach() for leaf in leaves] for key, leaves in tensors.items()} | {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._outer.assign(state["x"])
        self._inner.assign(state["y"])
        self._z, self._m = ([leaf.clone() for leaf in state[key]] for key in ("z", "m"))
        self.taken = state["taken"]
