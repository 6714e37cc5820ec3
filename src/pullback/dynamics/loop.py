"""The one loop over steps: adaptive with a step of its own for every sample, or on a given grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import physical
from pullback.dynamics.field import FlatField
from pullback.dynamics.steps import Stepper, quietly
from pullback.dynamics.tableaux import Tableau
from pullback.dynamics.transforms import every, some

__all__ = ["Control", "Problem", "Run", "crossed", "integrate"]

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0


@dataclass(frozen=True)
class Control:
    """How steps are chosen.

    Attributes:
        rtol, atol: err = sqrt(mean((e / (atol + rtol max(|y|, |y'|)))^2)) <= 1 accepts a step.
        step: size of fixed steps; ``None`` adapts them, or for a method without error estimate takes the given times.
        shared: one step for all samples.
        max_steps: attempted steps of one solve.
    """

    rtol: float
    atol: float
    step: float | None
    shared: bool
    max_steps: int


@dataclass
class Problem:
    """All that defines a solve but its differentiable inputs."""

    field: FlatField
    tableau: Tableau
    control: Control
    adjoint: str
    dense: bool


@dataclass
class Run:
    """What a solve leaves behind. M is the number of samples, or 1 where all share their steps.

    Attributes:
        states: ``[times, samples, size]``; NaN where a sample did not get.
        final: ``[samples, size]`` states at ``reached``.
        reached: ``[M, 1]`` last time of each sample.
        accepted, rejected: ``[M]`` counts of steps.
        converged: ``[M]`` whether the end was reached.
        nodes: on a grid, the number of steps before each output time; ``None`` where steps adapt.
        times, starts: time and state at the start of accepted steps; all samples, or those of ``samples`` only.
        samples: for each entry ``None`` (all) or the indices.
        stages: of each accepted step, if asked for.
        problem: why it stopped early, with the numbers.
        step: ``[M, 1]`` the step that would come next, where steps adapt.
    """

    states: Tensor
    final: Tensor
    reached: Tensor
    accepted: Tensor
    rejected: Tensor
    converged: Tensor
    nodes: list[int] | None = None
    times: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    samples: list[Tensor | None] = field(default_factory=list)
    stages: list[Tensor] = field(default_factory=list)
    problem: str = ""
    step: Tensor | None = None


_OnStep = Callable[[Tensor, Tensor, Tensor, Stepper, Any], Tensor | None]


def integrate(
    function: Callable[[Tensor, Tensor], Tensor],
    tableau: Tableau,
    y0: Tensor,
    times: Tensor,
    control: Control,
    *,
    live: bool = False,
    keep: str = "nothing",
    first: Tensor | None = None,
    on_step: _OnStep | None = None,
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
        keep: "nothing", "states" (at the start of accepted steps) or "stages" (these too).
        first: the field at the start, if known.
        on_step: called after every step with (t, accepted step, y, stepper, stages); the step is 0 for a sample
            that rejected it. It may return which samples ``[samples, 1]`` are to stop here (adaptive, not shared
            steps).
        first_step: ``[M, 1]`` guess of the first step.

    Returns:
        A :class:`Run`.
    """
    stepper = Stepper(function, tableau, y0, live=live, tolerance=control.rtol)
    if first is None:
        first = function(times[0], y0)
    if control.step is not None or tableau.error is None:
        return _on_grid(stepper, y0, times, control, keep, first, on_step)
    return _adaptive(stepper, y0, times, control, keep, first, on_step, first_step)


def _on_grid(
    stepper: Stepper, y0: Tensor, times: Tensor, control: Control, keep: str, first: Tensor, on_step: _OnStep | None
) -> Run:
    counts = _substeps(times, control)
    total = sum(counts)
    rows = 1 if control.shared else y0.shape[0]
    run = Run(y0, y0, times[-1], *_counters(y0, rows, total), nodes=[0])
    y, k, outputs, taken = y0, first, [y0], 0
    whole = keep == "stages" or on_step is not None
    for i, count in enumerate(counts):
        left, span = times[i], times[i + 1] - times[i]
        for j in range(count):
            t = left if j == 0 else left + span * (j / count)
            if taken == control.max_steps:
                run.problem = f"{total} steps of the grid are more than max_steps={control.max_steps}"
                run.reached = t
                break
            t_next = times[i + 1] if j + 1 == count else left + span * ((j + 1) / count)
            h = t_next - t
            finish = taken + 1 == total and not whole
            new, stages = stepper(t, h, y, k, last=not finish)
            if keep != "nothing":
                _keep(run, t, y, None, stages if keep == "stages" else None)
            if on_step is not None:
                on_step(t, h, y, stepper, stages)
            taken += 1
            bad = _first_bad(new) if stepper.solved is None or every(stepper.solved) else _unsolved(stepper.solved)
            if bad is not None:
                run.problem = f"{_field_failure(stepper, bad)} at t={_value(t_next, bad[0])}"
                y, run.reached = new, t_next
                break
            y = new
            if not finish:
                k = stages[-1]
        if run.problem:
            break
        outputs.append(y)
        run.nodes.append(taken)  # type: ignore[union-attr]
    if run.problem:
        run.converged = torch.zeros_like(run.converged)
        run.accepted = torch.full_like(run.accepted, taken)
        run.nodes += [-1] * (len(times) - len(outputs))  # type: ignore[operator]
        outputs += [torch.full_like(y0, math.nan)] * (len(times) - len(outputs))
    run.states, run.final = torch.stack(outputs), y
    return run


def _substeps(times: Tensor, control: Control) -> list[int]:
    """Equal steps in each interval, the same number for all samples and at most ``control.step`` long."""
    spans = _longest(times)
    if control.step is None:
        return [int(span > 0) for span in spans]
    return [math.ceil(span / control.step - 1e-6) if span > 0 else 0 for span in spans]


def _longest(times: Tensor) -> list[float]:
    """The longest interval over the samples; under vmap over all of its calls (the batch stays in front)."""
    spans = physical(times.diff(dim=0).detach())
    return [float(v) for v in spans.movedim(-3, 0).flatten(1).amax(1)]


def _adaptive(
    stepper: Stepper,
    y0: Tensor,
    times: Tensor,
    control: Control,
    keep: str,
    first: Tensor,
    on_step: _OnStep | None,
    first_step: Tensor | None,
) -> Run:
    rows = 1 if control.shared else y0.shape[0]
    t = times[0].expand(rows, 1)
    end = times[-1].expand(rows, 1)
    smallest = 8 * torch.finfo(y0.dtype).eps * torch.maximum(t.abs(), end.abs())
    h = first_step if first_step is not None else _first_step(stepper, t, end - t, y0, first, control)
    active = end > t
    all_active = every(active)
    failed = torch.zeros_like(active)
    accepted, rejected, _ = _counters(y0, rows, 0)
    run = Run(y0, y0, end, accepted, rejected, ~failed[:, 0])
    idle = None if all_active else ~active
    y, k = y0, first
    inner = times[1:-1]
    outputs = [torch.where(tau <= times[0], y0, math.nan) for tau in inner]
    attempts = 0
    ratio = None
    exponent = -1.0 / stepper.tableau.order
    while some(active):
        if attempts == control.max_steps:
            run.problem = f"max_steps={control.max_steps} steps did not reach the end"
            break
        attempts += 1
        final = h * 1.01 >= end - t
        t_new = torch.where(final, end, t + h)
        taken = t_new - t
        if not all_active:
            taken = torch.where(active, taken, 0.0)
        new, stages = stepper(t, taken, y, k)
        with torch.no_grad():
            ratio = _ratio(stepper.error(taken, stages).detach(), y.detach(), new.detach(), control)
            norm = torch.linalg.vector_norm(ratio, dim=None if control.shared else 1, keepdim=True).reshape(rows, 1)
            norm = norm * (1.0 / math.sqrt(ratio.numel() if control.shared else ratio.shape[1]))
            accept = norm <= 1.0
            if stepper.solved is not None:
                solved = stepper.solved.all() if control.shared else stepper.solved
                accept, norm = accept & solved, torch.where(solved, norm, math.inf)
            factor = (_SAFETY * norm**exponent).clamp(_SHRINK, _GROW).nan_to_num_(_SHRINK)
            if not all_active:
                accept = accept & active
            everyone = every(accept)
            # of a rejected step, and of one that was not cut short by the end
            h = taken * factor if everyone else torch.where(active, taken * factor, h)
        if everyone:
            run.accepted = run.accepted + 1
        else:
            run.accepted = run.accepted + accept[:, 0]
            run.rejected = run.rejected + (active & ~accept)[:, 0]
        if keep != "nothing":
            mask = accept if idle is None else accept | idle
            if everyone:
                _keep(run, t, y, None, stages if keep == "stages" else None)
                idle = None
            elif some(mask) and not control.shared:
                chosen = mask[:, 0].nonzero()[:, 0].to(torch.int32)
                _keep(run, t, y, chosen, stages if keep == "stages" else None)
                idle = None
        step_taken = taken if everyone else torch.where(accept, taken, 0.0)
        if outputs:
            _write_outputs(outputs, inner, t, step_taken, t_new, y, stepper, stages)
        stop = None if on_step is None else on_step(t, step_taken, y, stepper, stages)
        if everyone:
            y, t, k = new, t_new, stages[-1]
        else:
            y, t = torch.where(accept, new, y), torch.where(accept, t_new, t)
            k = torch.where(accept, stages[-1], stages[0])
            stuck = active & ~accept & (h <= smallest)
            if some(stuck):
                failed = failed | stuck
                run.problem = "the step fell below the resolution of time"
                active = active & ~stuck
                all_active = False
        active = active & (t < end)
        if stop is not None:
            active = active & ~stop
        all_active = all_active and every(active)
    done = ~failed & (t >= end)
    run.converged = done[:, 0]
    if run.problem:
        run.problem += _diagnosis(stepper, t, h, y, done, ratio)
        last = torch.where(done, y, math.nan)
    else:
        last = y
    run.reached, run.final, run.step = t, y, h
    run.states = torch.stack([y0, *outputs, last])
    return run


def _ratio(error: Tensor, y: Tensor, new: Tensor, control: Control) -> Tensor:
    scale = torch.maximum(y.abs(), new.abs()).mul_(control.rtol).add_(control.atol)
    return error / scale


def _write_outputs(
    outputs: list[Tensor], inner: Tensor, t: Tensor, h: Tensor, t_new: Tensor, y: Tensor, stepper: Stepper, stages: Any
) -> None:
    low, high, mask, x = crossed(inner, t, t_new, h)
    if low == high:
        return
    states = stepper.interpolate(x, h, y, stages)
    for i in range(low, high):
        outputs[i] = torch.where(mask[i - low], states[i - low], outputs[i])


def crossed(inner: Tensor, t: Tensor, t_new: Tensor, h: Tensor) -> tuple[int, int, Tensor, Tensor]:
    """Output times in (t, t + h]: a range of indices, the mask ``[m, M, 1]`` inside it and fractions of the step."""
    mask = (inner > t) & (inner <= t_new) & (h > 0)
    plain = physical(mask)
    hit = plain.reshape(-1, *plain.shape[-3:]).any(0).flatten(1).any(1).nonzero()
    if not len(hit):
        return 0, 0, mask[:0], mask[:0]
    low, high = int(hit[0]), int(hit[-1]) + 1
    mask = mask[low:high]
    x = torch.where(mask, (inner[low:high] - t) / torch.where(h > 0, h, 1.0), 0.0)
    return low, high, mask, x


def _keep(run: Run, t: Tensor, y: Tensor, samples: Tensor | None, stages: Any) -> None:
    run.samples.append(samples)
    run.times.append(t if samples is None else t[samples])
    run.starts.append(y if samples is None else y[samples])
    if stages is not None:
        run.stages.append(stages.clone() if samples is None else stages[:, samples])


def _counters(y0: Tensor, rows: int, accepted: int) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.full((rows,), accepted, dtype=torch.int64, device=y0.device)
    return count, torch.zeros_like(count), torch.ones_like(count, dtype=torch.bool)


def _first_step(stepper: Stepper, t: Tensor, span: Tensor, y: Tensor, k: Tensor, control: Control) -> Tensor:
    """Starting step of Hairer, Norsett, Wanner (1993), II.4, for each sample."""
    with torch.no_grad():
        y, k = y.detach(), k.detach()
        scale = control.atol + control.rtol * y.abs()

        def norm(x: Tensor) -> Tensor:
            x = (x / scale).square()
            return (x.mean() if control.shared else x.mean(1)).sqrt().reshape(-1, 1)

        d0, d1 = norm(y), norm(k)
        tiny = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(tiny, 1e-6 * span, 0.01 * d0 / torch.where(tiny, 1.0, d1))
        h0 = torch.minimum(h0, span)
        slope = quietly(stepper.field, t + h0, y + h0 * k)
        d2 = norm(slope.detach() - k) / torch.where(h0 > 0, h0, 1.0)
        most = torch.maximum(d1, d2)
        h1 = torch.where(
            most <= 1e-15, torch.maximum(1e-6 * span, 1e-3 * h0), (0.01 / most) ** (1.0 / stepper.tableau.order)
        )
        h = torch.minimum(torch.minimum(100 * h0, h1), span)
        return torch.where(torch.isfinite(h) & (h > 0), h, 1e-6 * span)


def _first_bad(y: Tensor) -> tuple[int, int] | None:
    """Sample and component of the first non-finite number."""
    y = physical(y.detach())
    if math.isfinite(float(y.sum())):  # one cheap look; a sum that overflows gets the thorough one
        return None
    bad = (~torch.isfinite(y)).reshape(-1, y.shape[-1]).nonzero()
    return (int(bad[0, 0]), int(bad[0, 1])) if len(bad) else None


def _unsolved(solved: Tensor) -> tuple[int, int]:
    return int((~solved).flatten().nonzero()[0]), -1


def _field_failure(stepper: Stepper, bad: tuple[int, int]) -> str:
    sample, component = bad
    if component < 0:
        return f"Newton's iteration of {stepper.tableau.name} did not converge for sample {sample}; take smaller steps"
    return f"the field or the state became NaN or infinite in sample {sample}, component {component}"


def _value(t: Tensor, sample: int) -> float:
    return float(t[min(sample, t.shape[0] - 1)])


def _diagnosis(stepper: Stepper, t: Tensor, h: Tensor, y: Tensor, done: Tensor, ratio: Tensor | None) -> str:
    """Which sample stopped, where, which component asks for the small steps, and what to try."""
    done, t, h, y = (physical(x.detach()) for x in (done, t, h, y))
    sample = int((~done).reshape(-1).nonzero()[0])
    text = f"; sample {sample} stopped at t={float(t.reshape(-1)[sample]):.6g} "
    text += f"with step {float(h.reshape(-1)[sample]):.3g}"
    if ratio is not None:
        row = physical(ratio).reshape(-1, ratio.shape[-1])[sample]
        if bool(torch.isfinite(row).all()):
            text += f", its component {int(row.abs().argmax())} has the largest error"
        else:
            text += f", where the field returned NaN or infinity (component {int((~torch.isfinite(row)).nonzero()[0])})"
    if not stepper.tableau.implicit:
        text += "; if the problem is stiff, method='kvaerno3' takes larger steps"
    return text
