"""The states at the output times inside a solve, read from the dense output of the step that passes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.core.transforms import physical
from pullback.dynamics.steps import Stepper, interpolation_weights
from pullback.dynamics.storage import Step

__all__ = ["Outputs", "pulled_outputs"]


class Outputs:
    """Collects the states at the given times while the steps pass them.

    Args:
        y0: ``[samples, size]`` at ``times[0]``.
        times: ``[times, samples or 1, 1]`` ascending.
        missing: stands at times that a sample does not reach.
    """

    def __init__(self, y0: Tensor, times: Tensor, missing: float = math.nan) -> None:
        self.first = y0
        self.inner = times[1:-1]
        self.states = [torch.where(tau <= times[0], y0, missing) for tau in self.inner]

    def write(self, step: Step, stepper: Stepper, rows: Tensor | None = None) -> None:
        """Read those that ``step`` passes, which is one of the samples ``rows``; ``None``: of all."""
        if not self.states:
            return
        inner = self.inner if rows is None or self.inner.shape[1] == 1 else self.inner[:, rows]
        low, high, mask, x = _passed(inner, step)
        if low == high:
            return
        states = stepper.interpolate(x, step.h, step.y, step.stages).unbind(0)
        whole = physical(mask).reshape(-1, *physical(mask).shape[-3:]).all(0).flatten(1).all(1).tolist()
        for i, state in enumerate(states, start=low):
            known = self.states[i] if rows is None else self.states[i][rows]
            new = state if whole[i - low] else torch.where(mask[i - low], state, known)
            self.states[i] = new if rows is None else self.states[i].index_copy(0, rows, new)

    def stack(self, last: Tensor) -> Tensor:
        """``[times, samples, size]``, with ``last`` at the end."""
        return torch.stack([self.first, *self.states, last])


def pulled_outputs(inner: Tensor, step: Step, cotangents: Tensor, dense: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The transpose of :meth:`Outputs.write`: cotangents of the step's stages and, directly, of its start.

    Args:
        inner: the times between first and last, ``[times - 2, samples or 1, 1]``.
        step: the step.
        cotangents: of the states at ``inner``, ``[times - 2, samples, size]``.
        dense: coefficients of the dense output.
    """
    if not len(inner):
        return None, None
    low, high, mask, x = _passed(inner, step)
    if low == high:
        return None, None
    weighted = torch.where(mask, cotangents[low:high], 0.0)
    weights = interpolation_weights(dense, x)
    samples = step.y.shape[0]
    if weights.ndim == 3:
        stages = torch.einsum("mns,mnd->snd", weights.expand(-1, samples, -1), weighted)
    else:
        stages = torch.einsum("mnds,mnd->snd", weights.expand(-1, samples, -1, -1), weighted)
    return step.h * stages, weighted.sum(0)


def _passed(inner: Tensor, step: Step) -> tuple[int, int, Tensor, Tensor]:
    """Output times in (t, t + h]: a range of indices, the mask ``[m, M, 1]`` inside it and fractions of the step."""
    mask = (inner > step.t) & (inner <= step.t_next) & (step.h > 0)
    plain = physical(mask)
    hit = plain.reshape(-1, *plain.shape[-3:]).any(0).flatten(1).any(1).nonzero()
    if not len(hit):
        return 0, 0, mask[:0], mask[:0]
    low, high = int(hit[0]), int(hit[-1]) + 1
    mask = mask[low:high]
    x = torch.where(mask, (inner[low:high] - step.t) / torch.where(step.h > 0, step.h, 1.0), 0.0)
    return low, high, mask, x
