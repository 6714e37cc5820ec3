"""The exact gradient of the discrete solution, from the states at accepted steps alone."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.dynamics.accepted import Step
from pullback.dynamics.loop import Problem, crossed
from pullback.dynamics.steps import StepAdjoint, Stepper, interpolation_weights

__all__ = ["discrete_adjoint", "replayed_adjoint"]


def discrete_adjoint(
    problem: Problem,
    nodes: list[int] | None,
    steps: list[Step],
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


def replayed_adjoint(
    problem: Problem,
    nodes: list[int] | None,
    steps: list[Step],
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
