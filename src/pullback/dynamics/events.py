"""Events: conditions that end a solve or reset its state, at times that are differentiated by the implicit function
theorem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.dynamics.adjoints import solve
from pullback.dynamics.loop import Run, integrate
from pullback.dynamics.problem import Problem
from pullback.dynamics.roots import Conditions, RootFinder, newton_root
from pullback.dynamics.times import shifted_end, shifted_start
from pullback.dynamics.transforms import some

__all__ = ["Event", "EventRecord", "solve_with_events"]


@dataclass(frozen=True)
class Event:
    """A root of ``condition(t, y)`` along the solution.

    The root is bracketed on the dense output, bisected, and polished by a Newton step on the solution itself. With g
    the condition, the time's derivative is ``dt*/dx = -(dg/dy dy/dx + dg/dx) / (dg/dt + dg/dy f)``: the gradient of
    everything after the event is correct to first order.

    Args:
        condition: ``condition(t, y)`` of ``t`` ``[*batch, 1, ...]`` and the state; returns ``[*batch]``, or that with
            ones behind.
        terminal: whether the solve of this sample ends there.
        direction: 1 counts roots where the condition rises as the solve proceeds, -1 where it falls, 0 both.
        reset: ``reset(t, y)`` returns the state from which to go on; ``None`` goes on with the same.

    Raises:
        ValueError: ``direction`` is none of -1, 0, 1; a terminal event with a reset.

    Example:
        >>> from pullback.dynamics import odeint
        >>> height = torch.tensor([[2.0, 0.0]], requires_grad=True)  # position and velocity of a falling ball
        >>> ground = Event(lambda t, y: y[..., 0])
        >>> def falling(t, y):
        ...     return torch.stack([y[..., 1], -10 + 0 * y[..., 1]], -1)
        >>> fall = odeint(falling, height, [0.0, 9.0], events=ground)
        >>> round(fall.event_times.item(), 4)  # sqrt(2 h / g)
        0.6325

    References:
        Chen, Amos, Nickel (2021), Learning neural event functions for ordinary differential equations, arXiv
        2011.03902.
    """

    condition: Callable[[Tensor, Any], Tensor]
    terminal: bool = True
    direction: int = 0
    reset: Callable[[Tensor, Any], Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise TypeError(f"condition must be a function of t and y, got {type(self.condition).__name__}")
        if self.reset is not None and not callable(self.reset):
            raise TypeError(f"reset must be a function of t and y, or None, got {type(self.reset).__name__}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1, got {self.direction!r}")
        if self.terminal and self.reset is not None:
            raise ValueError(
                "reset must be None for a terminal event; say terminal=False to go on from the reset state"
            )


class EventRecord(NamedTuple):
    """Events in order of occurrence, one row an event: ``[events, samples]``, states ``[events, samples, size]``."""

    times: Tensor
    states: Tensor
    number: Tensor


def solve_with_events(
    problem: Problem,
    y0: Tensor,
    times: Tensor,
    explicit: list[Tensor] | None,
    events: Event | Sequence[Event],
    timed: bool,
) -> tuple[Tensor, Run, EventRecord]:
    """Solve from event to event, each sample from its own.

    Args:
        problem: what to solve.
        y0: ``[samples, size]``.
        times: ``[times, samples or 1, 1]`` ascending.
        explicit: tensors the field depends on, besides those that are found.
        events: one or more.
        timed: whether ``times`` carry a gradient.

    Returns:
        States ``[times, samples, size]``, the run, and what happened when.
    """
    chosen: list[Any] = list(events) if isinstance(events, list | tuple) else [events]
    if not chosen or not all(isinstance(e, Event) for e in chosen):
        raise TypeError(f"events must be an Event or a sequence of them, got {type(events).__name__}")
    walk = _Walk(problem, y0, times, explicit, chosen, timed)
    while some(walk.alive) and not walk.accumulates():
        hit = walk.advance()
        if some(hit):
            walk.handle(hit)
    return walk.result(timed)


class _Walk:
    """Where the samples have got to on their ways from event to event.

    Attributes:
        t, y: ``[samples, 1]`` times and ``[samples, size]`` states, both with their gradients.
        alive: ``[samples]`` that have neither reached the end nor met a terminal event.
        frozen: ``[samples]`` that met a terminal event: later outputs hold its state.
        outputs: one ``[samples, size]`` each output time.
        record: time, state and index of the events so far.
    """

    def __init__(
        self,
        problem: Problem,
        y0: Tensor,
        times: Tensor,
        explicit: list[Tensor] | None,
        events: Sequence[Event],
        timed: bool,
    ) -> None:
        samples = len(y0)
        self.problem, self.events, self.explicit = problem, events, explicit
        self.conditions = Conditions([e.condition for e in events], problem.field)
        self.terminal = torch.tensor([e.terminal for e in events], device=y0.device)
        self.times, self.fixed = times, times.detach().expand(-1, samples, 1)
        self.end = self.fixed[-1]
        largest = torch.where(torch.isfinite(self.fixed), self.fixed, 0.0).abs().amax(0)
        self.slack = 32 * torch.finfo(y0.dtype).eps * largest
        self.t, self.y = times[0].expand(samples, 1), y0
        self.moved = timed  # whether t has a gradient
        self.alive = (self.end > self.fixed[0])[:, 0]
        self.frozen = torch.zeros_like(self.alive)
        self.outputs = [y0] + [torch.where(tau <= self.fixed[0], y0, math.nan) for tau in self.fixed[1:]]
        self.record: list[tuple[Tensor, Tensor, Tensor]] = []
        zero = torch.zeros(samples, dtype=torch.int64, device=y0.device)
        self.total = Run(y0, y0, self.end, zero, zero, zero == 0)
        self.index = zero
        # events in a row that followed the one before at once: below this gap a bounce cannot be told from rest (Zeno)
        self.rounds, self.stalled = 0, zero
        self.gap = torch.finfo(y0.dtype).eps ** 0.5 * (1 + largest)[:, 0]

    def accumulates(self) -> bool:
        """Whether events come in ever shorter times, in which case the solve is given up."""
        if self.rounds < self.problem.control.max_steps and not some(self.stalled > 3):
            return False
        when = float(self.t.detach()[self.alive].min())
        self.total.problem = f"events accumulate: {self.rounds} of them up to t={when:.6g}"
        self.total.converged = self.total.converged & ~self.alive
        return True

    def advance(self) -> Tensor:
        """Solve up to the next event of each sample or to its end; returns which samples ``[samples]`` met one."""
        self.rounds += 1
        field, alive, start = self.problem.field, self.alive, self.t.detach()
        found = self._locate(start)
        hit = found.index >= 0
        target = torch.where(hit.unsqueeze(1), found.time.unsqueeze(1), self.end)
        target = torch.where(alive.unsqueeze(1), target, start)
        inner = self.fixed[1:]
        segment = torch.cat([start[None], torch.minimum(torch.maximum(inner, start), target), target[None]])
        y = shifted_start(field, self.y, self.t) if self.moved else self.y
        states, run, _ = solve(self.problem, y, segment, self.explicit)
        self._count(run)
        # an output at the event itself is the state before it
        reached = inner <= target + torch.where(hit.unsqueeze(1), self.slack, 0.0)
        reached = alive.unsqueeze(1) & (inner > start) & reached
        for i in range(len(inner)):
            self.outputs[i + 1] = torch.where(reached[i], states[i + 1], self.outputs[i + 1])
        self.y = torch.where(alive.unsqueeze(1), states[-1], self.y)
        self.t = torch.where(alive.unsqueeze(1), target, self.t)
        self.stalled = torch.where(alive & hit & ((target - start)[:, 0] <= self.gap), self.stalled + 1, 0)
        self.index = found.index
        self.alive = alive & run.converged.expand(len(self.y)) & hit
        return self.alive

    def handle(self, hit: Tensor) -> None:
        """Make time and state of the events differentiable, note them, and end or reset."""
        target, index = self.t.detach(), self.index.clamp(min=0)
        time, state = newton_root(self.conditions, self.problem.field, index, self.t, self.y)
        occurred = hit.unsqueeze(1)
        self.t, self.y = torch.where(occurred, time, self.t), torch.where(occurred, state, self.y)
        self.record.append((torch.where(occurred, self.t, math.inf), self.y, torch.where(hit, self.index, -1)))
        final = hit & self.terminal[index]
        for i, tau in enumerate(self.fixed[1:], start=1):
            later = final & (tau > target + self.slack)[:, 0]
            self.outputs[i] = torch.where(later.unsqueeze(1), self.y, self.outputs[i])
        self.frozen = self.frozen | final
        self.alive = hit & ~final & (self.t.detach() < self.end)[:, 0]
        self._reset()
        self.moved = True

    def result(self, timed: bool) -> tuple[Tensor, Run, EventRecord]:
        """States, run and record, the states with the derivative in their times where these have one."""
        field, samples = self.problem.field, len(self.y)
        for i in range(1, len(self.times) if timed else 1):
            if not bool(torch.isfinite(self.fixed[i]).all()):
                continue  # an endless solve
            shifted = shifted_end(field, self.outputs[i], self.times[i].expand(samples, 1))
            held = self.frozen.unsqueeze(1) & (self.fixed[i] > self.t.detach() + self.slack)
            self.outputs[i] = torch.where(held, self.outputs[i], shifted)
        self.total.final, self.total.reached = self.y, self.t.detach()
        if not self.record:
            empty = torch.empty(0, samples, dtype=torch.int64, device=self.y.device)
            record = EventRecord(self.y.new_empty(0, samples), self.y.new_empty(0, *self.y.shape), empty)
        else:
            times, states, index = (torch.stack(part) for part in zip(*self.record, strict=True))
            sign = field.sign[:, 0] if isinstance(field.sign, Tensor) else field.sign
            record = EventRecord(times[..., 0] * sign, states, index)
        return torch.stack(self.outputs), self.total, record

    def _locate(self, start: Tensor) -> RootFinder:
        """Solve without a graph up to the first event of each sample."""
        field, y = self.problem.field, self.y.detach()
        k = field.quiet(start, y)
        signs = self.conditions.signs(start, y, k)
        finder = RootFinder(self.conditions, [e.direction for e in self.events], signs, self.alive)
        times = torch.stack([start, torch.where(self.alive.unsqueeze(1), self.end, start)])
        integrate(field.quiet, self.problem.tableau, y, times, self.problem.control, first=k, on_step=finder)
        return finder

    def _reset(self) -> None:
        field = self.problem.field
        rows = field.rows
        for number, event in enumerate(self.events):
            here = self.alive & (self.index == number)
            if event.reset is None or not some(here):
                continue
            time = (self.t * field.sign).reshape(field.time_shape).to(rows.dtype)
            new = event.reset(time, rows.unpack(self.y.to(rows.dtype)))
            rows.check(new, f"reset of event {number}", "y")
            self.y = torch.where(here.unsqueeze(1), rows.pack(new).to(self.y.dtype), self.y)

    def _count(self, run: Run) -> None:
        self.total.accepted = self.total.accepted + run.accepted
        self.total.rejected = self.total.rejected + run.rejected
        self.total.converged = self.total.converged & run.converged
        self.total.problem = self.total.problem or run.problem
