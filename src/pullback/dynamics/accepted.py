"""The accepted steps of a solve: put side by side, walked through one by one, and read as dense output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.dynamics.loop import Run
from pullback.dynamics.steps import interpolation_weights

__all__ = ["Step", "Steps", "accepted_steps", "aligned", "dense_state"]

Step = tuple[Tensor, Tensor, Tensor, Tensor]
"""t, t_next, h, y."""


@dataclass
class Steps:
    """Accepted steps, the j-th of every sample side by side; a sample with fewer steps has h = 0 in the rest.

    Attributes:
        times: ``[steps + 1, M, 1]``.
        starts: ``[steps, samples, size]``.
        stages: ``[steps, stages, samples, size]`` or ``None``.
    """

    times: Tensor
    starts: Tensor
    stages: Tensor | None


def aligned(run: Run) -> Steps:
    """Put the j-th accepted step of every sample side by side."""
    if all(s is None for s in run.samples):
        if not run.times:
            return Steps(run.reached[None], run.final[None][:0], None)
        rows = max(run.reached.shape[0], *(t.shape[0] for t in run.times))
        times = torch.stack([t.expand(rows, 1) for t in [*run.times, run.reached]])
        return Steps(times, torch.stack(run.starts), torch.stack(run.stages) if run.stages else None)
    table, valid = _rows(run.samples, run.final.shape[0], run.final.device)
    times = _times(torch.cat(run.times), table, valid, run.reached)
    starts = torch.cat(run.starts)[table]
    stages = torch.cat(run.stages, 1)[:, table].movedim(0, 1) if run.stages else None
    return Steps(times, starts, stages)


def _rows(samples: list[Tensor | None], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[steps, samples]`` row of each step in the concatenated storage, and whether there is such a step."""
    everyone = torch.arange(count, device=device, dtype=torch.int32)
    owner = torch.cat([everyone if s is None else s for s in samples])
    order = torch.argsort(owner, stable=True)
    counts = torch.bincount(owner, minlength=count)
    offset = counts.cumsum(0) - counts
    j = torch.arange(int(counts.max()), device=device)[:, None]
    return order[offset + torch.minimum(j, counts - 1)], j < counts


def _times(times: Tensor, table: Tensor, valid: Tensor, reached: Tensor) -> Tensor:
    """``[steps + 1, samples, 1]`` start times, standing still after the last step."""
    t = torch.where(valid.unsqueeze(-1), times[table], reached)
    return torch.cat([t, reached.expand(table.shape[1], 1)[None]])


def accepted_steps(
    times: list[Tensor], starts: list[Tensor], owners: list[Tensor | None], reached: Tensor
) -> Iterator[Step]:
    """The steps in order, from what the loop kept of them."""
    if all(s is None for s in owners):
        for j, (t, y) in enumerate(zip(times, starts, strict=True)):
            t_next = times[j + 1] if j + 1 < len(times) else reached
            yield t, t_next, t_next - t, y
        return
    table, valid = _rows(owners, reached.shape[0], reached.device)
    aligned, rows = _times(torch.cat(times), table, valid, reached), torch.cat(starts)
    for j in range(len(table)):
        yield aligned[j], aligned[j + 1], aligned[j + 1] - aligned[j], rows[table[j]]


def dense_state(steps: Steps, dense: Tensor, t: Tensor, y0: Tensor) -> Tensor:
    """States at times ``t`` ``[m, M, 1]`` from the dense output: ``[m, samples, size]``."""
    count = len(steps.starts)
    if count == 0 or steps.stages is None:
        return y0.expand(len(t), *y0.shape)
    t = t.expand(-1, max(t.shape[1], steps.times.shape[1]), 1)
    nodes = steps.times.detach()
    # the step that ends at or after t, counting only nodes before it; steps of length zero are passed over
    index = (nodes[None, 1:] < t[:, None]).sum(1).clamp(max=count - 1)  # [m, M, 1]
    left, right = nodes.expand(-1, t.shape[1], 1).gather(0, index), nodes.expand(-1, t.shape[1], 1).gather(0, index + 1)
    h = right - left
    x = torch.where(h > 0, (t - left) / torch.where(h > 0, h, 1.0), 0.0)
    samples = y0.shape[0]
    flat = index[..., 0].expand(-1, samples)
    column = torch.arange(samples, device=y0.device).expand_as(flat)
    start = steps.starts[flat, column]  # [m, samples, size]
    stages = steps.stages.movedim(1, 2)[flat, column]  # [m, samples, stages, size]
    weights = interpolation_weights(dense, x)
    if weights.ndim == 3:
        return start + h * torch.einsum("mns,mnsd->mnd", weights.expand(-1, samples, -1), stages)
    return start + h * torch.einsum("mnds,mnsd->mnd", weights.expand(-1, samples, -1, -1), stages)
