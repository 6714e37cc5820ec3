"""Five ways to differentiate a solve; each is an argument, the loop does not know of them.

Exact for the discrete solution: ``unrolled`` (autograd keeps everything), ``checkpoint`` (states at accepted steps are
kept, one step at a time is redone), ``symplectic`` (the same, one stage at a time). Approximations of the continuous
adjoint ``da/dt = -a^T df/dy``: ``backsolve`` (state and adjoint are solved backwards, nothing is kept; the parameters'
share does not drive the step control) and ``interpolated`` (the adjoint is solved along the stored dense output).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.dynamics.captures import captured_tensors, reachable_parameters
from pullback.dynamics.field import FlatField
from pullback.dynamics.loop import Control, Run, crossed, integrate
from pullback.dynamics.steps import StepAdjoint, Stepper, interpolation_weights, some
from pullback.dynamics.tableaux import Tableau

__all__ = ["ADJOINTS", "Problem", "Steps", "solve"]

ADJOINTS = ("checkpoint", "backsolve", "interpolated", "unrolled", "symplectic")


@dataclass
class Problem:
    """All that defines a solve but its differentiable inputs."""

    field: FlatField
    tableau: Tableau
    control: Control
    adjoint: str
    dense: bool


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


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is under way."""
    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def solve(
    problem: Problem, y0: Tensor, times: Tensor, explicit: list[Tensor] | None
) -> tuple[Tensor, Run, Steps | None]:
    """Solve with the gradient that ``problem.adjoint`` names.

    Args:
        problem: what to solve.
        y0: ``[samples, size]``.
        times: ``[times, M, 1]`` ascending, without gradient.
        explicit: tensors the field depends on, besides those that are found.

    Returns:
        States ``[times, samples, size]``, the run and, where dense output was asked for, the steps.
    """
    field, tableau, control = problem.field, problem.tableau, problem.control
    if not torch.is_grad_enabled() and not transformed():
        run = integrate(field.quiet, tableau, y0, times, control, keep="stages" if problem.dense else "nothing")
        return run.states, run, _aligned(run) if problem.dense else None
    if transformed():
        return _unrolled(problem, y0, times)
    leaf = y0.detach().requires_grad_()
    start = times[0]
    output, captured = captured_tensors(lambda y: field(start, y), leaf)
    first = output.detach()
    if not output.requires_grad:
        _check_constant(field, start, leaf, first)
    del output  # and the graph with it
    params = {id(p): p for p in [*(explicit or ()), *captured, *reachable_parameters(field.field)] if p.requires_grad}
    if not y0.requires_grad and not params:
        run = integrate(
            field.quiet, tableau, y0, times, control, keep="stages" if problem.dense else "nothing", first=first
        )
        return run.states, run, _aligned(run) if problem.dense else None
    if problem.adjoint == "unrolled":
        return _unrolled(problem, y0 if y0.requires_grad else leaf, times)
    box: dict[str, Any] = {"first": first}
    result = _Solve.apply(problem, box, times, y0, *params.values())
    run = box["run"]
    steps = Steps(box["times"], result[1], result[2]) if problem.dense else None
    run.states = result[0]
    return result[0], run, steps


def _check_constant(field: FlatField, t: Tensor, y: Tensor, value: Tensor) -> None:
    """A field without a graph is either constant in y or cut from it; the second is an error."""
    moved = field.quiet(t, y.detach() + 1e-2 * (1 + y.detach().abs()))
    if not torch.equal(moved, value):
        raise RuntimeError(
            "field(t, y) depends on y but its result carries no gradient: it is cut inside the field "
            "(detach, no_grad, numpy, or torch.autograd.grad without create_graph=True)"
        )


def _unrolled(problem: Problem, y0: Tensor, times: Tensor) -> tuple[Tensor, Run, Steps | None]:
    nodes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def note(t: Tensor, h: Tensor, y: Tensor, stepper: Stepper, stages: Any) -> None:
        nodes.append((t, t + h, y, torch.stack(stages)))

    run = integrate(
        problem.field,
        problem.tableau,
        y0,
        times,
        problem.control,
        live=True,
        on_step=note if problem.dense else None,
    )
    if not problem.dense:
        return run.states, run, None
    if not nodes:
        return run.states, run, Steps(times[:1], y0[None][:0], None)
    t, t_next, y, stages = zip(*nodes, strict=True)
    # a rejected attempt leaves t where it was: a step of length zero, which the look-up never meets
    return run.states, run, Steps(torch.stack([*t, t_next[-1]]), torch.stack(y), torch.stack(stages))


def _aligned(run: Run) -> Steps:
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


class _Solve(torch.autograd.Function):
    """``(states, starts, stages) = solve(y0, *params)``; the last two are empty unless dense output was asked for."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, box: dict[str, Any], times: Tensor, y0: Tensor, *params: Tensor) -> Any:
        adjoint = problem.adjoint
        keep = {"backsolve": "nothing", "interpolated": "stages"}.get(adjoint, "states")
        run = integrate(
            problem.field.quiet,
            problem.tableau,
            y0,
            times,
            problem.control,
            keep="stages" if problem.dense else keep,
            first=box["first"],
        )
        box["run"] = run
        ctx.problem, ctx.nodes, ctx.count = problem, run.nodes, len(run.times)
        ctx.owners = [s is None for s in run.samples]
        owners = [s for s in run.samples if s is not None]
        kept = run.stages if adjoint == "interpolated" else []
        saved_states = [run.states] if adjoint == "backsolve" else []
        ctx.params = len(params)
        ctx.save_for_backward(*params, y0, times, run.reached, *run.times, *run.starts, *owners, *saved_states, *kept)
        starts, stages = y0.new_empty(0), y0.new_empty(0)
        if problem.dense:
            steps = _aligned(run)
            box["times"], starts = steps.times, steps.starts.clone()
            stages = steps.stages if steps.stages is not None else stages
        else:
            run.starts, run.stages, run.times = [], [], []
        return run.states, starts, stages

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        problem: Problem = ctx.problem
        saved = list(ctx.saved_tensors)
        params, rest = saved[: ctx.params], saved[ctx.params :]
        y0, times, reached, *rest = rest
        t, rest = rest[: ctx.count], rest[ctx.count :]
        starts, rest = rest[: ctx.count], rest[ctx.count :]
        owners = [None if everyone else rest.pop(0) for everyone in ctx.owners]
        exact = problem.adjoint in ("checkpoint", "symplectic")
        if torch.is_grad_enabled() and exact:
            steps = list(_sequence(problem, t, starts, owners, reached))
            return None, None, None, *_replayed(problem, ctx.nodes, steps, times, reached, y0, params, cotangents)
        if torch.is_grad_enabled() and any(c.requires_grad for c in cotangents):
            raise RuntimeError(
                f"adjoint={problem.adjoint!r} is not differentiable twice; use 'checkpoint', 'symplectic' or 'unrolled'"
            )
        with torch.no_grad():
            if exact:
                steps = list(_sequence(problem, t, starts, owners, reached))
                y_bar, gradients = _discrete(problem, ctx.nodes, steps, times, reached, y0, params, cotangents)
            elif problem.adjoint == "backsolve":
                y_bar, gradients = _backsolve(problem, rest[0], times, reached, params, cotangents[0])
            else:
                run = Run(y0, y0, reached, reached, reached, reached, None, t, starts, owners, rest)
                y_bar, gradients = _interpolated(problem, _aligned(run), times, reached, y0, params, cotangents[0])
        return None, None, None, y_bar, *gradients


_Step = tuple[Tensor, Tensor, Tensor, Tensor]  # t, t_next, h, y


def _sequence(
    problem: Problem, times: list[Tensor], starts: list[Tensor], owners: list[Tensor | None], reached: Tensor
) -> Iterator[_Step]:
    if all(s is None for s in owners):
        for j, (t, y) in enumerate(zip(times, starts, strict=True)):
            t_next = times[j + 1] if j + 1 < len(times) else reached
            yield t, t_next, t_next - t, y
        return
    table, valid = _rows(owners, reached.shape[0], reached.device)
    aligned, rows = _times(torch.cat(times), table, valid, reached), torch.cat(starts)
    for j in range(len(table)):
        yield aligned[j], aligned[j + 1], aligned[j + 1] - aligned[j], rows[table[j]]


def _split(cotangent: Tensor, times: Tensor, reached: Tensor, gridded: bool) -> tuple[Tensor, Tensor]:
    """Cotangent at the end of each sample, and the part that belongs to outputs at the start."""
    first = cotangent[0].clone()
    if len(times) == 1:
        return torch.zeros_like(first), first
    if not gridded and len(times) > 2:
        early = times[1:-1] <= times[0]
        first += torch.where(early, cotangent[1:-1], 0.0).sum(0)
    last = torch.where(reached >= times[-1], cotangent[-1], 0.0)
    return last, first


def _discrete(
    problem: Problem,
    nodes: list[int] | None,
    steps: list[_Step],
    times: Tensor,
    reached: Tensor,
    y0: Tensor,
    params: list[Tensor],
    cotangents: tuple[Tensor, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """The exact gradient of the discrete solution, one step at a time from the end."""
    outputs, starts_bar, stages_bar = cotangents
    one_stage = problem.adjoint == "symplectic"
    pull = StepAdjoint(problem.field, problem.tableau, y0, params, one_stage=one_stage, tolerance=problem.control.rtol)
    dense = problem.dense and starts_bar.numel() > 0
    if nodes is None:
        bar, at_start = _split(outputs, times, reached, False)
    else:
        bar, at_start = torch.zeros_like(y0), torch.zeros_like(y0)
    inner = times[1:-1]
    for j in reversed(range(len(steps))):
        t, t_next, h, y = steps[j]
        stage_bar, direct = None, None
        if nodes is not None:
            for i in range(len(nodes) - 1, -1, -1):
                if nodes[i] == j + 1:
                    bar = bar + outputs[i]
        elif len(inner):
            low, high, mask, x = crossed(inner, t, t_next, h)
            if low < high:
                weighted = torch.where(mask, outputs[1 + low : 1 + high], 0.0)
                direct = weighted.sum(0)
                weights = interpolation_weights(pull.c.dense, x)
                if weights.ndim == 3:
                    stage_bar = h * torch.einsum("mns,mnd->snd", weights.expand(-1, y.shape[0], -1), weighted)
                else:
                    weights = weights.expand(-1, y.shape[0], -1, -1)
                    stage_bar = h * torch.einsum("mnds,mnd->snd", weights, weighted)
        if dense:
            stage_bar = stages_bar[j] if stage_bar is None else stage_bar + stages_bar[j]
            direct = starts_bar[j] if direct is None else direct + starts_bar[j]
        bar = pull(t, h, y, bar, stage_bar)
        if direct is not None:
            bar = bar + direct
    if nodes is not None:
        for i, node in enumerate(nodes):
            if node == 0:
                bar = bar + outputs[i]
    return bar + at_start, pull.gradients


def _replayed(
    problem: Problem,
    nodes: list[int] | None,
    steps: list[_Step],
    times: Tensor,
    reached: Tensor,
    y0: Tensor,
    params: list[Tensor],
    cotangents: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """The same gradient with a graph of its own (double backward): the accepted steps are redone live."""
    if not y0.requires_grad:
        y0 = y0.detach().requires_grad_()
    stepper = Stepper(problem.field.evaluate, problem.tableau, y0, live=True, tolerance=problem.control.rtol)
    inner = times[1:-1]
    outputs: list[Tensor] = [torch.where(tau <= times[0], y0, 0.0) for tau in inner]
    y, states, stacked, starts = y0, [y0], [], []
    for t, t_next, h, _ in steps:
        new, stages = stepper(t, h, y, problem.field.evaluate(t, y))
        if nodes is None and len(inner):
            low, high, mask, x = crossed(inner, t, t_next, h)
            if low < high:
                between = stepper.interpolate(x, h, y, stages)
                for i in range(low, high):
                    outputs[i] = torch.where(mask[i - low], between[i - low], outputs[i])
        if problem.dense:
            stacked.append(torch.stack(stages))
            starts.append(y)
        y = new
        states.append(y)
    if nodes is None:
        result = torch.stack([y0, *outputs, torch.where(reached >= times[-1], y, 0.0)])
    else:
        result = torch.stack([states[n] if n >= 0 else torch.zeros_like(y0) for n in nodes])
    results, weights = [result], [cotangents[0]]
    if problem.dense and starts:
        results += [torch.stack(starts), torch.stack(stacked)]
        weights += list(cotangents[1:])
    return list(torch.autograd.grad(results, [y0, *params], weights, create_graph=True, allow_unused=True))


def _reversed_control(control: Control) -> Control:
    return Control(control.rtol, control.atol, control.step, control.shared, 10 * control.max_steps)


def _backsolve(
    problem: Problem, states: Tensor, times: Tensor, reached: Tensor, params: list[Tensor], outputs: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """Chen et al. (2018): [y, a] backwards, y restarted from each output."""
    pull = StepAdjoint(problem.field, problem.tableau, states[0], params, one_stage=True, tolerance=1e-6)
    slope = _Augmented(pull, problem.tableau, states.shape[-1])
    bar = torch.where(reached >= times[-1], outputs[-1], 0.0)
    step: Tensor | None = None
    for i in range(len(times) - 1, 0, -1):
        start = torch.cat([torch.nan_to_num(states[i]), bar], 1)
        span = -torch.stack([times[i], times[i - 1]])
        control = _reversed_control(problem.control)
        run = integrate(
            slope, problem.tableau, start, span, control, on_step=slope.end_step, first_step=step
        )
        if run.problem:
            raise RuntimeError(f"adjoint='backsolve': the reverse solve failed: {run.problem}")
        # a sample without an interval here (times of its own) has no step to hand on
        step = None if run.step is None or some(run.step <= 0) else run.step
        bar = run.final[:, slope.size :] + torch.nan_to_num(outputs[i - 1])
    return bar, pull.gradients


class _Augmented:
    """d[y, a]/du = [-f, a^T df/dy] in u = -t, and the integral of a^T df/dtheta by the weights of the same method.

    One vector-Jacobian product with the cotangent h b_i a at stage i gives both. The parameters' share counts once the
    step is accepted; where some samples rejected theirs, it is done again for the others.
    """

    def __init__(self, pull: StepAdjoint, tableau: Tableau, size: int) -> None:
        self.pull = pull
        self.weights = tableau.b
        self.size = size
        self.h: Tensor | None = None  # of the step under way
        self.stage = 0
        self.shares: list[Any] = []
        self.visited: list[tuple[int, Tensor, Tensor]] = []

    def begin_step(self, h: Tensor) -> None:
        self.h, self.stage = h, 0
        self.safe = torch.where(h > 0, h, 1.0)
        self.shares, self.visited = [], []

    def __call__(self, u: Tensor, z: Tensor) -> Tensor:
        y, a = z[:, : self.size], z[:, self.size :]
        leaf, k = self.pull.evaluate(-u, y)
        grad: Tensor | None = None
        weight = 0.0
        if self.h is not None:
            self.stage += 1
            weight = self.weights[self.stage]
        if k.requires_grad and self.h is not None and weight != 0:
            grads = torch.autograd.grad(k, [leaf, *self.pull.params], (self.h * weight) * a, allow_unused=True)
            self.shares.append(grads[1:])
            self.visited.append((self.stage, u, z))
            grad = grads[0] if grads[0] is None else grads[0] / (self.safe * weight)
        elif k.requires_grad:
            (grad,) = torch.autograd.grad(k, leaf, a, allow_unused=True)
        return torch.cat([-k.detach(), torch.zeros_like(k) if grad is None else grad], 1)

    def end_step(self, u: Tensor, h: Tensor, z: Tensor, stepper: Stepper, stages: Any) -> None:
        whole = h is self.h
        self.h = None
        if not self.pull.params:
            return
        if whole:
            for share in self.shares:
                self.pull.add(share)
        again = [(0, u, z)] if self.weights[0] != 0 else []
        for stage, at, state in again if whole else again + self.visited:
            _, k = self.pull.evaluate(-at, state[:, : self.size])
            if k.requires_grad:
                cotangent = (h * self.weights[stage]) * state[:, self.size :]
                self.pull.add(torch.autograd.grad(k, self.pull.params, cotangent, allow_unused=True))


def _interpolated(
    problem: Problem, steps: Steps, times: Tensor, reached: Tensor, y0: Tensor, params: list[Tensor], outputs: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The adjoint alone is solved backwards along the stored dense output, on the accepted steps cut at the outputs.

    The steps are known beforehand, so one vector-Jacobian product a stage, weighted by its share in the step, gives the
    slope of the adjoint and the stage's part of the integral over the parameters.
    """
    tableau, samples = problem.tableau, y0.shape[0]
    pull = StepAdjoint(problem.field, tableau, y0, params, one_stage=True, tolerance=1e-6)
    count = len(steps.times)
    nodes = torch.cat([steps.times.expand(-1, samples, 1), torch.minimum(times, reached).expand(-1, samples, 1)])
    grid, origin = nodes[..., 0].sort(dim=0)
    late = torch.where(reached >= times, outputs, 0.0)
    column = torch.arange(samples, device=y0.device)
    stage = 0

    def slope(t: Tensor, a: Tensor) -> Tensor:
        nonlocal stage
        leaf, k = pull.evaluate(t, states[stage])
        weight = tableau.b[stage]
        stage += 1
        if not k.requires_grad:
            return torch.zeros_like(a)
        if weight == 0:
            (grad,) = torch.autograd.grad(k, leaf, a, allow_unused=True)
            return torch.zeros_like(a) if grad is None else grad
        pulled = pull.pull(leaf, k, (h * weight) * a)
        return torch.zeros_like(a) if pulled is None else pulled / (safe * weight)

    # da/dt = -a^T df/dy: with the slope's sign turned, a step of h leads from t + h down to t
    stepper = Stepper(slope, tableau, y0, live=False)
    bar = torch.zeros_like(y0)
    for position in reversed(range(len(grid))):
        output = origin[position] - count  # negative at a node of the solve
        bar = bar + torch.where((output >= 0).unsqueeze(1), late[output.clamp(min=0), column], 0.0)
        if position == 0:
            break
        t = grid[position].unsqueeze(1)
        h = t - grid[position - 1].unsqueeze(1)
        if not bool((h > 0).any()):
            continue
        safe = torch.where(h > 0, h, 1.0)
        states = dense_state(steps, pull.c.dense, t - pull.c.nodes * h, y0)
        stage = 0
        bar, _ = stepper.reversed(t, h, bar, slope(t, bar))
    return bar, pull.gradients


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
