"""What is kept of the accepted steps: noted as they happen, put side by side, walked through, read as dense output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pullback.dynamics.steps import interpolation_weights
from pullback.dynamics.transforms import some

__all__ = ["Keep", "Step", "Steps", "Storage", "dense_state"]

Keep = Literal["nothing", "states", "stages"]
"""Of each accepted step: nothing, time and state at its start, or these and its stages."""


class Step(NamedTuple):
    """One step of all samples, from ``t`` and ``y`` over ``h``; 0 for a sample that rejected it or is done.

    Attributes:
        t, t_next, h: ``[samples or 1, 1]``.
        y: ``[samples, size]``.
        stages: ``[stages, samples, size]`` or a list of them; ``None`` where they were not kept.
    """

    t: Tensor
    t_next: Tensor
    h: Tensor
    y: Tensor
    stages: Any = None


class Steps(NamedTuple):
    """Accepted steps, the j-th of every sample side by side; a sample with fewer steps has h = 0 in the rest.

    Attributes:
        times: ``[steps + 1, M, 1]``.
        starts: ``[steps, samples, size]``.
        stages: ``[steps, stages, samples, size]`` or ``None``.
    """

    times: Tensor
    starts: Tensor
    stages: Tensor | None


@dataclass
class Storage:
    """Accepted steps as they happened, for all samples or only for those that accepted.

    Attributes:
        keep: what is noted.
        idle: ``[M, 1]`` samples that are done before they start: they get one entry, so that every sample has one.
        times, starts: at the start of the step.
        owners: for each entry ``None`` (all samples) or the indices.
        stages: empty unless asked for.
    """

    keep: Keep = "nothing"
    idle: Tensor | None = None
    times: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    owners: list[Tensor | None] = field(default_factory=list)
    stages: list[Tensor] = field(default_factory=list)

    def add(self, t: Tensor, y: Tensor, stages: Any, accept: Tensor | None = None, rows: Tensor | None = None) -> None:
        """Note a step of the samples ``accept`` ``[M, 1]``, counted among ``rows``; ``None`` for all."""
        if self.keep == "nothing":
            return
        owners: Tensor | None = None
        if accept is not None:
            mask = accept if self.idle is None else accept | self.idle
            if not some(mask):
                return
            owners = mask[:, 0].nonzero()[:, 0].to(torch.int32)
        self.idle = None
        if rows is None:
            self.owners.append(owners)
        else:
            self.owners.append(rows.to(torch.int32) if owners is None else rows[owners].to(torch.int32))
        self.times.append(t if owners is None else t[owners])
        self.starts.append(y if owners is None else y[owners])
        if self.keep == "stages":
            self.stages.append(stages.clone() if owners is None else stages[:, owners])

    def tensors(self) -> list[Tensor]:
        """All that is kept, as autograd saves it."""
        return [*self.times, *self.starts, *self.stages, *(o for o in self.owners if o is not None)]

    def restored(self, tensors: Sequence[Tensor]) -> Storage:
        """A storage like this one of the tensors that :meth:`tensors` returned."""
        count, rest = len(self.owners), list(tensors)
        times, starts = rest[:count], rest[count : 2 * count]
        stages = rest[2 * count : 2 * count + len(self.stages)]
        owners = iter(rest[2 * count + len(self.stages) :])
        return Storage(
            self.keep, None, times, starts, [None if o is None else next(owners) for o in self.owners], stages
        )

    def emptied(self) -> Storage:
        """This storage's form without its tensors: what :meth:`restored` needs."""
        none = torch.empty(0)
        return Storage(
            self.keep,
            owners=[None if o is None else none for o in self.owners],
            stages=[none] * len(self.stages),
        )

    def aligned(self, reached: Tensor, final: Tensor) -> Steps:
        """The steps side by side.

        Args:
            reached: ``[M, 1]`` last time of each sample.
            final: ``[samples, size]`` a state, for its shape.
        """
        if not self.times:
            return Steps(reached[None], final[None][:0], None)
        if all(o is None for o in self.owners):
            rows = max(reached.shape[0], *(t.shape[0] for t in self.times))
            times = torch.stack([t.expand(rows, 1) for t in [*self.times, reached]])
            return Steps(times, torch.stack(self.starts), torch.stack(self.stages) if self.stages else None)
        table, valid = self._table(final.shape[0])
        stages = torch.cat(self.stages, 1)[:, table].movedim(0, 1) if self.stages else None
        return Steps(self._aligned_times(table, valid, reached), torch.cat(self.starts)[table], stages)

    def walk(self, reached: Tensor) -> Iterator[Step]:
        """The steps in order, one at a time."""
        if not self.times:
            return
        if all(o is None for o in self.owners):
            ends = [*self.times[1:], reached]
            for t, t_next, y in zip(self.times, ends, self.starts, strict=True):
                yield Step(t, t_next, t_next - t, y)
            return
        table, valid = self._table(reached.shape[0])
        times, rows = self._aligned_times(table, valid, reached), torch.cat(self.starts)
        for j, row in enumerate(table):
            yield Step(times[j], times[j + 1], times[j + 1] - times[j], rows[row])

    def _table(self, count: int) -> tuple[Tensor, Tensor]:
        """``[steps, samples]`` row of each step in the concatenated storage, and whether there is such a step."""
        device = self.times[0].device
        everyone = torch.arange(count, device=device, dtype=torch.int32)
        owner = torch.cat([everyone if o is None else o for o in self.owners])
        order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=count)
        offset = counts.cumsum(0) - counts
        j = torch.arange(int(counts.max()), device=device)[:, None]
        return order[offset + torch.minimum(j, counts - 1)], j < counts

    def _aligned_times(self, table: Tensor, valid: Tensor, reached: Tensor) -> Tensor:
        """``[steps + 1, samples, 1]`` start times, standing still after the last step."""
        t = torch.where(valid.unsqueeze(-1), torch.cat(self.times)[table], reached)
        return torch.cat([t, reached.expand(table.shape[1], 1)[None]])


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
