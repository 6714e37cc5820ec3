"""One step of any tableau: forward without a graph, forward with one, and its exact adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pullback.dynamics.captures import check_known, known_edges
from pullback.dynamics.field import FlatField
from pullback.dynamics.implicit_stages import StageProblem, Stages, jacobian, quietly, stage_matrix
from pullback.dynamics.tableaux import Coefficients, Tableau

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
        # implicit stages need the Jacobian, so the field with its graph, where ``field`` is FlatField.quiet without
        owner = getattr(field, "__self__", None)
        self.implicit = StageProblem(field, owner if isinstance(owner, FlatField) else field, live, tolerance)
        self._begin: Any = getattr(field, "begin_step", None)
        samples, size = like.shape
        self.size, self.dtype = size, like.dtype
        self.c: Coefficients = tableau.coefficients(size, like.dtype, like.device)
        self.spreads = live and not (tableau.implicit or tableau.coupled or tableau.partitioned)
        self.buffer: Tensor | None = None
        if not live:
            self.buffer = like.new_zeros(tableau.stages, samples, size)
            flat = self.buffer.view(tableau.stages, -1).T
            self._views = [flat[:, :i] for i in range(tableau.stages + 1)]
            self._slots = list(self.buffer.unbind(0))

    @property
    def solved(self) -> Tensor | None:
        """``[samples, 1]`` whose implicit stages were solved; ``None``: all."""
        return self.implicit.solved

    def quietly(self, t: Tensor, y: Tensor) -> Tensor:
        """The field without a graph, also where it differentiates inside."""
        return quietly(self.field, t, y)

    def combine(self, coefficients: Tensor, stages: Any) -> Tensor:
        """sum_i coefficients_i stages_i over the first stages."""
        if self.buffer is not None:
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
        times = torch.addcmul(t, c.nodes, h).expand(-1, y.shape[0], -1).unbind(0)
        if self.spreads:
            return self._spread(times, h, y, first, last)
        stages: Any = [first] if self.live else self.buffer
        if not self.live:
            self._slots[0].copy_(first)
        self.implicit.solved = None
        together: Stages | None = None
        state = y
        for i in range(1, count):
            final = i == count - 1
            if i in tableau.coupled:
                if i > tableau.coupled.start:
                    continue
                states, slopes = Stages(self.implicit, h, c.block).solve([times[j] for j in tableau.coupled], y, first)
                state = states[-1]
                for j, k in zip(tableau.coupled, slopes.unbind(0), strict=True):
                    self._keep(stages, j, k)
                continue
            # the first rows of a partitioned method may be zero, but they are combined all the same
            state = torch.addcmul(y, h, self.combine(c.rows[i], stages))
            if tableau.a[i][i] != 0:
                if together is None or self.live:
                    together = Stages(self.implicit, h, c.rows[i].new_full((1, 1), tableau.a[i][i]))
                states, slopes = together.solve([times[i]], state, stages[i - 1])
                state, k = states[0], slopes[0]
            else:
                if final and not last and tableau.ends_at_solution:
                    break
                k = self.field(times[i], state)
            self._keep(stages, i, k)
        if not tableau.ends_at_solution:
            state = torch.addcmul(y, h, self.combine(c.weights, stages))
        return state, stages

    def _spread(self, times: Any, h: Tensor, y: Tensor, first: Tensor, last: bool) -> tuple[Tensor, list[Tensor]]:
        """An explicit step with its graph: each stage adds its share to the sums of all later ones in one product.

        Row i of the sums is h sum_j a_ij k_j of the stages so far; backwards, the cotangent of k_j is then one product
        as well, where combinations row by row would take as many as there are pairs of stages.
        """
        columns, count = self.c.columns, self.tableau.stages
        stages, state, sums = [first], y, columns[0] * h * first
        for i in range(1, count):
            row, sums = sums.split_with_sizes((1, count - 1 - i))
            state = y + row.squeeze(0)
            if i + 1 < count or last:
                stages.append(self.field(times[i], state))
            if i + 1 < count:
                sums = torch.addcmul(sums, columns[i] * h, stages[i])
        return state, stages

    def _keep(self, stages: Any, i: int, k: Tensor) -> None:
        if self.live:
            stages.append(k)
        else:
            self._slots[i].copy_(k)

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
        self.stepper.implicit.graph = self._uncounted
        self.c = self.stepper.c
        whole = None if one_stage else Stepper(self._uncounted, tableau, like, live=True, tolerance=tolerance)
        self.whole = whole if whole is not None and whole.spreads else None
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
        check_known([k], leaf, *self.known)
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
        if self.whole is not None:
            return self._differentiated(self.whole, t, h, y, cotangent, stage_cotangents)
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
            if i in tableau.coupled:
                if i + 1 == tableau.coupled.stop:
                    total = total + self._together(times, h, states, graphs, stage_cotangents)
                continue
            kappa = self._kappa(i, i + 1, h, stage_cotangents)
            leaf, k = graphs[i] if graphs else self.evaluate(times[i], states[i])
            if tableau.a[i][i] != 0:
                slopes = jacobian(self._uncounted, times[i], states[i])
                matrix = stage_matrix(h, c.rows[i].new_full((1, 1), tableau.a[i][i]), [slopes])
                kappa = torch.linalg.solve(matrix.mT, kappa.unsqueeze(-1)).squeeze(-1)
            total = self._pulled(i, leaf, k, kappa, total)
        return total

    def _differentiated(
        self, stepper: Stepper, t: Tensor, h: Tensor, y: Tensor, cotangent: Tensor, stage_cotangents: Tensor | None
    ) -> Tensor:
        """The same by autograd through the whole step."""
        leaf = y.detach().requires_grad_()
        with torch.enable_grad():
            first = self._uncounted(t, leaf)
            new, stages = stepper(t, h, leaf, first, last=stage_cotangents is not None)
        results, weights = [new], [cotangent]
        if stage_cotangents is not None:
            used = [i for i, k in enumerate(stages) if k.requires_grad]
            results += [stages[i] for i in used]
            weights += [stage_cotangents[i] for i in used]
        check_known(results, leaf, *self.known)
        grads = torch.autograd.grad(results, [leaf, *self.params], weights, allow_unused=True)
        self.add(grads[1:])
        return grads[0]

    def _kappa(self, i: int, later: int, h: Tensor, stage_cotangents: Tensor | None) -> Tensor:
        """h (b_i lambda + sum_{j >= later} a_ji l_j), and the cotangent that stage i has of its own."""
        row = self.c.adjoint[i][later - i - 1 :]
        if row.ndim == 1:
            kappa = h * torch.mv(self._later[later - 1], row).view(self.cotangents.shape[1:])
        else:
            kappa = h * (row.unsqueeze(1) * self.cotangents[later:]).sum(0)
        return kappa if stage_cotangents is None else kappa + stage_cotangents[i]

    def _pulled(self, i: int, leaf: Tensor, k: Tensor, kappa: Tensor, total: Tensor) -> Tensor:
        """``total`` and l_i, which is kept."""
        pulled = self.pull(leaf, k, kappa)
        if pulled is None:
            self._slots[i].zero_()
            return total
        self._slots[i].copy_(pulled)
        return total + pulled

    def _together(self, times: Any, h: Tensor, states: Any, graphs: Any, stage_cotangents: Tensor | None) -> Tensor:
        """Sum of l_i over the coupled stages, whose kappas solve kappa_i - h sum_j a_ji J_j^T kappa_j = r_i."""
        block = self.tableau.coupled
        right = torch.stack([self._kappa(i, block.stop, h, stage_cotangents) for i in block], 1)
        slopes = [jacobian(self._uncounted, times[i], states[i]).mT for i in block]
        matrix = stage_matrix(h, self.c.block.T, slopes)
        kappas = torch.linalg.solve(matrix, right.flatten(1).unsqueeze(-1)).reshape(right.shape)
        total = torch.zeros_like(right[:, 0])
        for i, kappa in zip(block, kappas.unbind(1), strict=True):
            leaf, k = graphs[i] if graphs else self.evaluate(times[i], states[i])
            total = self._pulled(i, leaf, k, kappa, total)
        return total

    def _uncounted(self, t: Tensor, y: Tensor) -> Tensor:
        self.field.backward_evaluations += 1
        return self.field.evaluate(t, y)

    def _states(self, times: Any, h: Tensor, y: Tensor, end: int) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """States of the first ``end`` stages and, unless one stage is kept at a time, their graphs."""
        step, tableau, c = self.stepper, self.tableau, self.c
        states, graphs = [], []
        alone: Stages | None = None
        together: Any = None
        for i in range(end):
            if i == tableau.coupled.start and tableau.coupled:
                points = [times[j] for j in tableau.coupled]
                solved = Stages(step.implicit, h, c.block).solve(points, y, step._slots[0])
                together = zip(*solved, strict=True)
            if i in tableau.coupled:
                state, k = next(together)
            else:
                state = y if i == 0 else torch.addcmul(y, h, step.combine(c.rows[i], step.buffer))
            if tableau.a[i][i] != 0 and i not in tableau.coupled:
                alone = alone or Stages(step.implicit, h, c.rows[i].new_full((1, 1), tableau.a[i][i]))
                (state,), (k,) = alone.solve([times[i]], state, step._slots[i - 1])
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
