"""Clocks of an adaptive solve: where each sample is, how long its next step is, what the last one was worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.core.transforms import physical, transform_running
from pullback.dynamics.control import Control
from pullback.dynamics.steps import Stepper
from pullback.dynamics.transforms import every
from pullback.kernels.step_control import step_control

__all__ = ["Clock", "Pace", "Verdict", "pace_of"]


class Clock(NamedTuple):
    """M clocks, one for each sample or one for all.

    Attributes:
        t, h: ``[M, 1]`` time, and the step that the control proposes.
        t_next, step: ``[M, 1]`` where the next attempt ends, and its length: 0 for a clock that stands.
        active: ``[M, 1]`` whether it is under way.
        under_way: how many are.
    """

    t: Tensor
    h: Tensor
    t_next: Tensor
    step: Tensor
    active: Tensor
    under_way: int


class Verdict(NamedTuple):
    """What has become of an attempt.

    Attributes:
        accept: ``[M, 1]``, ``None`` where every clock accepted.
        clock: the clocks after it.
        stuck: ``[M, 1]`` whose step fell below the resolution of time; ``None``: none.
    """

    accept: Tensor | None
    clock: Clock
    stuck: Tensor | None


class Pace:
    """The control of the steps of one solve, by torch's operations.

    Args:
        control: of steps.
        stepper: makes them.
        t, end: ``[M, 1]`` start and end.
    """

    def __init__(self, control: Control, stepper: Stepper, t: Tensor, end: Tensor) -> None:
        self.control, self.stepper = control, stepper
        self.start, self.end = t.resolve_neg().contiguous(), end.resolve_neg().contiguous()
        self.floor: Tensor | None = None

    def first(self, y: Tensor, k: Tensor, guess: Tensor | None) -> Clock:
        """The clocks at the start, where the field at ``y`` is ``k``; ``guess`` ``[M, 1]`` is the first step."""
        span = self.end - self.start
        h = self._guess(span, y, k) if guess is None else guess.expand(span.shape)
        last = torch.where(torch.isfinite(self.end), self.end, self.start + h)
        self.floor = 8 * torch.finfo(y.dtype).eps * torch.maximum(self.start.abs(), last.abs())
        return self.set(self.start, h.contiguous(), span > 0)

    def _guess(self, span: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return self.control.first_step(self.stepper, self.start, span, y, k)

    def set(self, t: Tensor, h: Tensor, active: Tensor) -> Clock:
        """Clocks that stand at ``t``, their next attempt of ``h`` cut at the end."""
        plain = physical(active)
        count = int(plain.sum())
        bounded = self.control.bounded(h)
        t_next = torch.where(torch.add(t, bounded, alpha=self.control.stretch) >= self.end, self.end, t + bounded)
        step = t_next - t
        if count < plain.numel():
            step = torch.where(active, step, 0.0)
        return Clock(t, h, t_next, step, active, count)

    def judge(self, clock: Clock, y: Tensor, new: Tensor, stages: Any) -> Verdict:
        """Judge the attempt of ``clock`` from ``y`` to ``new``."""
        accept, factor, _ = self.control.judge(self.stepper, clock.step, y, new, stages)
        active = clock.active
        if clock.under_way < physical(active).numel():
            accept = accept & active
        proposed = clock.step * factor
        if every(accept):
            return Verdict(None, self.set(clock.t_next, proposed, clock.t_next < self.end), None)
        h = torch.where(active, proposed, clock.h)
        t = torch.where(accept, clock.t_next, clock.t)
        assert self.floor is not None
        stuck = active & ~accept & (h <= self.floor)
        return Verdict(accept, self.set(t, h, active & ~stuck & (t < self.end)), stuck)

    def of(self, rows: Tensor, stepper: Stepper) -> Pace:
        """That of the clocks ``rows`` alone."""
        twin = type(self)(self.control, stepper, self.start[rows], self.end[rows])
        assert self.floor is not None
        twin.floor = self.floor[rows]
        return twin


class _CompiledPace(Pace):
    """The same in one pass over the arrays of a step, on the CPU."""

    def __init__(self, control: Control, stepper: Stepper, t: Tensor, end: Tensor) -> None:
        super().__init__(control, stepper, t, end)
        options, tableau = control.options, stepper.tableau
        size, dtype = stepper.size, stepper.dtype
        kind = np.float64 if dtype == torch.float64 else np.float32
        self.rtol, self.atol = (
            np.broadcast_to(x.numpy().reshape(-1) if isinstance(x, Tensor) else x, size).astype(kind)
            for x in (control.rtol, control.floor(dtype))
        )
        self.weights = np.array(tableau.error)
        self.numbers = (float(tableau.order), options.safety, options.shrink, options.grow)
        self.bounds = options.smallest, options.largest, control.stretch

    def _guess(self, span: Tensor, y: Tensor, k: Tensor) -> Tensor:
        if self.control.options.first is not None:
            return super()._guess(span, y, k)
        first, second, *_ = step_control()  # type: ignore[misc]
        pairs, count = self.control.complex, len(span)
        with torch.no_grad():
            h0, h = torch.empty_like(span), torch.empty_like(span)
            t, spans, guess, found = (x.numpy()[:, 0] for x in (self.start, span, h0, h))
            sizes = np.empty((2, count))
            at, slope = _array(y), _array(k)
            first(at, slope, self.rtol, self.atol, pairs, t, spans, sizes, guess)
            ahead = self.stepper.quietly(self.start + h0, torch.addcmul(y.detach(), h0, k.detach()))
            order = self.numbers[0]
            second(at, slope, _array(ahead), self.rtol, self.atol, pairs, order, t, spans, sizes[1], guess, found)
        return h

    def judge(self, clock: Clock, y: Tensor, new: Tensor, stages: Any) -> Verdict:
        assert self.floor is not None
        m = len(clock.t)
        flags, at, out = np.empty((2, m), np.bool_), np.empty(m, self.rtol.dtype), np.empty((3, m), self.rtol.dtype)
        kept = torch.stack(stages) if isinstance(stages, list) else stages
        columns = (x.numpy()[:, 0] for x in (clock.t, clock.t_next, clock.step, clock.h, self.end, self.floor))
        taken, after, stuck = step_control()[2](  # type: ignore[index]
            _array(kept), self.weights, _array(y), _array(new), self.rtol, self.atol, self.control.complex,
            (*self.numbers, *self.bounds), *columns, clock.active.numpy()[:, 0], flags[0], flags[1], at, out,
        )  # fmt: skip
        t = torch.from_numpy(at).unsqueeze(-1)  # alone: it is kept of every step
        h, t_next, step = torch.from_numpy(out).unsqueeze(-1).unbind()
        accept, active = torch.from_numpy(flags).unsqueeze(-1).unbind()
        found = Clock(t, h, t_next, step, active, after)
        if taken == m:
            return Verdict(None, found, None)
        lost = None if not stuck else clock.active & ~accept & (h <= self.floor)
        return Verdict(accept, found, lost)


def _array(x: Tensor) -> np.ndarray:
    found: np.ndarray = x.detach().resolve_neg().contiguous().numpy()
    return found


def pace_of(control: Control, stepper: Stepper, y: Tensor, t: Tensor, end: Tensor) -> Pace:
    """The pace of a solve: compiled where its arrays lie on the CPU and nothing but the plain norm is asked for."""
    plain = control.norm is not None or stepper.tableau.implicit or y.device.type != "cpu" or not y.numel()
    kind: Callable[..., Pace] = Pace
    if not plain and not transform_running() and step_control() is not None:
        kind = _CompiledPace
    return kind(control, stepper, t, end)
