"""How far the loss moves along random steps, and how far a gradient says that it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.audit.probe.replay import Laboratory

__all__ = ["Changes", "changes_along"]


class Changes(NamedTuple):
    """Along each step: what the gradient predicts, and half the difference of the losses before and behind."""

    predicted: list[float]
    measured: list[float]


def changes_along(
    gradients: Sequence[Tensor | None],
    laboratory: Laboratory,
    tensors: list[Tensor],
    scale: float,
    count: int,
    generator: torch.Generator,
) -> Changes | None:
    r"""Return ``g^T e`` and ``(L(p + e) - L(p - e)) / 2`` for ``count`` random steps ``e``.

    Args:
        gradients: ``g`` of each tensor.
        laboratory: evaluates the loss.
        tensors: ``p``; restored to the bit.
        scale: standard deviation of a step, relative to the root mean square of each tensor.
        count: number of steps.
        generator: of the steps.

    Returns:
        ``None`` where the time is used up or the program has no loss to compare.
    """
    changes = Changes([], [])
    for _ in range(count):
        if laboratory.spent:
            return None
        with _random_steps(tensors, scale, generator) as steps:
            pairs = zip(gradients, steps, strict=True)
            changes.predicted.append(sum(float((g.double() * s.double()).sum()) for g, s in pairs if g is not None))
            ends = []
            for sign in (1.0, -2.0):
                with torch.no_grad():
                    for tensor, step in zip(tensors, steps, strict=True):
                        tensor.add_(step, alpha=sign)
                ends.append(laboratory.loss())
        ahead, behind = ends
        if ahead is None or behind is None:
            return None
        changes.measured.append(0.5 * (ahead - behind))
    return changes


@contextmanager
def _random_steps(tensors: list[Tensor], scale: float, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Give each tensor a random step of ``scale`` times its root mean square; restore the tensors to the bit."""
    with torch.no_grad():
        before = [t.detach().clone() for t in tensors]
        steps = []
        for start in before:
            size = float(start.double().square().mean().sqrt()) if start.numel() else 0.0
            noise = torch.randn(start.shape, generator=generator, dtype=torch.float64)
            steps.append((scale * (size or 0.1) * noise).to(start))
    try:
        yield steps
    finally:
        with torch.no_grad():
            for tensor, start in zip(tensors, before, strict=True):
                tensor.copy_(start)
