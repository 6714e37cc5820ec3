"""Five ways to differentiate a solve; each is an argument, the loop does not know of them.

Exact for the discrete solution: ``unrolled`` (autograd keeps everything), ``checkpoint`` (states at accepted steps are
kept, one step at a time is redone), ``symplectic`` (the same, one stage at a time). Approximations of the continuous
adjoint ``da/dt = -a^T df/dy``: ``backsolve`` (state and adjoint are solved backwards, nothing is kept; the parameters'
share does not drive the step control) and ``interpolated`` (the adjoint is solved along the stored dense output).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import transform_running
from pullback.dynamics.accepted import Steps, accepted_steps, aligned
from pullback.dynamics.adjoint_continuous import backsolve_adjoint, interpolated_adjoint
from pullback.dynamics.adjoint_discrete import discrete_adjoint, replayed_adjoint
from pullback.dynamics.captures import captured_tensors, reachable_parameters
from pullback.dynamics.field import FlatField
from pullback.dynamics.loop import Problem, Run, integrate
from pullback.dynamics.steps import Stepper

__all__ = ["ADJOINTS", "solve"]

ADJOINTS = ("checkpoint", "backsolve", "interpolated", "unrolled", "symplectic")


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
    if not torch.is_grad_enabled() and not transform_running():
        run = integrate(field.quiet, tableau, y0, times, control, keep="stages" if problem.dense else "nothing")
        return run.states, run, aligned(run) if problem.dense else None
    if transform_running():
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
        return run.states, run, aligned(run) if problem.dense else None
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
            steps = aligned(run)
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
            steps = list(accepted_steps(t, starts, owners, reached))
            return (
                None,
                None,
                None,
                *replayed_adjoint(problem, ctx.nodes, steps, times, reached, y0, params, cotangents),
            )
        if torch.is_grad_enabled() and any(c.requires_grad for c in cotangents):
            raise RuntimeError(
                f"adjoint={problem.adjoint!r} is not differentiable twice; use 'checkpoint', 'symplectic' or 'unrolled'"
            )
        with torch.no_grad():
            if exact:
                steps = list(accepted_steps(t, starts, owners, reached))
                y_bar, gradients = discrete_adjoint(problem, ctx.nodes, steps, times, reached, y0, params, cotangents)
            elif problem.adjoint == "backsolve":
                y_bar, gradients = backsolve_adjoint(problem, rest[0], times, reached, params, cotangents[0])
            else:
                run = Run(y0, y0, reached, reached, reached, reached, None, t, starts, owners, rest)
                y_bar, gradients = interpolated_adjoint(
                    problem, aligned(run), times, reached, y0, params, cotangents[0]
                )
        return None, None, None, y_bar, *gradients
