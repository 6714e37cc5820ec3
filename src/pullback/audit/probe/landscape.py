"""The loss on a line along its gradient, and on one across it: what the report's page draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.audit.probe.program import Program
from pullback.audit.probe.replay import Laboratory
from pullback.audit.report.findings import Landscape
from pullback.audit.trace.private import is_wrapped
from pullback.audit.trace.tracer import Tracer
from pullback.gradients import loss_slice

__all__ = ["measure_landscape"]

EXTENT = 1.0
"""Largest step, relative to the Euclidean norm of all trained numbers."""
STEPS = 41


def measure_landscape(
    program: Program, tracer: Tracer, wrt: set[int] | None, state: tuple[Any, ...], budget: float
) -> Landscape | None:
    """Replay the program along its gradient and along a random direction of the same length.

    Args:
        program: the function under audit; its tensors are restored to the bit.
        tracer: its trace.
        wrt: ids of the trained tensors, ``None`` for all.
        state: random state before the traced run.
        budget: seconds; what was not reached is NaN.

    Returns:
        ``None`` where no gradient arrived or the program changes its parameters itself.
    """
    found = []
    for leaf in tracer.leaves.values():
        tensor = leaf.reference()
        if tensor is not None and leaf.gradient is not None and (wrt is None or id(tensor) in wrt):
            found.append((tensor, leaf.gradient))
    norm = math.sqrt(sum(float(g.double().square().sum()) for _, g in found))
    if tracer.impure or not 0 < norm < math.inf or any(is_wrapped(tensor) for tensor, _ in found):
        return None
    tensors = {str(i): tensor for i, (tensor, _) in enumerate(found)}
    start = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    laboratory = Laboratory(program, tracer, state, budget)
    size = math.sqrt(sum(float(t.double().square().sum()) for t in start.values())) or 1.0
    noise = torch.Generator().manual_seed(4)
    drawn = [torch.randn(g.shape, generator=noise, dtype=torch.float64).to(g) for _, g in found]
    length = math.sqrt(sum(float(d.double().square().sum()) for d in drawn))
    along = {str(i): size * g / norm for i, (_, g) in enumerate(found)}
    across = {str(i): size * d / length for i, d in enumerate(drawn)}

    def loss(point: dict[str, Tensor]) -> Tensor:
        if laboratory.spent:
            return torch.tensor(math.nan)
        _place(tensors, point)
        with torch.enable_grad():
            value = laboratory.loss()
        return torch.tensor(math.nan if value is None else value)

    try:
        lines = [loss_slice(loss, start, [direction], EXTENT, STEPS) for direction in (along, across)]
    finally:
        _place(tensors, start)
    offsets, values = lines[0].offsets.tolist(), [line.values.tolist() for line in lines]
    return Landscape(tuple(offsets), tuple(values[0]), tuple(values[1]))


def _place(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
