"""How steps are chosen: the first one, whether one is accepted, and the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pullback.dynamics.steps import Stepper

__all__ = ["Control", "Judgement"]

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0


class Judgement(NamedTuple):
    """What an attempted step is worth. M is the number of samples, or 1 where they share their steps.

    Attributes:
        accept: ``[M, 1]``.
        factor: ``[M, 1]``, what the next step is multiplied with.
        ratio: ``[samples, size]``, error over tolerance of each component.
    """

    accept: Tensor
    factor: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class Control:
    """How steps are chosen.

    Attributes:
        rtol, atol: err = sqrt(mean((e / (atol + rtol max(|y|, |y'|)))^2)) <= 1 accepts a step.
        step: size of fixed steps; ``None`` adapts them, or for a method without error estimate takes the given times.
        shared: one step for all samples.
        max_steps: attempted steps of one solve.
    """

    rtol: float
    atol: float
    step: float | None
    shared: bool
    max_steps: int

    def rows(self, y: Tensor) -> int:
        """M: how many samples have a step of their own."""
        return 1 if self.shared else y.shape[0]

    def judge(self, stepper: Stepper, h: Tensor, y: Tensor, new: Tensor, stages: Any) -> Judgement:
        """Judge a step from ``y`` to ``new`` by the error estimate; the next is h clip(0.9 err^(-1/order), 0.2, 5)."""
        y, new = y.detach(), new.detach()
        scale = torch.maximum(y.abs(), new.abs()).mul_(self.rtol).add_(self._floor(y.dtype))
        ratio = stepper.error(h, stages).detach() / scale
        norm = self._norm(ratio)
        accept = norm <= 1.0
        if stepper.solved is not None:
            solved = stepper.solved.all() if self.shared else stepper.solved
            accept, norm = accept & solved, torch.where(solved, norm, math.inf)
        factor = (_SAFETY * norm ** (-1.0 / stepper.tableau.order)).clamp(_SHRINK, _GROW).nan_to_num_(_SHRINK)
        return Judgement(accept, factor, ratio)

    def first_step(self, stepper: Stepper, t: Tensor, span: Tensor, y: Tensor, k: Tensor) -> Tensor:
        """``[M, 1]`` starting step of Hairer, Norsett, Wanner (1993), II.4, from ``k``, the field at ``(t, y)``."""
        with torch.no_grad():
            y, k = y.detach(), k.detach()
            scale = y.abs() * self.rtol + self._floor(y.dtype)
            d0, d1 = self._norm(y / scale), self._norm(k / scale)
            tiny = (d0 < 1e-5) | (d1 < 1e-5)
            h0 = torch.where(tiny, 1e-6 * span, 0.01 * d0 / torch.where(tiny, 1.0, d1))
            h0 = torch.minimum(h0, span)
            slope = stepper.quietly(t + h0, y + h0 * k)
            d2 = self._norm((slope.detach() - k) / scale) / torch.where(h0 > 0, h0, 1.0)
            most = torch.maximum(d1, d2)
            h1 = torch.where(
                most <= 1e-15, torch.maximum(1e-6 * span, 1e-3 * h0), (0.01 / most) ** (1.0 / stepper.tableau.order)
            )
            h = torch.minimum(torch.minimum(100 * h0, h1), span)
            return torch.where(torch.isfinite(h) & (h > 0), h, 1e-6 * span)

    def _norm(self, x: Tensor) -> Tensor:
        """``[M, 1]`` root mean square of each sample, or of all where they share their steps; 0 of no component."""
        count = x.numel() if self.shared else x.shape[1]
        norm = torch.linalg.vector_norm(x, dim=None if self.shared else 1, keepdim=True).reshape(self.rows(x), 1)
        return norm * (1.0 / math.sqrt(max(count, 1)))

    def _floor(self, dtype: torch.dtype) -> float:
        """The absolute tolerance; never 0, so that a component that stays 0 has the error 0 rather than 0 / 0."""
        return max(self.atol, torch.finfo(dtype).tiny)
