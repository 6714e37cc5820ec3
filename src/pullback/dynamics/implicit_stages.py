"""Implicit stages: Y = base + h A f(Y) for each sample by simplified Newton, one stage alone or several together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import transform_running
from pullback.dynamics.field import FlatField
from pullback.dynamics.transforms import every

__all__ = ["StageProblem", "Stages", "jacobian", "quietly", "stage_matrix"]

_Field = Callable[[Tensor, Tensor], Tensor]


@dataclass
class StageProblem:
    """What implicit stages are solved with.

    Attributes:
        field: ``field(t, y)`` on flat states.
        graph: the same with its graph, for the Jacobian.
        live: whether the stages keep their graph.
        tolerance: relative tolerance of the step control, to which stages must be solved at least.
        solved: ``[samples, 1]`` whose stages of this step were solved; ``None``: all.
    """

    field: _Field
    graph: _Field
    live: bool
    tolerance: float
    solved: Tensor | None = None


class Stages:
    """m stages of one step that are solved together: Y_i = base + h sum_j a_ij f(t_j, Y_j).

    The Jacobian is taken at one of them and renewed, at each, where that converges slowly.

    Args:
        problem: the field, and how its stages are solved.
        h: ``[samples or 1, 1]``.
        block: ``[m, m]`` coefficients.
    """

    def __init__(self, problem: StageProblem, h: Tensor, block: Tensor) -> None:
        self.problem, self.h, self.block = problem, h, block
        self.factors: Any = None

    def solve(self, times: Any, base: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        """The stages' states and fields, differentiable to second order where live.

        Args:
            times: one ``[samples or 1, 1]`` a stage.
            base: ``[samples, size]``.
            guess: ``[samples, size]`` of the field.

        Returns:
            ``[m, samples, size]`` each.
        """
        problem = self.problem
        bound = 40 * torch.finfo(base.dtype).eps
        with torch.no_grad():
            start, still = base.detach(), [t.detach() for t in times]
            sums = self.block.sum(1).view(-1, 1, 1)
            y = start + sums * self.h.detach() * guess.detach()
            y = torch.where(torch.isfinite(y), y, start)
            if self.factors is None:
                self._factorise(still[-1:], y[-1:])
            done = torch.zeros((), dtype=torch.bool, device=y.device)
            size = torch.full_like(y[0, :, :1], torch.inf)
            for iteration in range(20):
                if iteration % 5 == 4:
                    self._factorise(still, y)
                slopes = torch.stack([quietly(problem.field, t, z) for t, z in zip(still, y, strict=True)])
                change = self._update(y - start - self._combine(self.h.detach(), slopes))
                y = y - change
                size = (change.abs() / (1 + y.abs())).amax((0, 2)).unsqueeze(1)
                done = size <= bound
                if every(done):
                    break
            if not every(done):
                good = size <= 1e-3 * problem.tolerance
                problem.solved = good if problem.solved is None else problem.solved & good
        if not problem.live:
            return y, torch.stack([quietly(problem.field, t, z) for t, z in zip(times, y, strict=True)])
        self._factorise(still, y)
        for _ in range(2):  # Newton's iteration itself is differentiated: once a time for each order
            slopes = torch.stack([problem.field(t, z) for t, z in zip(times, y, strict=True)])
            y = y - self._update(y - base - self._combine(self.h, slopes))
        return y, torch.stack([problem.field(t, z) for t, z in zip(times, y, strict=True)])

    def _combine(self, h: Tensor, slopes: Tensor) -> Tensor:
        return h * torch.einsum("ij,jsn->isn", self.block, slopes)

    def _factorise(self, times: Any, y: Tensor) -> None:
        """Factors of I - h A x J, with J at each stage, or at the one that is given."""
        slopes = [jacobian(self.problem.graph, t, z) for t, z in zip(times, y, strict=True)]
        slopes = slopes if len(slopes) == len(self.block) else slopes * len(self.block)
        matrix = stage_matrix(self.h, self.block, slopes)
        # a non-finite Jacobian is no system to solve: the residual will say so
        eye = torch.eye(matrix.shape[-1], dtype=y.dtype, device=y.device)
        matrix = torch.where(torch.isfinite(matrix).all(-1, keepdim=True).all(-2, keepdim=True), matrix, eye)
        self.factors = torch.linalg.lu_factor(matrix if transform_running() else matrix.detach())

    def _update(self, residual: Tensor) -> Tensor:
        m, samples, n = residual.shape
        right = residual.movedim(0, 1).reshape(samples, m * n, 1)
        return torch.linalg.lu_solve(*self.factors, right).reshape(samples, m, n).movedim(1, 0)


def stage_matrix(h: Tensor, block: Tensor, slopes: list[Tensor]) -> Tensor:
    """``[samples, m n, m n]`` of blocks delta_ij - h a_ij J_j.

    Args:
        h: ``[samples or 1, 1]``.
        block: a, ``[m, m]``.
        slopes: J, one ``[samples, n, n]`` a stage.
    """
    m, n = len(block), slopes[0].shape[-1]
    scaled = block[..., None, None, None] * (h.unsqueeze(-1) * torch.stack(slopes))  # [i, j, samples, n, n]
    whole = scaled.permute(2, 0, 3, 1, 4).reshape(scaled.shape[2], m * n, m * n)
    return torch.eye(m * n, dtype=whole.dtype, device=whole.device) - whole


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


def quietly(field: _Field, t: Tensor, y: Tensor) -> Tensor:
    """The field without a graph, also where it differentiates inside."""
    with torch.no_grad():
        return field.quiet(t, y) if isinstance(field, FlatField) else field(t, y)
