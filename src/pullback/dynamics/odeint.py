"""``odeint``: ordinary differential equations with a step of its own for every sample and a choice of adjoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_integer
from pullback.core.errors import ConvergenceError
from pullback.core.rows import Rows
from pullback.core.shapes import Bool, Float, Int
from pullback.core.transforms import transform_running
from pullback.dynamics.adjoints import solve
from pullback.dynamics.arguments import AttemptedStep, Backsolve, adjoint_of, control_of, grid_of, observer, times_of
from pullback.dynamics.control import Control, StepControl
from pullback.dynamics.events import Event, EventRecord, solve_with_events
from pullback.dynamics.field import FlatField
from pullback.dynamics.jumps import solve_across
from pullback.dynamics.loop import Run
from pullback.dynamics.methods import METHODS
from pullback.dynamics.partitioned import check_pair, check_separable
from pullback.dynamics.problem import Problem
from pullback.dynamics.storage import Steps, dense_state
from pullback.dynamics.tableaux import Tableau
from pullback.dynamics.times import columns, direction, shifted_end, shifted_start
from pullback.dynamics.transforms import every, some

__all__ = ["ODESolution", "odeint"]


@dataclass(frozen=True)
class ODESolution:
    """What :func:`odeint` returns.

    Attributes:
        y: ``[times, *batch, ...]`` (a tree of these where ``y0`` is one), ``y[0]`` is ``y0``. NaN at times a sample
            did not reach; after a terminal event the state of the event.
        t: the times asked for, ``[times]`` or ``[*batch, times]``.
        accepted, rejected: ``[*batch]`` steps of each sample.
        converged: ``[*batch]`` whether the last time (or a terminal event) was reached.
        reached: ``[*batch]`` the last time that each sample reached.
        final: state at ``reached``: of an unfinished solve, as far as it got; without gradient.
        message: why it stopped early; empty where all converged.
        event_times: ``[events, *batch]`` times in order of occurrence, infinite where there is none; ``None`` without
            events.
        event_states: ``[events, *batch, ...]`` states at these times, before any reset.
        event_index: ``[events, *batch]`` which of the events it was, -1 for none.
    """

    y: Any
    t: Tensor
    accepted: Int[Tensor, "*batch"]
    rejected: Int[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]
    reached: Float[Tensor, "*batch"]
    final: Any
    message: str
    event_times: Tensor | None
    event_states: Any
    event_index: Tensor | None
    _fields: Sequence[FlatField]
    _dense: tuple[Steps, Tensor, Tensor] | None

    @property
    def evaluations(self) -> int:
        """Calls of the field in the forward solve (each evaluates all samples)."""
        return sum(field.forward_evaluations for field in self._fields)

    @property
    def backward_evaluations(self) -> int:
        """Calls of the field in backward passes so far."""
        return sum(field.backward_evaluations for field in self._fields)

    def interpolate(self, t: Tensor | float) -> Any:
        """Return the state at any time inside the solve, differentiable in ``t``, ``y0`` and the field's parameters.

        Args:
            t: a number, ``[m]``, or ``[*batch, m]`` for times of each sample.

        Returns:
            ``[*batch, ...]`` for a number, else ``[m, *batch, ...]``.

        Raises:
            ValueError: the solve was made without ``dense=True``, or a time lies outside of it.
        """
        if self._dense is None:
            raise ValueError("interpolate needs odeint(..., dense=True)")
        steps, coefficients, y0 = self._dense
        field = self._fields[0]
        rows = field.rows
        times = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)
        number = times.ndim == 0
        u = columns("t", times.reshape(1) if number else times, rows) * field.sign
        low, high = steps.times[0], steps.times[-1]
        slack = 16 * torch.finfo(y0.dtype).eps * torch.maximum(low.abs(), high.abs())
        if some((u < low - slack) | (u > high + slack)):
            raise ValueError(
                f"t must lie inside the solve, from {float(low.min())} to {float(high.max())} (times the direction), "
                f"got {times.tolist()}"
            )
        states = rows.unpack(dense_state(steps, coefficients, u, y0).to(rows.dtype))
        return torch.utils._pytree.tree_map(lambda x: x[0], states) if number else states


def odeint(
    field: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor | Sequence[Any],
    *,
    method: str = "dopri5",
    rtol: Any = 1e-5,
    atol: Any = 1e-7,
    step: float | Tensor | None = None,
    grid: Tensor | Sequence[Any] | None = None,
    adjoint: str | Backsolve = "checkpoint",
    shared_step: bool = False,
    control: StepControl | None = None,
    events: Event | Sequence[Event] | None = None,
    dense: bool = False,
    max_steps: int = 10_000,
    check: bool = True,
    params: Sequence[Tensor] | None = None,
    batch_ndim: int | None = None,
    on_step: Callable[[AttemptedStep], None] | None = None,
) -> ODESolution:
    """Solve dy/dt = field(t, y), y(t[0]) = y0, and return y at every ``t``.

    A step is accepted where ``sqrt(mean((e / (atol + rtol max(|y|, |y'|)))^2)) <= 1``, with e the difference to the
    embedded method, and the next is h clip(0.9 err^(-1/order), 0.2, 5): for each sample by itself, so that a sample's
    solution does not depend on its company. Samples must not interact: where they do (particles, batch
    normalisation), say which dimensions are the state with ``batch_ndim``, or ``shared_step=True``.

    Args:
        field: ``field(t, y)`` with ``y`` as ``y0`` and ``t`` ``[*batch, 1, ...]``, which broadcasts against it (no
            dimensions for a state without any);
            returns the shape of ``y``. A module, closure or bound method; it may differentiate inside (an energy's
            gradient).
        y0: ``[*batch, state]``, or a nested tuple, list, dict of such, or one number; any floating dtype (half
            precision is solved in float32), or complex.
        t: times, monotone in either direction: ``[times]``, or ``[*batch, times]`` for times of each sample. The
            last may be infinite where a terminal event ends the solve.
        method: adaptive ``dopri5``, ``tsit5``, ``dopri8`` for high accuracy, ``bosh3``, ``adaptive_heun``,
            ``fehlberg2``, and ``kvaerno3`` for stiff problems. Of fixed steps ``rk4``, ``rk38``, ``heun3``, ``heun``,
            ``midpoint``, ``euler``, and for a costly field ``adams_bashforth`` and ``adams_moulton`` (every exact
            adjoint of theirs is ``unrolled``); implicit ``radau5``, ``radau3``, ``gauss6``, ``gauss4``, ``sdirk2``,
            ``trbdf2``, ``trapezoid``, ``implicit_midpoint``, ``implicit_euler``; and ``leapfrog`` (y the pair of
            position and momentum, in two leaves or two halves; the field separable).
        rtol, atol: tolerances of one step, without gradient: numbers, or for each component of the state (a tensor
            that broadcasts against one sample of ``y0``, or such in its structure).
        step: fixed steps of at most this length, for any method; ``None`` adapts them, or takes one step between times.
        grid: ``[points]`` instead: one step between each of these and of the times ``t``.
        adjoint: exact gradients of the discrete solution: ``checkpoint`` (keeps the state at accepted steps and
            redoes one step at a time), ``symplectic`` (one stage at a time), ``unrolled`` (keeps everything); of the
            continuous one, up to the tolerance: ``backsolve`` (keeps only the outputs; Chen et al.), ``interpolated``
            (keeps the dense output). :class:`Backsolve` gives the reverse solve a method and tolerances of its own.
        shared_step: one step for all samples; they share their times, and no events stop one of them.
        control: what else chooses the steps: the first, the shortest, the longest, a norm, times at which the field
            jumps (:class:`StepControl`).
        events: conditions that end or reset the solve (:class:`pullback.dynamics.Event`).
        dense: keep what ``ODESolution.interpolate`` needs.
        max_steps: attempted steps after which the solve is given up; with ``backsolve`` also each one backwards.
        check: raise if a sample does not reach the end; else return what there is, with ``converged=False``.
        params: tensors that the field depends on and that cannot be found: they are found in modules, closures, bound
            methods and in the graph of the first evaluation.
        batch_ndim: number of leading dimensions that number samples; default all but the last of the first leaf.
        on_step: told of each attempted step (:class:`AttemptedStep`).

    Returns:
        An :class:`ODESolution`.

    Raises:
        ValueError: an argument outside its range; the field returns another shape.
        TypeError: ``y0`` is not a floating tensor or a tree of them.
        ConvergenceError: NaN from the field, step underflow, ``max_steps``, an unsolved implicit stage; the message
        names sample and
            time, ``result`` is the partial solution.
        RuntimeError: the field's graph is cut inside, or the field met a parameter only later that was not found at
        the start.

    Example:
        >>> rate = torch.tensor(2.0, requires_grad=True)
        >>> solution = odeint(lambda t, y: -rate * y, torch.ones(1), [0.0, 1.0])
        >>> solution.y[-1].backward()
        >>> round(solution.y[-1].item(), 4), round(rate.grad.item(), 4)  # exp(-2), -exp(-2)
        (0.1353, -0.1353)

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural ordinary differential equations, arXiv 1806.07366;
        Hairer, Norsett, Wanner (1993), Solving ordinary differential equations I, II.4; Sanz-Serna (2016), Symplectic
        Runge-Kutta schemes for adjoint equations; Matsubara, Miyatake, Yaguchi (2021), Symplectic adjoint method,
        arXiv 2102.09750.
    """
    check_choice("method", method, METHODS)
    check_integer("max_steps", max_steps, 1)
    if step is not None and grid is not None:
        raise ValueError("step and grid both say where the steps are: give one")
    tableau = METHODS[method]
    if batch_ndim is not None:
        check_integer("batch_ndim", batch_ndim)
    elif isinstance(y0, Tensor) and y0.ndim == 0:
        batch_ndim = 0
    explicit = None if params is None else [_parameter(p) for p in params]
    rows = Rows.of(y0, batch_ndim, "y0", complex=True)
    chosen = control_of(rows, rtol, atol, step, shared_step, max_steps, control)
    if grid is not None:
        chosen = replace(chosen, step=math.inf)  # one step in each interval, for any method
    if not rows.size:
        raise ValueError(f"y0 must hold at least one number a sample, got shapes {rows.shapes} behind the batch")
    if tableau.partitioned:
        check_pair(rows, tableau)
    flat = rows.pack(y0)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    if not every(torch.isfinite(flat.detach())):
        bad = (~torch.isfinite(flat.detach())).any(1).nonzero()[0]
        raise ValueError(f"y0 must be finite, got NaN or infinity in sample {int(bad)}")
    given = isinstance(t, Tensor)
    t = times_of("t", t, flat)
    live_times = columns("t", t.to(flat), rows)
    if not len(live_times):
        raise ValueError("t must hold one time or more, got 0")
    if shared_step and live_times.shape[1] != 1:
        raise ValueError(f"t must be the same for all samples with shared_step=True, [times], got {tuple(t.shape)}")
    sign = direction(live_times, endless=events is not None)
    live_times = live_times * sign
    flat_field = FlatField(field, rows, sign)
    watch = None if on_step is None else observer(on_step, rows, sign)
    way, reverse = adjoint_of(adjoint, tableau, chosen, rows, sign, dense)
    problem = Problem(flat_field, tableau, chosen, way, dense, reverse, watch)
    if tableau.partitioned:
        check_separable(flat_field, tableau, live_times[0].detach(), flat.detach())
    timed = live_times.requires_grad or (transform_running() and given)
    if chosen.step is not None or not tableau.adaptive:
        live_times = _ended(live_times, chosen)
    jumps = times_of("jumps", chosen.options.jumps, flat)
    fields = [flat_field]
    record: EventRecord | None = None
    steps: Steps | None = None
    if events is not None:
        _check_events(dense, shared_step, len(jumps) > 0, grid is not None)
        states, run, record = solve_with_events(problem, flat, live_times, explicit, events, timed)
    else:
        still, own = live_times.detach(), None
        if grid is not None:
            points, own = grid_of(grid, still, flat, sign)
            still = points.reshape(-1, 1, 1)
        start = shifted_start(flat_field, flat, live_times[0]) if timed else flat
        if len(jumps):
            cuts = columns("jumps", jumps.to(flat), rows) * sign
            states, run, steps, pieces = solve_across(problem, start, still, explicit, cuts)
            fields += pieces
        else:
            ended = still if len(still) > 1 else still.expand(2, -1, -1)
            states, run, steps = solve(problem, start, ended, explicit)
            states = states[: len(still)]
        states = states if own is None else states[own]
        if timed:
            ends = [shifted_end(flat_field, y, u) for y, u in zip(states[1:], live_times[1:], strict=True)]
            states = torch.stack([flat, *ends])
    solution = _solution(rows, fields, tableau, flat, t, states, run, steps, record)
    if run.problem and check:
        raise ConvergenceError(f"odeint(method={method!r}): {run.problem}", solution)
    return solution


def _parameter(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"params must hold tensors, got {type(value).__name__}")
    return value


def _ended(times: Tensor, control: Control) -> Tensor:
    """Times of an endless solve with fixed steps, which ends where ``max_steps`` end it."""
    if every(torch.isfinite(times[-1].detach())):
        return times
    if control.step is None:
        raise ValueError("step must be given for fixed steps up to an event without an end")
    last = times[0].detach() + control.step * control.max_steps
    return torch.cat([times[:-1], torch.where(torch.isfinite(times[-1:]), times[-1:], last[None])])


def _check_events(dense: bool, shared_step: bool, jumps: bool, grid: bool) -> None:
    if dense:
        raise ValueError("dense=True is not available with events; ask for the times in t")
    if shared_step:
        raise ValueError("shared_step must be False with events: each sample stops at events of its own")
    if jumps:
        raise ValueError("jumps of the field are not available with events; a non-terminal event ends a step too")
    if grid:
        raise ValueError("a grid is not available with events; give step")


def _solution(
    rows: Rows,
    fields: Sequence[FlatField],
    tableau: Tableau,
    y0: Tensor,
    t: Tensor,
    states: Tensor,
    run: Run,
    steps: Steps | None,
    record: EventRecord | None,
) -> ODESolution:
    reached = rows.per_row((run.reached * fields[0].sign)[:, 0])
    event_times = event_states = event_index = None
    if record is not None:
        event_times = record.times.reshape(len(record.times), *rows.batch).to(rows.dtype)
        event_states = rows.unpack(record.states.to(rows.dtype))
        event_index = record.number.reshape(len(record.number), *rows.batch)
    return ODESolution(
        y=rows.unpack(states.to(rows.dtype)),
        t=t,
        accepted=rows.per_row(run.accepted),
        rejected=rows.per_row(run.rejected),
        converged=rows.per_row(run.converged),
        reached=reached.detach(),
        final=rows.unpack(run.final.detach().to(rows.dtype)),
        message=run.problem,
        event_times=event_times,
        event_states=event_states,
        event_index=event_index,
        _fields=fields,
        _dense=None if steps is None else (steps, tableau.coefficients(rows.size, y0.dtype, y0.device).dense, y0),
    )
