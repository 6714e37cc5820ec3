"""The exact gradient of the discrete solution, from the states at accepted steps alone."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.dynamics.outputs import Outputs, pulled_outputs
from pullback.dynamics.problem import Cotangents, Gradients, Problem, Solved
from pullback.dynamics.steps import StepAdjoint, Stepper

__all__ = ["checkpoint_adjoint", "replayed_adjoint", "symplectic_adjoint"]


def checkpoint_adjoint(problem: Problem, solved: Solved, params: list[Tensor], cotangents: Cotangents) -> Gradients:
    """One step at a time from the end, the graph of one step at a time."""
    return _step_by_step(problem, solved, params, cotangents, one_stage=False)


def symplectic_adjoint(problem: Problem, solved: Solved, params: list[Tensor], cotangents: Cotangents) -> Gradients:
    """The same with the graph of one stage at a time (Matsubara et al. 2021)."""
    return _step_by_step(problem, solved, params, cotangents, one_stage=True)


def _step_by_step(
    problem: Problem, solved: Solved, params: list[Tensor], cotangents: Cotangents, *, one_stage: bool
) -> Gradients:
    outputs, starts_bar, stages_bar = cotangents
    nodes, times, y0 = solved.nodes, solved.times, solved.y0
    pull = StepAdjoint(
        problem.field, problem.tableau, y0, params, one_stage=one_stage, tolerance=problem.control.tightest
    )
    dense = problem.dense and starts_bar.numel() > 0
    steps = list(solved.steps.walk(solved.reached))
    if nodes is None:
        bar, at_start = _ends(outputs, times, solved.reached)
    else:
        bar, at_start = torch.zeros_like(y0), _sum(outputs, nodes, 0, torch.zeros_like(y0))
    for j in reversed(range(len(steps))):
        step = steps[j]
        stage_bar: Tensor | None = None
        direct: Tensor | None = None
        if nodes is None:
            stage_bar, direct = pulled_outputs(times[1:-1], step, outputs[1:-1], pull.c.dense)
        else:
            bar = _sum(outputs, nodes, j + 1, bar)
        if dense:
            stage_bar = stages_bar[j] if stage_bar is None else stage_bar + stages_bar[j]
            direct = starts_bar[j] if direct is None else direct + starts_bar[j]
        bar = pull(step.t, step.h, step.y, bar, stage_bar)
        if direct is not None:
            bar = bar + direct
    return bar + at_start, pull.gradients


def _sum(outputs: Tensor, nodes: list[int], node: int, total: Tensor) -> Tensor:
    """``total`` and the cotangents of the outputs that lie at a node of the grid."""
    for i, at in enumerate(nodes):
        if at == node:
            total = total + outputs[i]
    return total


def _ends(cotangent: Tensor, times: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
    """Cotangent at the end of each sample, and the part that belongs to outputs at the start."""
    early = times[1:-1] <= times[0]
    first = cotangent[0] + torch.where(early, cotangent[1:-1], 0.0).sum(0)
    return torch.where(reached >= times[-1], cotangent[-1], 0.0), first


def replayed_adjoint(
    problem: Problem, solved: Solved, params: list[Tensor], cotangents: Cotangents
) -> list[Tensor | None]:
    """The same gradient with a graph of its own (double backward): the accepted steps are redone live."""
    y0, nodes = solved.y0, solved.nodes
    if not y0.requires_grad:
        y0 = y0.detach().requires_grad_()
    stepper = Stepper(problem.field.evaluate, problem.tableau, y0, live=True, tolerance=problem.control.tightest)
    outputs = Outputs(y0, solved.times, missing=0.0)
    y, states, stacked, starts = y0, [y0], [], []
    for kept in solved.steps.walk(solved.reached):
        new, stages = stepper(kept.t, kept.h, y, problem.field.evaluate(kept.t, y))
        if nodes is None:
            outputs.write(kept._replace(y=y, stages=stages), stepper)
        if problem.dense:
            stacked.append(torch.stack(stages))
            starts.append(y)
        y = new
        states.append(y)
    if nodes is None:
        result = outputs.stack(torch.where(solved.reached >= solved.times[-1], y, 0.0))
    else:
        result = torch.stack([states[n] if n >= 0 else torch.zeros_like(y0) for n in nodes])
    results, weights = [result], [cotangents[0]]
    if problem.dense and starts:
        results += [torch.stack(starts), torch.stack(stacked)]
        weights += list(cotangents[1:])
    return list(torch.autograd.grad(results, [y0, *params], weights, create_graph=True, allow_unused=True))
