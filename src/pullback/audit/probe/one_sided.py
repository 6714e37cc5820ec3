"""Slopes of the loss on both sides of where it is, beside the one that autograd takes: what a kink means here."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pullback.audit.probe.program import Program
from pullback.audit.probe.replay import Laboratory
from pullback.audit.probe.steps import Steps
from pullback.audit.report.findings import Finding
from pullback.audit.trace.private import is_wrapped
from pullback.audit.trace.tracer import Tracer
from pullback.gradients import OneSidedSlopes

__all__ = ["with_slopes"]

DIRECTIONS = 4


def with_slopes(
    findings: tuple[Finding, ...],
    program: Program,
    tracer: Tracer,
    wrt: set[int] | None,
    state: tuple[Any, ...],
    budget: float,
) -> tuple[Finding, ...]:
    """Return the findings, those at kinks with the slopes of the loss on both sides among their evidence.

    Args:
        findings: of the audit.
        program: the function under audit; its tensors are restored to the bit.
        tracer: its trace.
        wrt: ids of the trained tensors, ``None`` for all.
        state: random state before the traced run.
        budget: seconds.
    """
    kinks = {i for i, f in enumerate(findings) if f.kind == "kink" and f.code != "kink.penalty"}
    slopes = _slopes(program, tracer, wrt, state, budget) if kinks and not tracer.impure else None
    if slopes is None:
        return findings
    words = {"slope behind": slopes.left, "slope ahead": slopes.right, "slope by autograd": slopes.autograd}
    return tuple(replace(f, evidence={**f.evidence, **words}) if i in kinks else f for i, f in enumerate(findings))


def _slopes(
    program: Program, tracer: Tracer, wrt: set[int] | None, state: tuple[Any, ...], budget: float
) -> OneSidedSlopes | None:
    """Return the slopes along the random direction on which autograd is farthest from one of them."""
    tensors: list[Tensor] = []
    gradients: list[Tensor | None] = []
    for leaf in tracer.leaves.values():
        tensor = leaf.reference()
        if tensor is not None and not is_wrapped(tensor) and (wrt is None or id(tensor) in wrt):
            tensors.append(tensor)
            gradients.append(leaf.gradient)
    if not tensors:
        return None
    laboratory = Laboratory(program, tracer, state, budget)
    scale = max(torch.finfo(t.dtype).eps for t in tensors) ** 0.5
    steps = Steps(laboratory, tensors, torch.Generator().manual_seed(5))
    here, kind = laboratory.loss(), steps.kind(scale)
    if here is None or not kind or steps.sides(kind) != (1.0, -1.0):
        return None
    found = []
    for _ in range(DIRECTIONS):
        with steps.step(kind, scale) as (move, drawn):
            length = math.sqrt(sum(float(d.double().square().sum()) for d in drawn))
            ends = []
            for side in (1.0, -1.0):
                move(side)
                ends.append(laboratory.loss())
        ahead, behind = ends
        if ahead is None or behind is None or not length or laboratory.spent:
            return None
        pairs = zip(gradients, drawn, strict=True)
        said = sum(float((g.double() * d.double()).sum()) for g, d in pairs if g is not None)
        found.append(OneSidedSlopes((here - behind) / length, (ahead - here) / length, said / length))
    return max(found, key=lambda s: max(abs(s.left - s.autograd), abs(s.right - s.autograd)))
