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
from pullback.dynamics.pace import Clock, Verdict, pace_of
from pullback.dynamics.steps import Stepper
from pullback.dynamics.storage import Keep, Step, Storage
from pullback.dynamics.tableaux import Tableau
from pullback.dynamics.transforms import every, some
from pullback.kernels.step_control import step_control

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
    storage = Storage(keep, None if front.everyone else ~front.clock.active)
    outputs = Outputs(y0, times)
    problem, attempts = "", 0
    leaves = on_step is None and len(y0) >= _CROWD and _may_leave(stepper, control)
    while front.clock.under_way:
        if attempts == control.max_steps:
            problem = f"max_steps={control.max_steps} steps did not reach the end"
            break
        attempts += 1
        if leaves and storage.idle is None and 4 * front.clock.under_way <= 3 * len(front.y):
            front.merge(whole)
            front = front.narrowed(whole)
        step, accept = front.attempt()
        storage.add(step.t, step.y, step.stages, accept, front.rows)
        outputs.write(step, front.stepper, front.rows)
        front.advance(step, accept, None if on_step is None else on_step(step, stepper))
    front.merge(whole)
    whole.settle()
    front, clock = whole, whole.clock
    if front.failed is not None:
        problem = "the step fell below the resolution of time"
    done, last = clock.t >= front.pace.end, front.y
    if problem:
        problem += stopped_early(stepper, clock.t, clock.h, done, front.ratio())
        last = torch.where(done, last, math.nan)
    return Run(
        outputs.stack(last),
        front.y,
        clock.t,
        front.accepted,
        front.rejected,
        done[:, 0],
        storage,
        problem=problem,
        next_step=clock.h,
    )


_CROWD = 2048
"""Samples from which on those that are done leave the arrays of the solve."""


def _may_leave(stepper: Stepper, control: Control) -> bool:
    """Whether nothing but the field asks for the states of all samples."""
    tableau = stepper.tableau
    alone = not (control.shared or stepper.live or tableau.implicit or tableau.coupled or transform_running())
    return alone and control.norm is None


class _Scattered:
    """The field of some samples: asked for all of them, the others where they stopped, in arrays that are kept."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor, rows: Tensor) -> None:
        self.function, self.t, self.rows = function, t.clone(), rows
        self.y = y.clone(memory_format=torch.contiguous_format)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The field at ``[rows, 1]`` times and ``[rows, size]`` states."""
        loops = step_control() if y.device.type == "cpu" else None
        if loops is None:
            self.t.index_copy_(0, self.rows, t)
            self.y.index_copy_(0, self.rows, y)
        else:
            given = (x.detach().resolve_neg().contiguous().numpy() for x in (self.rows, t, y))
            loops[3](*given, self.t.numpy(), self.y.numpy())
        return self.function(self.t, self.y).index_select(0, self.rows)


class _Front:
    """Where the samples of an adaptive solve have got to, and the step that each tries next.

    Attributes:
        clock: times and steps.
        y, k, new: ``[samples, size]`` state, field there, and the state that the last attempt led to.
        taken: steps that all samples accepted together.
        accepted, rejected: ``[M]`` counts of all others.
        failed: ``[M, 1]`` samples whose step fell below the resolution of time; ``None`` while there is none.
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
        self.stepper = stepper
        count = control.rows(y0)
        self.pace = pace_of(control, stepper, y0, times[0].expand(count, 1), times[-1].expand(count, 1))
        self.clock = self.pace.first(y0, first, first_step)
        self.y = self.new = y0
        self.k = first
        self.taken = 0
        self.accepted = torch.zeros(count, dtype=torch.int64, device=y0.device)
        self.rejected = self.accepted
        self.rows: Tensor | None = None
        self.failed: Tensor | None = None
        self.known: Tensor | None = None  # ratios of those that are no longer part of the front
        self.last: tuple[Tensor, Tensor, Tensor, Any] | None = None
        self.verdict: Verdict

    @property
    def everyone(self) -> bool:
        """Whether all samples are under way."""
        return self.clock.under_way == physical(self.clock.active).numel()

    def attempt(self) -> tuple[Step, Tensor | None]:
        """Try a step; returns it, of length 0 where it was rejected, and who accepted it (``None``: everyone)."""
        clock = self.clock
        self.new, stages = self.stepper(clock.t, clock.step, self.y, self.k)
        with torch.no_grad():
            self.verdict = self.pace.judge(clock, self.y, self.new, stages)
        self.last = clock.step, self.y, self.new, stages
        accept = self.verdict.accept
        if accept is None:
            self.taken += 1
            return Step(clock.t, clock.t_next, clock.step, self.y, stages), None
        self.accepted = self.accepted + accept[:, 0]
        self.rejected = self.rejected + (clock.active & ~accept)[:, 0]
        return Step(clock.t, clock.t_next, torch.where(accept, clock.step, 0.0), self.y, stages), accept

    def advance(self, step: Step, accept: Tensor | None, stop: Tensor | None) -> None:
        """Go on from the end of ``step``, but for the samples ``stop``."""
        if accept is None:
            self.y, self.k = self.new, step.stages[-1]
        else:
            self.y = torch.where(accept, self.new, self.y)
            self.k = torch.where(accept, step.stages[-1], step.stages[0])
        self.clock, stuck = self.verdict.clock, self.verdict.stuck
        if stuck is not None and some(stuck):
            self.failed = stuck if self.failed is None else self.failed | stuck
        if stop is not None:
            self.clock = self.pace.set(self.clock.t, self.clock.h, self.clock.active & ~stop)

    def settle(self) -> None:
        """Count the common steps among those of each sample."""
        self.accepted, self.taken = self.accepted + self.taken, 0

    def ratio(self) -> Tensor | None:
        """``[samples, size]`` error over tolerance of the last attempt of each sample."""
        if self.last is None:
            return self.known
        h, y, new, stages = self.last
        with torch.no_grad():
            return self.pace.control.judge(self.stepper, h, y, new, stages).ratio

    def narrowed(self, whole: _Front) -> _Front:
        """The front of the active samples alone."""
        self.settle()
        keep = self.clock.active[:, 0].nonzero()[:, 0]
        twin = copy.copy(self)
        for name in ("y", "new", "k", "accepted", "rejected"):
            setattr(twin, name, getattr(self, name)[keep])
        twin.rows = keep if self.rows is None else self.rows[keep]
        twin.failed = twin.last = None
        field = _Scattered(whole.stepper.field, whole.clock.t, whole.y, twin.rows)
        twin.stepper = Stepper(field, self.stepper.tableau, twin.y, live=False, tolerance=self.pace.control.tightest)
        twin.pace = self.pace.of(keep, twin.stepper)
        twin.clock = Clock._make([*(x[keep] for x in self.clock[:-1]), self.clock.under_way])
        return twin

    def merge(self, whole: _Front) -> None:
        """Write what these samples have come to into the front of all."""
        rows = self.rows
        if rows is None:
            return
        self.settle()
        known, ratio = whole.ratio(), self.ratio()
        whole.known, whole.last = known if ratio is None or known is None else known.index_copy(0, rows, ratio), None
        clocks = zip(whole.clock[:-1], self.clock[:-1], strict=True)
        merged = [old.index_copy(0, rows, new) for old, new in clocks]
        whole.clock = Clock._make([*merged, self.clock.under_way])
        whole.y = whole.y.index_copy(0, rows, self.y)
        for name in ("accepted", "rejected"):
            setattr(whole, name, getattr(whole, name).index_copy(0, rows, getattr(self, name)))
        if self.failed is not None:
            failed = torch.zeros_like(whole.clock.active) if whole.failed is None else whole.failed
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
