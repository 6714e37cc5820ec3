"""Does autograd's gradient agree with the derivative of the randomly smoothed loss?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.audit.judge.verdicts import Bias
from pullback.audit.probe.program import Program
from pullback.audit.probe.replay import Laboratory, Refusal
from pullback.audit.probe.slopes import changes_along
from pullback.audit.probe.steps import Steps

__all__ = ["measure_bias"]

PAIRS = 24
SCALES = (0.02, 0.1)
"""Smoothing, relative to the root mean square of each trained tensor: a verdict needs both."""


def measure_bias(
    program: Program, laboratory: Laboratory, tensors: list[Tensor], generator: torch.Generator
) -> list[Bias]:
    r"""Regress the antithetic differences of the loss on what autograd's gradient ``g`` predicts for them.

    Along random steps ``s e_k`` autograd predicts ``a_k = s g^T e_k`` and the loss moves by
    ``b_k = (L(p + s e_k) - L(p - s e_k)) / 2``, whose regression on ``a`` has the slope
    :math:`g^T \nabla L_s / |g|^2` in expectation, ``L_s`` the Gaussian-smoothed loss.

    Returns:
        One :class:`Bias` a smoothing; empty if there is no gradient to judge or the time is used up.
    """

    def differentiate() -> tuple[Tensor | None, ...]:
        value = program.value()
        if value is None or not value.requires_grad:
            return ()
        return torch.autograd.grad(value.sum(), tensors, allow_unused=True)

    try:
        gradients = laboratory.attempt(differentiate)
    except Refusal:  # an operation without a derivative, which the trace names
        return []
    if not gradients:
        return []
    found = []
    steps = Steps(laboratory, tensors, generator)
    for smoothing in SCALES:
        changes = changes_along(gradients, steps, smoothing, PAIRS)
        if changes is None:
            return []
        predicted, moved = changes
        square = sum(a * a for a in predicted)
        size = math.sqrt(square * sum(b * b for b in moved))
        if not (math.isfinite(size) and size > 0):
            return []
        product = sum(a * b for a, b in zip(predicted, moved, strict=True))
        ratio = product / square
        scatter = sum((a * (b - ratio * a)) ** 2 for a, b in zip(predicted, moved, strict=True))
        found.append(Bias(ratio, math.sqrt(scatter) / square, product / size, smoothing))
    return found
