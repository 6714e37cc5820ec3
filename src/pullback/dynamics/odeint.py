"""``odeint``: ordinary differential equations with a step of its own for every sample and a choice of adjoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_integer, check_scalar
from pullback.core.errors import ConvergenceError
from pullback.core.rows import Rows
from pullback.core.shapes import Bool, Float, Int
from pullback.core.transforms import transform_running
from pullback.dynamics.adjoints import ADJOINTS, solve
from pullback.dynamics.control import Control
from pullback.dynamics.events import Event, EventRecord, solve_with_events
from pullback.dynamics.field import FlatField
from pullback.dynamics.loop import Run
from pullback.dynamics.methods import METHODS
from pullback.dynamics.partitioned import check_pair, check_separable
from pullback.dynamics.problem import Adjoint, Problem
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
    _field: FlatField
    _dense: tuple[Steps, Tensor, Tensor] | None

    @property
    def evaluations(self) -> int:
        """Calls of the field in the forward solve (each evaluates all samples)."""
        return self._field.forward_evaluations

    @property
    def backward_evaluations(self) -> int:
        """Calls of the field in backward passes so far."""
        return self._field.backward_evaluations

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
        rows = self._field.rows
        times = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)
        number = times.ndim == 0
        u = columns("t", times.reshape(1) if number else times, rows) * self._field.sign
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
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-7,
    step: float | Tensor | None = None,
    adjoint: str = "checkpoint",
    shared_step: bool = False,
    events: Event | Sequence[Event] | None = None,
    dense: bool = False,
    max_steps: int = 10_000,
    check: bool = True,
    params: Sequence[Tensor] | None = None,
    batch_ndim: int | None = None,
) -> ODESolution:
    """Solve dy/dt = field(t, y), y(t[0]) = y0, and return y at every ``t``.

    A step is accepted where ``sqrt(mean((e / (atol + rtol max(|y|, |y'|)))^2)) <= 1``, with e the difference to the
    embedded method, and the next is h clip(0.9 err^(-1/order), 0.2, 5): for each sample by itself, so that a sample's
    solution does not depend on its company. Samples must not interact: where they do (particles, batch
    normalisation), say which dimensions are the state with ``batch_ndim``, or ``shared_step=True``.

    Args:
        field: ``field(t, y)`` with ``y`` as ``y0`` and ``t`` ``[*batch, 1, ...]``, which broadcasts against it;
            returns the shape of ``y``. A module, closure or bound method; it may differentiate inside (an energy's
            gradient).
        y0: ``[*batch, state]``, or a nested tuple, list, dict of such; any floating dtype (half precision is solved
            in float32).
        t: two or more times, monotone in either direction: ``[times]``, or ``[*batch, times]`` for times of each
            sample.
        method: adaptive ``dopri5``, ``tsit5``, ``bosh3``, and ``kvaerno3`` for stiff problems; on a grid ``rk4``,
            ``heun``, ``midpoint``, ``euler``, ``implicit_midpoint`` and ``leapfrog`` (y the pair of position and
            momentum, in two leaves or two halves; the field separable).
        rtol, atol: tolerances of one step; numbers, or tensors without dimensions and without gradient.
        step: fixed steps of at most this length, for any method; ``None`` adapts them, or takes one step between times.
        adjoint: exact gradients of the discrete solution: ``checkpoint`` (keeps the state at accepted steps and
            redoes one step at a time), ``symplectic`` (one stage at a time), ``unrolled`` (keeps everything); of the
            continuous one, up to the tolerance: ``backsolve`` (keeps only the outputs; Chen et al.), ``interpolated``
            (keeps the dense output).
        shared_step: one step for all samples; they share their times, and no events stop one of them.
        events: conditions that end or reset the solve (:class:`pullback.dynamics.Event`).
        dense: keep what ``ODESolution.interpolate`` needs.
        max_steps: attempted steps after which the solve is given up; with ``backsolve`` also each one backwards.
        check: raise if a sample does not reach the end; else return what there is, with ``converged=False``.
        params: tensors that the field depends on and that cannot be found: they are found in modules, closures, bound
            methods and in the graph of the first evaluation.
        batch_ndim: number of leading dimensions that number samples; default all but the last of the first leaf.

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
    check_choice("adjoint", adjoint, ADJOINTS)
    check_integer("max_steps", max_steps, 1)
    control = Control(
        _number("rtol", rtol),
        _number("atol", atol, zero=True),
        None if step is None else _number("step", step),
        shared_step,
        max_steps,
    )
    tableau, way = METHODS[method], ADJOINTS[adjoint]
    _check_adjoint(way, tableau, dense)
    if batch_ndim is not None:
        check_integer("batch_ndim", batch_ndim)
    explicit = None if params is None else [_parameter(p) for p in params]
    rows = Rows.of(y0, batch_ndim, "y0")
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
    t = _times(t, flat)
    live_times = columns("t", t.to(flat), rows)
    if len(live_times) < 2:
        raise ValueError(f"t must hold at least two times, got {len(live_times)}")
    if shared_step and live_times.shape[1] != 1:
        raise ValueError(f"t must be the same for all samples with shared_step=True, [times], got {tuple(t.shape)}")
    sign = direction(live_times)
    live_times = live_times * sign
    flat_field = FlatField(field, rows, sign)
    problem = Problem(flat_field, tableau, control, way, dense)
    if tableau.partitioned:
        check_separable(flat_field, tableau, live_times[0].detach(), flat.detach())
    timed = live_times.requires_grad or (transform_running() and given)
    if events is not None:
        if dense:
            raise ValueError("dense=True is not available with events; ask for the times in t")
        if shared_step:
            raise ValueError("shared_step must be False with events: each sample stops at events of its own")
        states, run, record = solve_with_events(problem, flat, live_times, explicit, events, timed)
        steps = None
    else:
        states, run, steps = solve(
            problem, shifted_start(flat_field, flat, live_times[0]) if timed else flat, live_times.detach(), explicit
        )
        record = None
        if timed:
            ends = [shifted_end(flat_field, y, u) for y, u in zip(states[1:], live_times[1:], strict=True)]
            states = torch.stack([flat, *ends])
    solution = _solution(rows, flat_field, tableau, flat, t, states, run, steps, record)
    if run.problem and check:
        raise ConvergenceError(f"odeint(method={method!r}): {run.problem}", solution)
    return solution


def _number(name: str, value: Any, *, zero: bool = False) -> float:
    """A number that controls the solve: it has no gradient, and is one number for all samples."""
    number = check_scalar(name, value, zero=zero)
    if number is None:
        raise ValueError(f"{name} must be one number for all, got a tensor that a transform maps over")
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} has no gradient: it must not require one")
    return number


def _parameter(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"params must hold tensors, got {type(value).__name__}")
    return value


def _check_adjoint(adjoint: Adjoint, tableau: Tableau, dense: bool) -> None:
    if adjoint.exact:
        return
    allowed = ", ".join(repr(a.name) for a in ADJOINTS.values() if a.exact)
    if tableau.implicit or tableau.partitioned:
        raise ValueError(f"adjoint must be one of {allowed} for method={tableau.name!r}, got {adjoint.name!r}")
    if dense:
        raise ValueError(f"adjoint must be one of {allowed} with dense=True, got {adjoint.name!r}")


def _times(t: Any, y: Tensor) -> Tensor:
    """The times as one tensor of the state's precision."""
    if not isinstance(t, Tensor):
        if not isinstance(t, Sequence) or isinstance(t, str):
            raise TypeError(f"t must be a tensor or a sequence of numbers, got {type(t).__name__}")
        for value in t:
            if isinstance(value, bool | str) or not isinstance(value, int | float | Tensor):
                raise TypeError(f"t must hold numbers, got {type(value).__name__}")
        if not t:
            raise ValueError("t must hold at least two times, got 0")
        return torch.stack([torch.as_tensor(value, dtype=y.dtype, device=y.device) for value in t])
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"t must hold real numbers, got {t.dtype}")
    if t.ndim == 0:
        raise ValueError("t must hold at least two times, got a scalar tensor")
    return t


def _solution(
    rows: Rows,
    field: FlatField,
    tableau: Tableau,
    y0: Tensor,
    t: Tensor,
    states: Tensor,
    run: Run,
    steps: Steps | None,
    record: EventRecord | None,
) -> ODESolution:
    reached = rows.per_row((run.reached * field.sign)[:, 0])
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
        _field=field,
        _dense=None if steps is None else (steps, tableau.coefficients(rows.size, y0.dtype, y0.device).dense, y0),
    )
