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
from pullback.dynamics.adjoint_continuous import backsolve_adjoint, interpolated_adjoint
from pullback.dynamics.adjoint_discrete import checkpoint_adjoint, replayed_adjoint, symplectic_adjoint
from pullback.dynamics.captures import captured_tensors, reachable_parameters
from pullback.dynamics.field import FlatField
from pullback.dynamics.loop import Run, integrate
from pullback.dynamics.problem import Adjoint, Problem, Solved
from pullback.dynamics.steps import Stepper
from pullback.dynamics.storage import Keep, Step, Steps

__all__ = ["ADJOINTS", "solve"]

ADJOINTS: dict[str, Adjoint] = {
    adjoint.name: adjoint
    for adjoint in (
        Adjoint("checkpoint", exact=True, keeps="states", backward=checkpoint_adjoint),
        Adjoint("backsolve", exact=False, keeps_states=True, backward=backsolve_adjoint),
        Adjoint("interpolated", exact=False, keeps="stages", backward=interpolated_adjoint),
        Adjoint("unrolled", exact=True),
        Adjoint("symplectic", exact=True, keeps="states", backward=symplectic_adjoint),
    )
}


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
    field = problem.field
    if transform_running():
        return _unrolled(problem, y0, times)
    if not torch.is_grad_enabled():
        return _without_gradient(problem, y0, times, None)
    leaf = y0.detach().requires_grad_()
    start = times[0]
    if problem.adjoint.backward is None and y0.requires_grad:
        first = field(start, y0)
        if not first.requires_grad:
            _check_constant(field, start, y0, first)
        return _unrolled(problem, y0, times, first)
    output, captured = captured_tensors(lambda y: field(start, y), leaf)
    first = output.detach()
    if not output.requires_grad:
        _check_constant(field, start, leaf, first)
    del output  # and the graph with it
    params = {id(p): p for p in [*(explicit or ()), *captured, *reachable_parameters(field.field)] if p.requires_grad}
    if not y0.requires_grad and not params:
        return _without_gradient(problem, y0, times, first)
    if problem.adjoint.backward is None:
        return _unrolled(problem, y0 if y0.requires_grad else leaf, times)
    box: dict[str, Any] = {"first": first}
    result = _Solve.apply(problem, box, times, y0, *params.values())
    run = box["run"]
    steps = Steps(box["times"], result[1], result[2]) if problem.dense else None
    run.states = result[0]
    return result[0], run, steps


def _without_gradient(
    problem: Problem, y0: Tensor, times: Tensor, first: Tensor | None
) -> tuple[Tensor, Run, Steps | None]:
    keep: Keep = "stages" if problem.dense else "nothing"
    run = integrate(
        problem.field.quiet,
        problem.tableau,
        y0,
        times,
        problem.control,
        keep=keep,
        first=first,
        on_step=problem.on_step,
    )
    return run.states, run, run.steps.aligned(run.reached, run.final) if problem.dense else None


def _check_constant(field: FlatField, t: Tensor, y: Tensor, value: Tensor) -> None:
    """A field without a graph is either constant in y or cut from it; the second is an error."""
    moved = field.quiet(t, y.detach() + 1e-2 * (1 + y.detach().abs()))
    if not torch.equal(moved, value):
        raise RuntimeError(
            "field(t, y) depends on y but its result carries no gradient: it is cut inside the field "
            "(detach, no_grad, numpy, or torch.autograd.grad without create_graph=True)"
        )


def _unrolled(
    problem: Problem, y0: Tensor, times: Tensor, first: Tensor | None = None
) -> tuple[Tensor, Run, Steps | None]:
    nodes: list[Step] = []

    def note(step: Step, stepper: Stepper) -> None:
        nodes.append(step)
        if problem.on_step is not None:
            problem.on_step(step, stepper)

    run = integrate(
        problem.field,
        problem.tableau,
        y0,
        times,
        problem.control,
        live=True,
        first=first,
        on_step=note if problem.dense else problem.on_step,
    )
    if not problem.dense:
        return run.states, run, None
    if not nodes:
        return run.states, run, Steps(run.reached[None], y0[None][:0], None)
    # a rejected attempt leaves t where it was: a step of length zero, which the look-up never meets
    t = torch.stack([*(step.t for step in nodes), nodes[-1].t + nodes[-1].h])
    stages = torch.stack([torch.stack(step.stages) for step in nodes])
    return run.states, run, Steps(t, torch.stack([step.y for step in nodes]), stages)


class _Solve(torch.autograd.Function):
    """``(states, starts, stages) = solve(y0, *params)``; the last two are empty unless dense output was asked for."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, box: dict[str, Any], times: Tensor, y0: Tensor, *params: Tensor) -> Any:
        adjoint = problem.adjoint
        keep: Keep = "stages" if problem.dense else adjoint.keeps
        run = integrate(
            problem.field.quiet,
            problem.tableau,
            y0,
            times,
            problem.control,
            keep=keep,
            first=box["first"],
            on_step=problem.on_step,
        )
        box["run"] = run
        kept, starts, stages = run.steps, y0.new_empty(0), y0.new_empty(0)
        if problem.dense:
            steps = kept.aligned(run.reached, run.final)
            box["times"], starts = steps.times, steps.starts.clone()
            stages = steps.stages if steps.stages is not None else stages
        if adjoint.keeps != "stages":
            kept.stages = []  # the dense output holds them, the backward pass does not
        states = [run.states] if adjoint.keeps_states else []
        ctx.problem, ctx.nodes, ctx.params, ctx.states = problem, run.nodes, len(params), len(states)
        ctx.steps = kept.emptied()
        ctx.save_for_backward(*params, y0, times, run.reached, *states, *kept.tensors())
        run.steps = ctx.steps
        return run.states, starts, stages

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        problem: Problem = ctx.problem
        saved = list(ctx.saved_tensors)
        params, (y0, times, reached, *rest) = saved[: ctx.params], saved[ctx.params :]
        states, kept = rest[: ctx.states], ctx.steps.restored(rest[ctx.states :])
        solved = Solved(y0, times, reached, ctx.nodes, kept, states[0] if states else None)
        if torch.is_grad_enabled() and problem.adjoint.exact:
            return None, None, None, *replayed_adjoint(problem, solved, params, cotangents)
        if torch.is_grad_enabled() and any(c.requires_grad for c in cotangents):
            raise RuntimeError(
                f"adjoint={problem.adjoint.name!r} is not differentiable twice; "
                "use 'checkpoint', 'symplectic' or 'unrolled'"
            )
        assert problem.adjoint.backward is not None  # solve() unrolls instead
        with torch.no_grad():
            y_bar, gradients = problem.adjoint.backward(problem, solved, params, cotangents)
        return None, None, None, y_bar, *gradients
