"""Approximations of the continuous adjoint da/dt = -a^T df/dy: solved with the state, or along the dense output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.dynamics.loop import OnStep, integrate
from pullback.dynamics.problem import Cotangents, Gradients, Problem, Solved
from pullback.dynamics.steps import StepAdjoint, Stepper
from pullback.dynamics.storage import Step, dense_state
from pullback.dynamics.tableaux import Tableau
from pullback.dynamics.transforms import some

__all__ = ["backsolve_adjoint", "interpolated_adjoint"]


def backsolve_adjoint(problem: Problem, solved: Solved, params: list[Tensor], cotangents: Cotangents) -> Gradients:
    """Chen et al. (2018): [y, a] backwards, y restarted from each output."""
    states, times, outputs = solved.states, solved.times, cotangents[0]
    assert states is not None  # Adjoint.keeps_states
    reverse = problem.reverse
    pull = StepAdjoint(problem.field, reverse.tableau, states[0], params, one_stage=True, tolerance=1e-6)
    slope = _Augmented(pull, reverse.tableau, states.shape[-1], reverse.on_step)
    bar = torch.where(solved.reached >= times[-1], outputs[-1], 0.0)
    step: Tensor | None = None
    for i in range(len(times) - 1, 0, -1):
        start = torch.cat([torch.nan_to_num(states[i]), bar], 1)
        span = -torch.stack([times[i], times[i - 1]])
        run = integrate(slope, reverse.tableau, start, span, reverse.control, on_step=slope.end_step, first_step=step)
        if run.problem:
            raise ConvergenceError(f"adjoint='backsolve': the reverse solve failed: {run.problem}", run.final)
        # a sample without an interval here (times of its own) has no step to hand on
        step = None if run.next_step is None or some(run.next_step <= 0) else run.next_step
        bar = run.final[:, slope.size :] + torch.nan_to_num(outputs[i - 1])
    return bar, pull.gradients


class _Augmented:
    """d[y, a]/du = [-f, a^T df/dy] in u = -t, and the integral of a^T df/dtheta by the weights of the same method.

    One vector-Jacobian product with the cotangent h b_i a at stage i gives both. The parameters' share counts once the
    step is accepted; where some samples rejected theirs, it is done again for the others.
    """

    def __init__(self, pull: StepAdjoint, tableau: Tableau, size: int, watch: OnStep | None) -> None:
        self.pull = pull
        self.watch = watch
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

    def end_step(self, step: Step, stepper: Stepper) -> None:
        whole = step.h is self.h
        self.h = None
        if self.watch is not None:
            self.watch(step, stepper)
        if not self.pull.params:
            return
        if whole:
            for share in self.shares:
                self.pull.add(share)
        again = [(0, step.t, step.y)] if self.weights[0] != 0 else []
        for stage, at, state in again if whole else again + self.visited:
            _, k = self.pull.evaluate(-at, state[:, : self.size])
            if k.requires_grad:
                cotangent = (step.h * self.weights[stage]) * state[:, self.size :]
                self.pull.add(torch.autograd.grad(k, self.pull.params, cotangent, allow_unused=True))


def interpolated_adjoint(problem: Problem, solved: Solved, params: list[Tensor], cotangents: Cotangents) -> Gradients:
    """The adjoint alone is solved backwards along the stored dense output, on the accepted steps cut at the outputs.

    The steps are known beforehand, so one vector-Jacobian product a stage, weighted by its share in the step, gives the
    slope of the adjoint and the stage's part of the integral over the parameters.
    """
    tableau, y0, times, reached = problem.tableau, solved.y0, solved.times, solved.reached
    samples, steps = y0.shape[0], solved.steps.aligned(reached, y0)
    pull = StepAdjoint(problem.field, tableau, y0, params, one_stage=True, tolerance=1e-6)
    count = len(steps.times)
    nodes = torch.cat([steps.times.expand(-1, samples, 1), torch.minimum(times, reached).expand(-1, samples, 1)])
    grid, origin = nodes[..., 0].sort(dim=0)
    late = torch.where(reached >= times, cotangents[0], 0.0)
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
