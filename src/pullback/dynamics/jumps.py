"""A solve across times at which the field jumps: from one to the next, asked on the near side of each alone.

Where a jump has a gradient, the state at it is moved to it with the field before it and away from it with the one
behind: ``dy/dt* = f(t* -, y) - f(t* +, y)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.dynamics.adjoints import solve
from pullback.dynamics.field import FlatField
from pullback.dynamics.loop import Run
from pullback.dynamics.problem import Problem
from pullback.dynamics.storage import Steps
from pullback.dynamics.times import shifted_end, shifted_start

__all__ = ["solve_across"]


def solve_across(
    problem: Problem, y0: Tensor, times: Tensor, explicit: list[Tensor] | None, jumps: Tensor
) -> tuple[Tensor, Run, Steps | None, list[FlatField]]:
    """Solve up to each jump and anew from there.

    Args:
        problem: what to solve.
        y0: ``[samples, size]``.
        times: ``[times, M, 1]`` ascending, without gradient.
        explicit: tensors the field depends on, besides those that are found.
        jumps: ``[jumps, M, 1]`` in any order, with a gradient or without; those outside of a sample's times do not
            count.

    Returns:
        States ``[times, samples, size]``, the run, the steps where dense output was asked for, and the fields, one a
        piece, which count their evaluations.
    """
    rows = max(times.shape[1], jumps.shape[1])
    times = times.expand(-1, rows, 1)
    start, end = times[0], times[-1]
    inside = (jumps.detach() >= start) & (jumps.detach() <= end)
    live = torch.where(inside, jumps, end).sort(0).values
    cuts, jumps = live.detach(), jumps.detach()
    # each piece asks the field strictly behind the jump it starts at and strictly before the one it ends at
    low, high = torch.full_like(start, -math.inf), torch.full_like(start, math.inf)
    left, y = start, y0
    inner, outputs = times[1:], [torch.where(tau <= start, y0, math.nan) for tau in times[1:]]
    runs, pieces, fields = [], [], []
    for number, right in enumerate((*cuts, end)):
        ends_at_jump = (jumps == right).any(0)
        high = torch.where(ends_at_jump, torch.nextafter(right, -torch.inf * torch.ones_like(right)), math.inf)
        piece = problem.within(low, high)
        if number and live.requires_grad:
            y = shifted_start(piece.field, y, live[number - 1].expand(len(y), 1))
        segment = torch.cat([left[None], torch.minimum(torch.maximum(inner, left), right), right[None]])
        states, run, steps = solve(piece, y, segment, explicit)
        for i, tau in enumerate(inner):
            outputs[i] = torch.where((tau > left) & (tau <= right), states[i + 1], outputs[i])
        runs.append(run)
        fields.append(piece.field)
        if steps is not None:
            pieces.append(steps)
        y, left = states[-1], right
        if number < len(cuts) and live.requires_grad:
            y = shifted_end(piece.field, y, live[number].expand(len(y), 1))
        low = torch.where(ends_at_jump, torch.nextafter(right, torch.inf * torch.ones_like(right)), low)
        if run.problem:
            break
    return torch.stack([y0, *outputs]), _together(runs), _joined(pieces) if pieces else None, fields


def _together(runs: list[Run]) -> Run:
    """One run of several, each from where the one before it ended."""
    last = runs[-1]
    accepted, rejected = (sum((getattr(run, name) for run in runs[1:]), getattr(runs[0], name)) for name in _COUNTS)
    return Run(last.states, last.final, last.reached, accepted, rejected, last.converged, problem=last.problem)


_COUNTS = ("accepted", "rejected")


def _joined(pieces: list[Steps]) -> Steps:
    """Steps of pieces in a row; between two lies one of length zero."""
    pieces = [piece for piece in pieces if len(piece.starts)] or pieces[:1]
    samples = max(piece.times.shape[1] for piece in pieces)
    times = torch.cat([piece.times.expand(-1, samples, 1) for piece in pieces])
    starts, stages = [], []
    for i, piece in enumerate(pieces):
        starts += [piece.starts] if i == 0 else [piece.starts[:1], piece.starts]
        if piece.stages is not None:
            stages += [piece.stages] if i == 0 else [torch.zeros_like(piece.stages[:1]), piece.stages]
    return Steps(times, torch.cat(starts), torch.cat(stages) if stages else None)
