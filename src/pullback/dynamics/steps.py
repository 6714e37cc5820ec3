"""One step of any tableau: forward without a graph, forward with one, and its exact adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import transform_running
from pullback.dynamics.captures import check_known, known_edges
from pullback.dynamics.field import FlatField
from pullback.dynamics.tableaux import Coefficients, Tableau
from pullback.dynamics.transforms import every

__all__ = ["StepAdjoint", "Stepper", "interpolation_weights", "quietly"]

_Field = Callable[[Tensor, Tensor], Tensor]


def interpolation_weights(dense: Tensor, x: Tensor) -> Tensor:
    """Weights of the stages in the dense output at fractions ``x`` of the step.

    Args:
        dense: ``[stages, degree]``, or ``[size, stages, degree]`` where partitioned.
        x: ``[..., 1]`` fractions.

    Returns:
        ``[..., stages]`` or ``[..., size, stages]``.
    """
    powers = torch.stack([x**j for j in range(1, dense.shape[-1] + 1)], -1)  # [..., 1, degree]
    if dense.ndim == 2:
        return (powers @ dense.T).squeeze(-2)
    return torch.einsum("...d,nsd->...ns", powers.squeeze(-2), dense)


class Stepper:
    """Steps of one method for states ``[samples, size]``.

    Args:
        field: ``field(t, y)`` on flat states.
        tableau: the method.
        like: a state, for size, dtype and device.
        live: keep the graph (the unrolled gradient, transforms of ``torch.func``); else stages share one buffer.
        tolerance: relative tolerance of the step control, to which implicit stages must be solved at least.
    """

    def __init__(self, field: _Field, tableau: Tableau, like: Tensor, *, live: bool, tolerance: float = 1e-6) -> None:
        self.field = field
        self.tableau = tableau
        self.live = live
        self.tolerance = tolerance
        # implicit stages need the Jacobian, so the field with its graph, where ``field`` is FlatField.quiet without
        owner = getattr(field, "__self__", None)
        self.graph: _Field = owner if isinstance(owner, FlatField) else field
        self._begin: Any = getattr(field, "begin_step", None)
        samples, size = like.shape
        self.c: Coefficients = tableau.coefficients(size, like.dtype, like.device)
        self.solved: Tensor | None = None  # [samples, 1], which implicit stages were solved; None: all
        if not live:
            self.buffer = like.new_zeros(tableau.stages, samples, size)
            flat = self.buffer.view(tableau.stages, -1)
            self._views = [flat[:i].T for i in range(tableau.stages + 1)]
            self._slots = list(self.buffer.unbind(0))

    def quietly(self, t: Tensor, y: Tensor) -> Tensor:
        """The field without a graph, also where it differentiates inside."""
        return quietly(self.field, t, y)

    def combine(self, coefficients: Tensor, stages: Any) -> Tensor:
        """sum_i coefficients_i stages_i over the first stages."""
        if not self.live:
            if coefficients.ndim == 1:
                return torch.mv(self._views[coefficients.shape[0]], coefficients).view(self.buffer.shape[1:])
            return (coefficients.unsqueeze(1) * self.buffer[: coefficients.shape[0]]).sum(0)
        stack = torch.stack(stages[: coefficients.shape[0]])
        if coefficients.ndim == 1:
            return (coefficients @ stack.flatten(1)).view(stack.shape[1:])
        return (coefficients.unsqueeze(1) * stack).sum(0)

    def __call__(self, t: Tensor, h: Tensor, y: Tensor, first: Tensor, *, last: bool = True) -> tuple[Tensor, Any]:
        """One step.

        Args:
            t, h: ``[samples or 1, 1]`` time and step.
            y: ``[samples, size]``.
            first: the field at (t, y).
            last: evaluate the last stage too (the error estimate, the next step and the dense output need it).

        Returns:
            The new state and the stages: a list where live, else the buffer ``[stages, samples, size]``, overwritten
            by the next step.
        """
        tableau, c = self.tableau, self.c
        count = tableau.stages
        if self._begin is not None:
            self._begin(h)
        times = (t + c.nodes * h).unbind(0)
        stages: Any = [first] if self.live else self.buffer
        if not self.live:
            self._slots[0].copy_(first)
        self.solved = None
        inverse: Any = None
        state = y
        for i in range(1, count):
            final = i == count - 1
            if tableau.a[i][i] != 0:
                base = torch.addcmul(y, h, self.combine(c.rows[i], stages))
                if inverse is None or self.live:
                    inverse = _Newton(self, h * tableau.a[i][i])
                state, k = inverse.solve(times[i], base, stages[i - 1])
            else:
                # the first rows of a partitioned method may be zero, but they are combined all the same
                state = torch.addcmul(y, h, self.combine(c.rows[i], stages))
                if final and not last and tableau.ends_at_solution:
                    break
                k = self.field(times[i], state)
            if self.live:
                stages.append(k)
            else:
                self._slots[i].copy_(k)
        if not tableau.ends_at_solution:
            state = torch.addcmul(y, h, self.combine(c.weights, stages))
        return state, stages

    def reversed(self, t: Tensor, h: Tensor, a: Tensor, first: Tensor) -> tuple[Tensor, Any]:
        """A step of da/dt = -slope from ``t`` down to ``t - h``: the slopes add up as in a step of h, times descend."""
        nodes, self.c = self.c, replace(self.c, nodes=-self.c.nodes)
        try:
            return self(t, h, a, first, last=False)
        finally:
            self.c = nodes

    def error(self, h: Tensor, stages: Any) -> Tensor:
        """The estimate of the local error ``[samples, size]``."""
        return h * self.combine(self.c.error, stages)  # type: ignore[arg-type]

    def interpolate(self, x: Tensor, h: Tensor, y: Tensor, stages: Any) -> Tensor:
        """States at fractions ``x`` ``[m, samples or 1, 1]`` of the step: ``[m, samples, size]``."""
        weights = interpolation_weights(self.c.dense, x)
        stack = torch.stack(stages) if isinstance(stages, list) else stages
        if weights.ndim == 3:
            return y + h * torch.einsum("mns,snd->mnd", weights.expand(-1, y.shape[0], -1), stack)
        return y + h * torch.einsum("mnds,snd->mnd", weights.expand(-1, y.shape[0], -1, -1), stack)


def jacobian(field: _Field, t: Tensor, y: Tensor) -> Tensor:
    """df/dy of each sample, ``[samples, size, size]``, row by row (one vector-Jacobian product a row)."""
    if transform_running():
        linear: Any = torch.func.vjp(lambda z: field(t, z), y)
        rows = [linear[1](_unit(y, i))[0] for i in range(y.shape[1])]
        return torch.stack(rows, 1)
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        k = field(t, leaf)
        if not k.requires_grad:
            return y.new_zeros(*y.shape, y.shape[1])
        size = y.shape[1]
        rows = [
            torch.autograd.grad(k, leaf, _unit(y, i), retain_graph=i + 1 < size, allow_unused=True)[0]
            for i in range(size)
        ]
    return torch.stack([r if r is not None else torch.zeros_like(y) for r in rows], 1).detach()


def _unit(y: Tensor, i: int) -> Tensor:
    unit = torch.zeros_like(y)
    unit[:, i] = 1
    return unit


class _Newton:
    """Y = base + s f(t, Y) per sample by simplified Newton; the Jacobian is renewed when that converges slowly."""

    def __init__(self, stepper: Stepper, scale: Tensor) -> None:
        self.stepper = stepper
        self.scale = scale  # h a_ii, [samples or 1, 1]
        self.factors: Any = None

    def factorise(self, t: Tensor, y: Tensor) -> None:
        slopes = jacobian(self.stepper.graph, t, y)
        eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        matrix = eye - self.scale.unsqueeze(-1) * slopes
        # a non-finite Jacobian is no system to solve: the residual will say so
        matrix = torch.where(torch.isfinite(matrix).all(-1, keepdim=True).all(-2, keepdim=True), matrix, eye)
        self.factors = torch.linalg.lu_factor(matrix.detach() if not transform_running() else matrix)

    def update(self, residual: Tensor) -> Tensor:
        return torch.linalg.lu_solve(*self.factors, residual.unsqueeze(-1)).squeeze(-1)

    def solve(self, t: Tensor, base: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's state and field, differentiable to second order where live."""
        step, field = self.stepper, self.stepper.field
        bound = 40 * torch.finfo(base.dtype).eps
        with torch.no_grad():
            start, scale = base.detach(), self.scale.detach()
            y = start + scale * guess.detach()
            y = torch.where(torch.isfinite(y), y, start)
            if self.factors is None:
                self.factorise(t.detach(), y)
            done = torch.zeros((), dtype=torch.bool, device=y.device)
            size = torch.full_like(y[:, :1], torch.inf)
            for iteration in range(20):
                if iteration % 5 == 4:
                    self.factorise(t.detach(), y)
                change = self.update(y - start - scale * quietly(field, t.detach(), y))
                y = y - change
                size = (change.abs() / (1 + y.abs())).amax(1, keepdim=True)
                done = size <= bound
                if every(done):
                    break
            if not every(done):
                good = size <= 1e-3 * step.tolerance
                step.solved = good if step.solved is None else step.solved & good
        if not step.live:
            return y, quietly(field, t, y)
        self.factorise(t.detach(), y)
        for _ in range(
            2
        ):  # Newton's iteration itself is differentiated: once for the first order, twice for the second
            y = y - self.update(y - base - self.scale * field(t, y))
        return y, field(t, y)


def quietly(field: _Field, t: Tensor, y: Tensor) -> Tensor:
    """The field without a graph, also where it differentiates inside."""
    with torch.no_grad():
        return field.quiet(t, y) if isinstance(field, FlatField) else field(t, y)


class StepAdjoint:
    """The transpose of one step: from the cotangent of the new state to that of the old one and of the parameters.

    With l_i = (df/dy)^T kappa_i at stage i and lambda the cotangent of the new state,
        kappa_i = h (b_i lambda + sum_{j > i} a_ji l_j [+ a_ii l_i]),  lambda_old = lambda + sum_i l_i.
    It is exact for the discrete solution (Sanz-Serna 2016), and is itself a partitioned, symplectic Runge-Kutta step.

    Args:
        field: the flat field.
        tableau: the method.
        like: a state.
        params: tensors that the field captures.
        one_stage: keep the graph of one stage at a time instead of all stages of a step.
    """

    def __init__(
        self,
        field: FlatField,
        tableau: Tableau,
        like: Tensor,
        params: list[Tensor],
        *,
        one_stage: bool,
        tolerance: float,
    ) -> None:
        self.field = field
        self.tableau = tableau
        self.params = params
        self.one_stage = one_stage
        self.stepper = Stepper(self._quiet, tableau, like, live=False, tolerance=tolerance)
        self.stepper.graph = self._uncounted
        self.c = self.stepper.c
        self.gradients: list[Tensor | None] = [None] * len(params)
        self.known = known_edges(params)
        count = tableau.stages
        self.cotangents = like.new_zeros(count + 1, *like.shape)  # l_0 .. l_{s-1}, lambda
        flat = self.cotangents.view(count + 1, -1)
        self._later = [flat[i + 1 :].T for i in range(count)]
        self._slots = list(self.cotangents.unbind(0))

    def _quiet(self, t: Tensor, y: Tensor) -> Tensor:
        self.field.backward_evaluations += 1
        self.field.forward_evaluations -= 1
        return self.field.quiet(t, y)

    def evaluate(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The field with a graph from a fresh leaf; returns leaf and output."""
        self.field.backward_evaluations += 1
        leaf = y.detach().requires_grad_()
        with torch.enable_grad():
            k = self.field.evaluate(t, leaf)
        check_known(k, leaf, *self.known)
        return leaf, k

    def pull(self, leaf: Tensor, k: Tensor, cotangent: Tensor) -> Tensor | None:
        """(df/dy)^T cotangent; the parameters' share is added to ``gradients``."""
        if not k.requires_grad:
            return None
        grads = torch.autograd.grad(k, [leaf, *self.params], cotangent, allow_unused=True)
        self.add(grads[1:])
        return grads[0]

    def add(self, grads: Any) -> None:
        """Add to the gradients of the parameters; a parameter that was never met keeps ``None``."""
        total: list[Tensor] = []
        part: list[Tensor] = []
        for i, g in enumerate(grads):
            if g is None:
                continue
            known = self.gradients[i]
            if known is None:
                self.gradients[i] = g.clone()
            else:
                total.append(known)
                part.append(g)
        if total:
            torch._foreach_add_(total, part)

    def __call__(self, t: Tensor, h: Tensor, y: Tensor, cotangent: Tensor, stage_cotangents: Tensor | None) -> Tensor:
        """Cotangent of ``y``, given that of the new state and (from dense output) those of the stages."""
        tableau, c = self.tableau, self.c
        count = tableau.stages
        needed = [c.used[i] or stage_cotangents is not None for i in range(count)]
        end = max(i for i in range(count) if needed[i]) + 1
        times = (t + c.nodes * h).unbind(0)
        states, graphs = self._states(times, h, y, end)
        self._slots[count].copy_(cotangent)
        total = cotangent
        for i in reversed(range(count)):
            if not needed[i]:
                self._slots[i].zero_()
                continue
            row = c.adjoint[i]
            if row.ndim == 1:
                kappa = h * torch.mv(self._later[i], row).view_as(y)
            else:
                kappa = h * (row.unsqueeze(1) * self.cotangents[i + 1 :]).sum(0)
            if stage_cotangents is not None:
                kappa = kappa + stage_cotangents[i]
            leaf, k = graphs[i] if graphs else self.evaluate(times[i], states[i])
            if tableau.a[i][i] != 0:
                slopes = jacobian(self._uncounted, times[i], states[i])
                eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
                matrix = eye - (h * tableau.a[i][i]).unsqueeze(-1) * slopes
                kappa = torch.linalg.solve(matrix.mT, kappa.unsqueeze(-1)).squeeze(-1)
            pulled = self.pull(leaf, k, kappa)
            if pulled is None:
                self._slots[i].zero_()
            else:
                self._slots[i].copy_(pulled)
                total = total + pulled
        return total

    def _uncounted(self, t: Tensor, y: Tensor) -> Tensor:
        self.field.backward_evaluations += 1
        return self.field.evaluate(t, y)

    def _states(self, times: Any, h: Tensor, y: Tensor, end: int) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """States of the first ``end`` stages and, unless one stage is kept at a time, their graphs."""
        step, tableau, c = self.stepper, self.tableau, self.c
        states, graphs = [], []
        newton: _Newton | None = None
        for i in range(end):
            state = y if i == 0 else torch.addcmul(y, h, step.combine(c.rows[i], step.buffer))
            if tableau.a[i][i] != 0:
                newton = newton or _Newton(step, h * tableau.a[i][i])
                state, k = newton.solve(times[i], state, step.buffer[i - 1])
            if not self.one_stage:
                graphs.append(self.evaluate(times[i], state))
                k = graphs[-1][1].detach()
            elif tableau.a[i][i] == 0 and i + 1 < end:
                k = self._quiet(times[i], state)
            elif i + 1 == end and tableau.a[i][i] == 0:
                states.append(state)
                break
            step._slots[i].copy_(k)
            states.append(state)
        return states, graphs
