"""Events: conditions that end a solve or reset its state, at times that are differentiated by the implicit function
theorem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.dynamics.adjoints import solve
from pullback.dynamics.field import FlatField
from pullback.dynamics.loop import Control, Problem, Run, integrate
from pullback.dynamics.odeint import shifted_end, shifted_start
from pullback.dynamics.steps import Stepper
from pullback.dynamics.transforms import some

__all__ = ["Event", "solve_with_events"]

_PROBES = 4  # looks for a change of sign within a step, so that two roots in one step are told apart


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
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1, got {self.direction!r}")
        if self.terminal and self.reset is not None:
            raise ValueError(
                "reset must be None for a terminal event; say terminal=False to go on from the reset state"
            )


class _Condition:
    """All conditions on flat states: ``[events, samples]``."""

    def __init__(self, events: Sequence[Event], field: FlatField) -> None:
        self.events = events
        self.field = field

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        rows = self.field.rows
        t = (u * self.field.sign).expand(rows.count, 1).reshape(self.field.time_shape).to(rows.dtype)
        state = rows.unpack(y.to(rows.dtype))
        values = []
        for number, event in enumerate(self.events):
            value = event.condition(t, state)
            if not isinstance(value, Tensor) or value.numel() != rows.count:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"condition of event {number} must return {rows.batch}, one number a sample, got {got}"
                )
            values.append(value.reshape(rows.count).to(y.dtype))
        return torch.stack(values)

    def rate(self, u: Tensor, y: Tensor, k: Tensor) -> Tensor:
        """Total derivative along the solution, ``[events, samples]``."""
        with torch.enable_grad():
            u, y = u.detach().expand(len(y), 1).clone().requires_grad_(), y.detach().requires_grad_()
            values = self(u, y)
            rates = []
            for value in values:
                if not value.requires_grad:
                    rates.append(torch.zeros_like(value))
                    continue
                du, dy = torch.autograd.grad(value.sum(), [u, y], retain_graph=True, allow_unused=True)
                rate = torch.zeros_like(value)
                rate = rate if du is None else rate + du[:, 0]
                rates.append(rate if dy is None else rate + (dy * k).sum(1))
        return torch.stack(rates).detach()


class _Locator:
    """Watches a solve for the first event of each sample."""

    def __init__(self, condition: _Condition, signs: Tensor, watched: Tensor) -> None:
        self.condition = condition
        self.sign = signs  # [events, samples] of the condition at the start of the step
        self.watched = watched  # [samples]
        self.time = torch.full(signs.shape[1:], math.inf, dtype=signs.dtype, device=signs.device)
        self.index = torch.full(signs.shape[1:], -1, dtype=torch.int64, device=signs.device)
        self.direction = torch.tensor([e.direction for e in condition.events], device=signs.device).unsqueeze(1)

    def __call__(self, t: Tensor, h: Tensor, y: Tensor, stepper: Stepper, stages: Any) -> Tensor:
        searching = self.watched & (self.index < 0) & (h.expand(len(y), 1)[:, 0] > 0)
        left = 0.0
        for probe in range(1, _PROBES + 1):
            right = probe / _PROBES
            value = self._at(right, t, h, y, stepper, stages)
            sign = value.sign()
            change = (sign != self.sign) & (self.sign != 0) & searching
            change &= (self.direction == 0) | (self.direction == -self.sign)
            self.sign = torch.where(searching & (sign != 0), sign, self.sign)
            if bool(change.any()):
                self._bisect(change, left, right, t, h, y, stepper, stages)
                searching = searching & (self.index < 0)
            left = right
        return (self.index >= 0).unsqueeze(1)

    def _at(self, x: Any, t: Tensor, h: Tensor, y: Tensor, stepper: Stepper, stages: Any) -> Tensor:
        x = x if isinstance(x, Tensor) else y.new_full((1, 1), x)
        return self.condition(t + x * h, stepper.interpolate(x[None], h, y, stages)[0])

    def _bisect(
        self, change: Tensor, left: float, right: float, t: Tensor, h: Tensor, y: Tensor, stepper: Stepper, stages: Any
    ) -> None:
        for number in range(len(change)):
            low, high = torch.full_like(y[:, :1], left), torch.full_like(y[:, :1], right)
            before = self._at(low, t, h, y, stepper, stages)[number]
            if bool((change[number] & (before == 0)).any()):  # leave a root that the segment started from
                low = torch.where((before == 0).unsqueeze(1), low + 1e-3 * (high - low), low)
            after = self._at(high, t, h, y, stepper, stages)[number].sign()
            for _ in range(56 if y.dtype == torch.float64 else 26):
                middle = 0.5 * (low + high)
                same = (self._at(middle, t, h, y, stepper, stages)[number].sign() == after).unsqueeze(1)
                low, high = torch.where(same, low, middle), torch.where(same, middle, high)
            time = (t + high * h).expand(len(y), 1)[:, 0]
            first = change[number] & (time < self.time)
            self.time = torch.where(first, time, self.time)
            self.index = torch.where(first, number, self.index)


def solve_with_events(
    problem: Problem,
    y0: Tensor,
    times: Tensor,
    explicit: list[Tensor] | None,
    events: Event | Sequence[Event],
    timed: bool,
) -> tuple[Tensor, Run, tuple[Tensor, Tensor, Tensor]]:
    """Solve from event to event, each sample from its own.

    Returns:
        States ``[times, samples, size]``, the run, and event times, states and indices, one row an event.
    """
    chosen = [events] if isinstance(events, Event) else list(events)
    if not chosen or not all(isinstance(e, Event) for e in chosen):
        raise TypeError(f"events must be an Event or a sequence of them, got {type(events).__name__}")
    field, samples = problem.field, len(y0)
    condition = _Condition(chosen, field)
    if problem.control.shared:
        control = problem.control
        problem = Problem(
            field,
            problem.tableau,
            Control(control.rtol, control.atol, control.step, False, control.max_steps),
            problem.adjoint,
            False,
        )
    fixed = times.detach().expand(-1, samples, 1)
    end, slack = fixed[-1], 32 * torch.finfo(y0.dtype).eps * fixed.abs().amax(0)
    t, y = times[0].expand(samples, 1), y0
    moved = timed
    alive = (end > fixed[0])[:, 0]
    outputs = [y0] + [torch.where(tau <= fixed[0], y0, math.nan) for tau in fixed[1:]]
    frozen = torch.zeros_like(alive)
    record: list[tuple[Tensor, Tensor, Tensor]] = []
    total: Run | None = None
    terminal = torch.tensor([e.terminal for e in chosen], device=y0.device)
    # events in a row that followed the one before at once: below this gap a bounce cannot be told from rest (Zeno)
    rounds, stalled = 0, torch.zeros(samples, dtype=torch.int64, device=y0.device)
    gap = torch.finfo(y0.dtype).eps ** 0.5 * (1 + fixed.abs().amax(0))[:, 0]
    while bool(alive.any()):
        rounds += 1
        if total is not None and (rounds > problem.control.max_steps or some(stalled > 3)):
            total.problem = f"events accumulate: {rounds - 1} of them up to t={float(t.detach()[alive].min()):.6g}"
            total.converged = total.converged & ~alive
            break
        start = t.detach()
        found = _locate(problem, condition, start, torch.where(alive.unsqueeze(1), end, start), y.detach(), alive)
        hit = found.index >= 0
        target = torch.where(alive.unsqueeze(1), torch.where(hit.unsqueeze(1), found.time.unsqueeze(1), end), start)
        inner = fixed[1:]
        segment = torch.cat([start[None], torch.minimum(torch.maximum(inner, start), target), target[None]])
        states, run, _ = solve(problem, shifted_start(field, y, t) if moved else y, segment, explicit)
        total = run if total is None else _joined(total, run)
        reached = alive.unsqueeze(1) & (inner > start) & (inner <= target + torch.where(hit.unsqueeze(1), slack, 0.0))
        for i in range(len(inner)):
            # an output at the event itself is the state before it
            outputs[i + 1] = torch.where(reached[i], states[i + 1], outputs[i + 1])
        y = torch.where(alive.unsqueeze(1), states[-1], y)
        t = torch.where(alive.unsqueeze(1), target, t)
        stalled = torch.where(alive & hit & ((target - start)[:, 0] <= gap), stalled + 1, 0)
        alive = alive & run.converged.expand(samples) & hit
        if bool(alive.any()):
            event_time, event_state = _differentiable(condition, field, found.index.clamp(min=0), t, y)
            occurred = alive.unsqueeze(1)
            t, y = torch.where(occurred, event_time, t), torch.where(occurred, event_state, y)
            record.append((torch.where(occurred, t, math.inf), y, torch.where(alive, found.index, -1)))
            final = alive & terminal[found.index.clamp(min=0)]
            for i in range(len(inner)):
                later = final & (inner[i] > target + slack)[:, 0]
                outputs[i + 1] = torch.where(later.unsqueeze(1), y, outputs[i + 1])
                frozen = frozen | final
            alive = alive & ~final & (t.detach() < end)[:, 0]
            y = _reset(chosen, field, found.index, alive, t, y)
            moved = True
    if total is None:
        zero = torch.zeros(samples, dtype=torch.int64, device=y0.device)
        total = Run(y0, y0, end, zero, zero, zero == 0)
    if timed:
        for i in range(1, len(times)):
            shifted = shifted_end(field, outputs[i], times[i].expand(samples, 1))
            still = frozen.unsqueeze(1) & (fixed[i] > t.detach() + slack)
            outputs[i] = torch.where(still, outputs[i], shifted)
    total.final, total.reached = y, t.detach()
    if record:
        times_, states_, index_ = (torch.stack(part) for part in zip(*record, strict=True))
        result = (times_[..., 0] * _column(field.sign), states_, index_)
    else:
        result = (y0.new_empty(0, samples), y0.new_empty(0, *y0.shape), torch.empty(0, samples, dtype=torch.int64))
    return torch.stack(outputs), total, result


def _column(sign: float | Tensor) -> float | Tensor:
    return sign[:, 0] if isinstance(sign, Tensor) else sign


def _locate(problem: Problem, condition: _Condition, start: Tensor, end: Tensor, y: Tensor, alive: Tensor) -> _Locator:
    """Solve without a graph up to the first event of each sample."""
    field = problem.field
    k = field.quiet(start, y)
    with torch.no_grad():
        value = condition(start, y)
    rate = condition.rate(start, y, k)
    scale = 1e3 * torch.finfo(y.dtype).eps * (1 + y.abs().amax(1))
    # at a root (an event that was just handled) the side on which the solution leaves it
    sign = torch.where(value.abs() <= scale, rate.sign(), value.sign())
    locator = _Locator(condition, sign, alive)

    def watch(t: Tensor, h: Tensor, state: Tensor, stepper: Stepper, stages: Any) -> Tensor:
        with torch.no_grad():
            return locator(t, h, state, stepper, stages)

    integrate(field.quiet, problem.tableau, y, torch.stack([start, end]), problem.control, first=k, on_step=watch)
    return locator


def _differentiable(
    condition: _Condition, field: FlatField, index: Tensor, t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """One Newton step from the located root: its value polishes it, its derivative is the implicit function's."""
    u = t.detach()
    k = field.evaluate(u, y)
    rate = condition.rate(u, y, k.detach()).gather(0, index[None])[0]
    value = condition(u, y).gather(0, index[None])[0]
    safe = torch.where(rate == 0, 1.0, rate)
    shift = torch.where(rate == 0, 0.0, -value / safe).unsqueeze(1)
    return u + shift, y + shift * k


def _reset(events: Sequence[Event], field: FlatField, index: Tensor, alive: Tensor, t: Tensor, y: Tensor) -> Tensor:
    rows = field.rows
    for number, event in enumerate(events):
        if event.reset is None:
            continue
        here = alive & (index == number)
        if bool(here.any()):
            time = (t * field.sign).reshape(field.time_shape).to(rows.dtype)
            new = rows.pack(event.reset(time, rows.unpack(y.to(rows.dtype)))).to(y.dtype)
            y = torch.where(here.unsqueeze(1), new, y)
    return y


def _joined(total: Run, run: Run) -> Run:
    total.accepted = total.accepted + run.accepted
    total.rejected = total.rejected + run.rejected
    total.converged = total.converged & run.converged
    total.problem = total.problem or run.problem
    return total
