"""The one loop over steps: adaptive with a step of its own for every sample, or on a given grid."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import physical, transform_running
from pullback.dynamics.adams import AdamsStepper, Multistep
from pullback.dynamics.control import Control
from pullback.dynamics.diagnosis import failed_step, stopped_early
from pullback.dynamics.outputs import Outputs
from pullback.dynamics.steps import Stepper
from pullback.dynamics.storage import Keep, Step, Storage
from pullback.dynamics.tableaux import Tableau
from pullback.dynamics.transforms import every, some

__all__ = ["OnStep", "Run", "integrate"]


@dataclass
class Run:
    """What a solve leaves behind. M is the number of samples, or 1 where all share their steps.

    Attributes:
        states: ``[times, samples, size]``; NaN where a sample did not get.
        final: ``[samples, size]`` states at ``reached``.
        reached: ``[M, 1]`` last time of each sample.
        accepted, rejected: ``[M]`` counts of steps.
        converged: ``[M]`` whether the end was reached.
        steps: what was kept of the accepted steps.
        nodes: on a grid, the number of steps before each output time; ``None`` where steps adapt.
        problem: why it stopped early, with the numbers.
        next_step: ``[M, 1]`` the step that would come next, where steps adapt.
    """

    states: Tensor
    final: Tensor
    reached: Tensor
    accepted: Tensor
    rejected: Tensor
    converged: Tensor
    steps: Storage = field(default_factory=Storage)
    nodes: list[int] | None = None
    problem: str = ""
    next_step: Tensor | None = None


OnStep = Callable[[Step, Stepper], Tensor | None]


def integrate(
    function: Callable[[Tensor, Tensor], Tensor],
    tableau: Tableau,
    y0: Tensor,
    times: Tensor,
    control: Control,
    *,
    live: bool = False,
    keep: Keep = "nothing",
    first: Tensor | None = None,
    on_step: OnStep | None = None,
    first_step: Tensor | None = None,
) -> Run:
    """Solve dy/dt = function(t, y) from ``times[0]`` to ``times[-1]``; times ascend.

    Args:
        function: of ``[samples or 1, 1]`` times and ``[samples, size]`` states.
        tableau: the method.
        y0: ``[samples, size]``.
        times: ``[times, samples or 1, 1]``.
        control: step control.
        live: leave the graph of every step standing.
        keep: what to store of accepted steps.
        first: the field at the start, if known.
        on_step: called after every step, before the next. It may return which samples ``[samples, 1]`` are to stop
            here (adaptive, not shared steps; fixed steps stop once all are to).
        first_step: ``[M, 1]`` guess of the first step.

    Returns:
        A :class:`Run`.
    """
    kind: Any = AdamsStepper if isinstance(tableau, Multistep) else Stepper
    stepper = kind(function, tableau, y0, live=live, tolerance=control.tightest)
    if first is None:
        first = function(times[0], y0)
    if control.step is not None or not tableau.adaptive:
        return _on_grid(stepper, y0, times, control, keep, first, on_step)
    return _adaptive(stepper, y0, times, control, keep, first, on_step, first_step)


def _adaptive(
    stepper: Stepper,
    y0: Tensor,
    times: Tensor,
    control: Control,
    keep: Keep,
    first: Tensor,
    on_step: OnStep | None,
    first_step: Tensor | None,
) -> Run:
    front = whole = _Front(stepper, y0, times, control, first, first_step)
    storage = Storage(keep, None if front.all_active else ~front.active)
    outputs = Outputs(y0, times)
    problem, attempts = "", 0
    leaves = on_step is None and len(y0) >= _CROWD and _may_leave(stepper, control)
    while some(front.active):
        if attempts == control.max_steps:
            problem = f"max_steps={control.max_steps} steps did not reach the end"
            break
        attempts += 1
        if leaves and storage.idle is None and 4 * int(front.active.sum()) <= 3 * len(front.active):
            front.merge(whole)
            front = front.narrowed(whole)
        step, accept = front.attempt()
        storage.add(step.t, step.y, step.stages, accept, front.rows)
        outputs.write(step, front.stepper, front.rows)
        stop = None if on_step is None else on_step(step, stepper)
        front.advance(step, accept, stop)
    front.merge(whole)
    front = whole
    if front.failed is not None:
        problem = "the step fell below the resolution of time"
    done, last = front.t >= front.end, front.y
    if problem:
        problem += stopped_early(stepper, front.t, front.h, done, front.ratio)
        last = torch.where(done, last, math.nan)
    return Run(
        outputs.stack(last),
        front.y,
        front.t,
        front.accepted,
        front.rejected,
        done[:, 0],
        storage,
        problem=problem,
        next_step=front.h,
    )


_CROWD = 2048
"""Samples from which on those that are done leave the arrays of the solve."""


def _may_leave(stepper: Stepper, control: Control) -> bool:
    """Whether nothing but the field asks for the states of all samples."""
    tableau = stepper.tableau
    alone = not (control.shared or stepper.live or tableau.implicit or tableau.coupled or transform_running())
    return alone and control.norm is None


class _Scattered:
    """The field of some samples: asked for all of them, the others where they stopped."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor, rows: Tensor) -> None:
        self.function, self.t, self.y, self.rows = function, t, y, rows

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The field at ``[rows, 1]`` times and ``[rows, size]`` states."""
        found = self.function(self.t.index_copy(0, self.rows, t), self.y.index_copy(0, self.rows, y))
        return found[self.rows]


class _Front:
    """Where the samples of an adaptive solve have got to, and the step that each tries next.

    Attributes:
        t, h, end, active: ``[M, 1]`` time, next step, end, and whether it is still under way.
        y, k, new: ``[samples, size]`` state, field there, and the state that the last attempt led to.
        accepted, rejected: ``[M]`` counts.
        failed: ``[M, 1]`` samples whose step fell below the resolution of time; ``None`` while there is none.
        ratio: ``[samples, size]`` error over tolerance of the last attempt.
        rows: which samples these are; ``None``: all.
    """

    def __init__(
        self,
        stepper: Stepper,
        y0: Tensor,
        times: Tensor,
        control: Control,
        first: Tensor,
        first_step: Tensor | None,
    ) -> None:
        self.stepper, self.control = stepper, control
        rows = control.rows(y0)
        self.t, self.end = times[0].expand(rows, 1), times[-1].expand(rows, 1)
        self.y = self.new = y0
        self.k = first
        self.h = control.first_step(stepper, self.t, self.end - self.t, y0, first) if first_step is None else first_step
        self.start = self.t, self.t + self.h
        self.resolution: Tensor | None = None
        self.rows: Tensor | None = None
        self.active = self.end > self.t
        self.all_active = every(self.active)
        self.accepted = torch.zeros(rows, dtype=torch.int64, device=y0.device)
        self.rejected = self.accepted
        self.failed: Tensor | None = None
        self.ratio: Tensor | None = None

    def attempt(self) -> tuple[Step, Tensor | None]:
        """Try a step; returns it, of length 0 where it was rejected, and who accepted it (``None``: everyone)."""
        self.h = self.control.bounded(self.h)
        reach = torch.add(self.t, self.h, alpha=1.01)
        t_next = torch.where(reach >= self.end, self.end, self.t + self.h)
        h = t_next - self.t
        if not self.all_active:
            h = torch.where(self.active, h, 0.0)
        self.new, stages = self.stepper(self.t, h, self.y, self.k)
        with torch.no_grad():
            accept, factor, self.ratio = self.control.judge(self.stepper, h, self.y, self.new, stages)
            if not self.all_active:
                accept = accept & self.active
            proposed = h * factor
            if every(accept):
                self.h, self.accepted = proposed, self.accepted + 1
                return Step(self.t, t_next, h, self.y, stages), None
            self.h = torch.where(self.active, proposed, self.h)
            self.accepted = self.accepted + accept[:, 0]
            self.rejected = self.rejected + (self.active & ~accept)[:, 0]
        return Step(self.t, t_next, torch.where(accept, h, 0.0), self.y, stages), accept

    def advance(self, step: Step, accept: Tensor | None, stop: Tensor | None) -> None:
        """Go on from the end of ``step``, but for the samples ``stop``."""
        if accept is None:
            self.y, self.t, self.k = self.new, step.t_next, step.stages[-1]
        else:
            self.y, self.t = torch.where(accept, self.new, self.y), torch.where(accept, step.t_next, self.t)
            self.k = torch.where(accept, step.stages[-1], step.stages[0])
            stuck = self.active & ~accept & (self.h <= self._smallest())
            if some(stuck):
                self.failed = stuck if self.failed is None else self.failed | stuck
                self.active = self.active & ~stuck
                self.all_active = False
        self.active = self.active & (self.t < self.end)
        if stop is not None:
            self.active = self.active & ~stop
        self.all_active = self.all_active and every(self.active)

    def _smallest(self) -> Tensor:
        """The resolution of time ``[M, 1]``."""
        if self.resolution is None:
            start, guess = self.start
            last = torch.where(torch.isfinite(self.end), self.end, guess)
            self.resolution = 8 * torch.finfo(self.y.dtype).eps * torch.maximum(start.abs(), last.abs())
        return self.resolution

    def narrowed(self, whole: _Front) -> _Front:
        """The front of the active samples alone."""
        keep = self.active[:, 0].nonzero()[:, 0]
        twin = copy.copy(self)
        for name in ("t", "end", "h", "active", "y", "new", "k", "accepted", "rejected"):
            setattr(twin, name, getattr(self, name)[keep])
        twin.start = self.start[0][keep], self.start[1][keep]
        twin.rows = keep if self.rows is None else self.rows[keep]
        twin.failed, twin.all_active, twin.resolution = None, True, None
        field = _Scattered(whole.stepper.field, whole.t, whole.y, twin.rows)
        twin.stepper = Stepper(field, self.stepper.tableau, twin.y, live=False, tolerance=self.control.tightest)
        return twin

    def merge(self, whole: _Front) -> None:
        """Write what these samples have come to into the front of all."""
        rows = self.rows
        if rows is None:
            return
        for name in ("t", "h", "active", "y", "accepted", "rejected", "ratio"):
            setattr(whole, name, getattr(whole, name).index_copy(0, rows, getattr(self, name)))
        if self.failed is not None:
            failed = torch.zeros_like(whole.active) if whole.failed is None else whole.failed
            whole.failed = failed.index_copy(0, rows, failed[rows] | self.failed)


def _on_grid(
    stepper: Stepper, y0: Tensor, times: Tensor, control: Control, keep: Keep, first: Tensor, on_step: OnStep | None
) -> Run:
    counts = _substeps(times, control)
    total = sum(counts)
    whole = keep == "stages" or on_step is not None  # nobody else needs the last stage of the last step
    storage, problem, reached = Storage(keep), "", times[-1]
    y, k, outputs, nodes, taken, stopped = y0, first, [y0], [0], 0, False
    for i, count in enumerate(counts):
        left, span = times[i], times[i + 1] - times[i]
        for j in range(count):
            t = left if j == 0 else left + span * (j / count)
            if taken == control.max_steps:
                problem = f"{total} steps of the grid are more than max_steps={control.max_steps}"
                reached = t
                break
            t_next = times[i + 1] if j + 1 == count else left + span * ((j + 1) / count)
            final = taken + 1 == total and not whole
            new, stages = stepper(t, t_next - t, y, k, last=not final)
            step = Step(t, t_next, t_next - t, y, stages)
            storage.add(t, y, stages)
            stop = None if on_step is None else on_step(step, stepper)
            taken += 1
            y, problem = new, failed_step(stepper, t_next, new)
            stopped = stop is not None and every(stop)
            if problem or stopped:
                reached = t_next
                break
            if not final:
                k = stages[-1]
        if problem or stopped:
            break
        outputs.append(y)
        nodes.append(taken)
    missing = len(times) - len(outputs)
    nodes += [-1] * missing
    outputs += [torch.full_like(y0, math.nan)] * missing
    accepted = torch.full((control.rows(y0),), taken, dtype=torch.int64, device=y0.device)
    rejected = torch.zeros_like(accepted)
    return Run(
        torch.stack(outputs), y, reached, accepted, rejected, rejected == int(bool(problem)), storage, nodes, problem
    )


def _substeps(times: Tensor, control: Control) -> list[int]:
    """Equal steps in each interval, the same number for all samples and at most ``control.step`` long."""
    spans = _longest(times)
    if control.step is None:
        return [int(span > 0) for span in spans]
    return [max(1, math.ceil(span / control.step - 1e-6)) if span > 0 else 0 for span in spans]


def _longest(times: Tensor) -> list[float]:
    """The longest interval over the samples; under vmap over all of its calls (the batch stays in front)."""
    spans = physical(times.diff(dim=0).detach())
    spans = spans.movedim(-3, 0).flatten(1)
    return [float(v) for v in spans.amax(1)] if spans.shape[1] else [0.0] * len(spans)  # none without samples
