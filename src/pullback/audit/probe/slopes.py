"""How far the loss moves along random steps, and how far a gradient says that it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pullback.audit.probe.steps import Steps

__all__ = ["Changes", "changes_along"]


class Changes(NamedTuple):
    """Along each step: what the gradient predicts, and half the difference of the losses before and behind."""

    predicted: list[float]
    measured: list[float]


def changes_along(gradients: Sequence[Tensor | None], steps: Steps, scale: float, count: int) -> Changes | None:
    r"""Return ``g^T e`` and ``(L(p + e) - L(p - e)) / 2`` for ``count`` random steps ``e``.

    Args:
        gradients: ``g`` of each tensor.
        steps: around ``p``; the tensors are restored to the bit.
        scale: standard deviation of a step, relative to the root mean square of each tensor.
        count: number of steps.

    Returns:
        ``None`` where the time is used up, the program has no loss to compare, or it takes steps to one side only.
    """
    kind = steps.kind(scale)
    if not kind or steps.sides(kind) != (1.0, -1.0):
        return None
    changes = Changes([], [])
    for _ in range(count):
        if steps.laboratory.spent:
            return None
        with steps.step(kind, scale) as (move, drawn):
            pairs = zip(gradients, drawn, strict=True)
            changes.predicted.append(sum(float((g.double() * s.double()).sum()) for g, s in pairs if g is not None))
            ends = []
            for side in steps.sides(kind):
                move(side)
                ends.append(steps.laboratory.loss())
        ahead, behind = ends
        if ahead is None or behind is None:
            return None
        changes.measured.append(0.5 * (ahead - behind))
    return changes
