"""Try what the report recommends: does the program under ``relaxed`` have a gradient that points the right way?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.audit.probe.program import Program, relaxing
from pullback.audit.probe.replay import Laboratory, Refusal
from pullback.audit.probe.slopes import changes_along
from pullback.audit.probe.steps import Steps

__all__ = ["try_relaxed"]

DIRECTIONS = 24
SMOOTHING = 0.3
"""Step of the smoothed reference, relative to the root mean square of each trained tensor."""


def try_relaxed(
    program: Program, laboratory: Laboratory, tensors: list[Tensor], generator: torch.Generator
) -> tuple[dict[str, float], str]:
    r"""Compare the gradient ``g`` under ``relaxed(temperature=0.5)`` with the smoothed loss of the plain program.

    Along ``K`` random directions ``u`` with step ``s`` the two slopes are ``a = g^T u`` and
    ``b = (L(p + s u) - L(p - s u)) / 2s``; their cosine ``a^T b / (|a| |b|)`` estimates that of the two gradients,
    with a standard error of about ``1 / sqrt(K)``.

    Returns:
        ``relaxed_gradient`` (its norm), ``relaxed_cosine`` and ``relaxed_cosine_error``, empty if the trial could not
        be made; and a note that says why, empty if it was.
    """

    def differentiate() -> tuple[Tensor | None, ...]:
        with relaxing(0.5):
            value = program.value()
        if value is None or not value.requires_grad:
            return ()
        return torch.autograd.grad(value.sum(), tensors, allow_unused=True)

    try:
        gradients = laboratory.attempt(differentiate)
    except Refusal as refusal:  # whatever the user's program raises when its tensors are soft ones
        return {}, f"relaxed could not be tried: {refusal}"
    if not gradients:
        return {"relaxed_gradient": 0.0}, ""
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    if norm == 0.0 or not math.isfinite(norm):
        return {"relaxed_gradient": norm}, ""
    changes = changes_along(gradients, Steps(laboratory, tensors, generator), SMOOTHING, DIRECTIONS)
    if changes is None:
        late = "the time budget did not reach for the smoothed reference of relaxed"
        return {"relaxed_gradient": norm}, late if laboratory.spent else ""
    expected, measured = changes
    sizes = math.sqrt(sum(a * a for a in expected) * sum(b * b for b in measured))
    if sizes == 0.0 or not math.isfinite(sizes):
        return {"relaxed_gradient": norm}, ""
    cosine = sum(a * b for a, b in zip(expected, measured, strict=True)) / sizes
    return {
        "relaxed_gradient": norm,
        "relaxed_cosine": cosine,
        "relaxed_cosine_error": 1.0 / math.sqrt(DIRECTIONS),
    }, ""
