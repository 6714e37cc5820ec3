"""The augmented Lagrangian for a batch of problems, each with multipliers of its own, as a loop that can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_callable, check_integer, check_positive, check_scalar
from pullback.core.errors import ConvergenceError
from pullback.core.rows import Rows
from pullback.core.shapes import Bool, Float, Shaped, Tensor
from pullback.kernels.orthantwise import minimise_orthantwise

__all__ = ["AugmentedLagrangian", "Constrained", "augmented_lagrangian_fit"]

Parameters = Mapping[str, Tensor]


class Constrained(NamedTuple):
    """What :func:`augmented_lagrangian_fit` returns.

    Attributes:
        parameters: by name, shaped as they were given.
        violation: ``[*batch, m]`` of the constraints there.
        converged: ``[*batch]`` whether all constraints of a problem are within the tolerance.
        history: ``[steps, *batch, m]`` the violation after each step.
    """

    parameters: dict[str, Tensor]
    violation: Float[Tensor, "*batch m"]
    converged: Bool[Tensor, "*batch"]
    history: Float[Tensor, "steps *batch m"]


class AugmentedLagrangian:
    r"""Minimise a loss subject to ``m`` constraints :math:`h_k \ge 0` that must vanish, many problems side by side.

    Each :meth:`step` minimises, from the last solution and by an orthant-wise quasi-Newton method (L-BFGS without a
    penalty),

    .. math:: f(\theta) + \sum_i \lambda_i |\theta_i| + \sum_k \big(\alpha_k h_k(\theta)
              + \tfrac{\rho_k}{2} h_k(\theta)^2\big)

    A constraint that fell to ``shrink`` times its last value raises its own multiplier, ``alpha_k += rho_k h_k``; one
    that did not multiplies its own ``rho_k`` by ``factor``; one within the tolerance keeps both. A problem ends when
    all its constraints are within the tolerance, or a ``rho_k`` would pass ``max_rho``; the others go on.

    Args:
        parameters: by name, floating tensors ``[*batch, ...]`` of one dtype: where to start.
        loss: ``loss(parameters, *data) -> [rows]`` or ``[rows, m]`` (which is summed): it is called with the problems
            that have not ended, all leading dimensions as one (with ``batch_ndim=0``: with none, and returns ``[]``).
        constraint: the same for ``h``: ``[rows]`` or ``[rows, m]``, >= 0.
        data: tensors ``[*batch, ...]``, handed on problem by problem.
        batch_ndim: leading dimensions that number the problems.
        l1: ``lambda >= 0`` by the name of the parameter: a number, or a tensor that broadcasts against one problem's.
        rho, alpha: to begin with, > 0 and >= 0.
        factor: > 1.
        shrink: in (0, 1).
        tolerance: of ``h``, > 0.
        max_rho: > 0.
        steps: at most.
        iterations: quasi-Newton steps a step.
        relative: an inner problem ends after two steps in a row that lower its value by less than this part, > 0.
        keep: whether a problem goes on from a solution with which a constraint did not fall enough, or from the one
            before it.

    Attributes:
        taken: steps taken.

    Raises:
        TypeError, ValueError: arguments of another kind or out of range; tensors without the leading dimensions.

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), algorithm 1; Nocedal, Wright (2006), section 17.3.
    """

    def __init__(
        self,
        parameters: Parameters,
        loss: Callable[..., Tensor],
        constraint: Callable[..., Tensor],
        *,
        data: Sequence[Tensor] = (),
        batch_ndim: int = 0,
        l1: Mapping[str, float | Tensor] | None = None,
        rho: float = 1.0,
        alpha: float = 0.0,
        factor: float = 10.0,
        shrink: float = 0.25,
        tolerance: float = 1e-8,
        max_rho: float = 1e16,
        steps: int = 100,
        iterations: int = 500,
        relative: float = 1e-9,
        keep: bool = True,
    ) -> None:
        check_callable("loss", loss)
        check_callable("constraint", constraint)
        for name, value in (("rho", rho), ("tolerance", tolerance), ("max_rho", max_rho), ("relative", relative)):
            check_scalar(name, value)
        check_scalar("alpha", alpha, zero=True)
        if not factor > 1:
            raise ValueError(f"factor must be > 1, got {factor}")
        if not 0 < shrink < 1:
            raise ValueError(f"shrink must be in (0, 1), got {shrink}")
        self.steps, self.taken = check_integer("steps", steps, 1), 0
        self._iterations = check_integer("iterations", iterations, 1)
        self._factor, self._shrink, self._tolerance = factor, shrink, tolerance
        self._max_rho, self._relative, self._keep = max_rho, relative, keep
        start = {name: value.detach() for name, value in dict(parameters).items()}
        self._rows = Rows.of(start, batch_ndim, "parameters")
        strengths = dict(l1 or {})
        if unknown := set(strengths) - set(start):
            raise ValueError(f"l1 names no parameter: {sorted(unknown)}; there are {sorted(start)}")
        for name, strength in strengths.items():
            check_positive(f"l1 of {name}", strength, zero=True)
        self._penalty = self._rows.pack({n: torch.zeros_like(v) + strengths.get(n, 0.0) for n, v in start.items()})[0]
        self._data = [self._flat(value, place) for place, value in enumerate(data)]
        self._loss, self._constraint = loss, constraint
        x = self._rows.pack(start).clone()
        with torch.no_grad():
            violation = self._values(constraint, x, torch.arange(len(x), device=x.device))
        self._table: dict[str, Tensor] = {
            "x": x,
            "alpha": torch.full_like(violation, alpha),
            "rho": torch.full_like(violation, rho),
            "violation": torch.full_like(violation, math.inf),
            "ended": torch.zeros(len(x), dtype=torch.bool, device=x.device),
        }
        self._history: list[Tensor] = []

    @property
    def finished(self) -> bool:
        """Whether more steps would change nothing."""
        return self.taken >= self.steps or bool(self._table["ended"].all())

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters as they are now, by name."""
        values: dict[str, Tensor] = self._rows.unpack(self._table["x"])
        return values

    def step(self) -> None:
        """Solve one inner problem of every row and move its multipliers; nothing happens once all have ended.

        Raises:
            ConvergenceError: the objective of a problem is not finite.
        """
        if self.finished:
            return
        rows = (~self._table["ended"]).nonzero().squeeze(-1)
        before, alpha, rho, last = (self._table[name][rows] for name in ("x", "alpha", "rho", "violation"))

        def evaluate(x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                h = self._values(self._constraint, x, rows[chosen])
                value = self._values(self._loss, x, rows[chosen]).sum(-1)
                value = value + ((alpha[chosen] + 0.5 * rho[chosen] * h) * h).sum(-1)
                (gradient,) = torch.autograd.grad(value.sum(), x)
            return value.detach(), gradient, h.detach()

        x, value, h = minimise_orthantwise(
            evaluate, before, self._penalty, iterations=self._iterations, tolerance=self._relative
        )
        if not bool(value.isfinite().all()):
            raise ConvergenceError("the objective of the augmented Lagrangian is not finite; scale the data", None)
        within = h <= self._tolerance
        falls = ~within & (h <= self._shrink * last)
        slow = ~within & ~falls
        new = {
            "x": x if self._keep else torch.where(slow.any(-1, keepdim=True), before, x),
            "alpha": torch.where(falls, alpha + rho * h, alpha),
            "rho": torch.where(slow, self._factor * rho, rho),
            "violation": torch.where(slow, last, h),
            "ended": within.all(-1) | (slow & (self._factor * rho > self._max_rho)).any(-1),
        }
        for name, tensor in new.items():
            self._table[name] = self._table[name].index_copy(0, rows, tensor)
        previous = self._history[-1] if self._history else torch.full_like(self._table["alpha"], math.inf)
        self._history.append(previous.index_copy(0, rows, h))
        self.taken += 1

    def run(self) -> Constrained:
        """Take all steps that are left and return the result."""
        while not self.finished:
            self.step()
        return self.result()

    def result(self) -> Constrained:
        """Return what was reached so far."""
        if not self._history:
            everything = torch.arange(self._rows.count, device=self._rows.device)
            with torch.no_grad():
                last = self._values(self._constraint, self._table["x"], everything)
        else:
            last = self._history[-1]
        shape = (*self._rows.batch, last.shape[-1])
        history = torch.stack(self._history) if self._history else last.new_zeros(0, *last.shape)
        return Constrained(
            self.parameters,
            last.reshape(shape),
            (last <= self._tolerance).all(-1).reshape(self._rows.batch),
            history.reshape(-1, *shape),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps change."""
        return {"taken": self.taken, "table": dict(self._table), "history": list(self._history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of the same problems.

        Raises:
            ValueError: the state is of something else.
        """
        if set(state) != {"taken", "table", "history"}:
            raise ValueError(f"state must have the entries taken, table and history, got {sorted(state)}")
        for name, own in self._table.items():
            new = state["table"].get(name)
            if not isinstance(new, Tensor) or new.shape != own.shape or new.dtype != own.dtype:
                raise ValueError(f"state: {name} must be {own.dtype} of shape {tuple(own.shape)}, of the same problems")
        self._table = {name: state["table"][name].to(own.device, copy=True) for name, own in self._table.items()}
        self._history, self.taken = list(state["history"]), int(state["taken"])

    def _flat(self, value: Tensor, place: int) -> Tensor:
        batch = self._rows.batch
        if not isinstance(value, Tensor) or tuple(value.shape[: len(batch)]) != batch:
            raise ValueError(f"data[{place}] must be a tensor with the leading dimensions {batch} of the parameters")
        return value.reshape(-1, *value.shape[len(batch) :]) if batch else value

    def _values(self, function: Callable[..., Tensor], x: Tensor, rows: Tensor) -> Float[Tensor, "rows m"]:
        """Call a function of the user for some rows."""
        single = not self._rows.batch
        layout = replace(self._rows, batch=() if single else (len(rows),), count=len(rows))
        data = self._data if single else [value[rows] for value in self._data]
        value = function(layout.unpack(x), *data)
        if single:
            value = value.unsqueeze(0)
        if value.ndim not in (1, 2) or len(value) != len(rows):
            name = "loss" if function is self._loss else "constraint"
            raise ValueError(f"{name} must return one number a problem or one row of them, got {tuple(value.shape)}")
        return value.unsqueeze(-1) if value.ndim == 1 else value


def augmented_lagrangian_fit(
    parameters: Parameters,
    loss: Callable[..., Shaped[Tensor, "..."]],
    constraint: Callable[..., Tensor],
    **options: Any,
) -> Constrained:
    r"""Minimise a loss subject to constraints that must vanish: :class:`AugmentedLagrangian` run to its end.

    Args:
        parameters: by name, floating tensors ``[*batch, ...]``.
        loss, constraint: functions of the parameters (and of ``data``), see :class:`AugmentedLagrangian`.
        **options: those of :class:`AugmentedLagrangian`.

    Returns:
        :class:`Constrained`.

    Raises:
        TypeError, ValueError: as :class:`AugmentedLagrangian`.
        ConvergenceError: the objective is not finite.

    Example:
        >>> start = {"x": torch.zeros(2, dtype=torch.float64)}
        >>> found = augmented_lagrangian_fit(
        ...     start, lambda p: (p["x"] - 1).square().sum(), lambda p: (p["x"][0] + p["x"][1] - 1).square()
        ... )
        >>> found.parameters["x"].round(decimals=3)
        tensor([0.5000, 0.5000], dtype=torch.float64)

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), DAGs with NO TEARS, algorithm 1.
    """
    return AugmentedLagrangian(parameters, loss, constraint, **options).run()
