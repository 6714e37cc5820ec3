"""Which adjoint suits a problem: exactness, time and memory of each, measured on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_choice
from pullback.dynamics.adjoints import ADJOINTS
from pullback.dynamics.odeint import odeint
from pullback.gradients import saved_bytes

__all__ = ["AdjointComparison", "compare_adjoints"]


class AdjointComparison(NamedTuple):
    """What one adjoint costs and how far its gradient is from that of ``unrolled``.

    Attributes:
        difference: largest relative distance of a gradient (of ``y0`` or a parameter) to the unrolled one.
        time_ratio: process CPU time of solve and gradient over that of ``unrolled``, median of interleaved repeats.
        saved_bytes: kept between solve and gradient.
    """

    difference: float
    time_ratio: float
    saved_bytes: int


def compare_adjoints(
    field: Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    t: Tensor | Sequence[float],
    params: Sequence[Tensor],
    *,
    adjoints: Sequence[str] = ADJOINTS,
    repeats: int = 9,
    **options: Any,
) -> dict[str, AdjointComparison]:
    """Solve once per adjoint and differentiate the sum of sines of the last state.

    Args:
        field, y0, t: as in :func:`odeint`; ``y0`` requires a gradient.
        params: tensors that the field depends on and whose gradients are compared.
        adjoints: those to compare.
        repeats: timed solves of each.
        **options: further arguments of :func:`odeint`.

    Returns:
        An :class:`AdjointComparison` for each adjoint.

    Raises:
        ValueError: an unknown adjoint, ``repeats`` below 1, or ``y0`` without gradient.

    Example:
        >>> rate = torch.tensor(2.0, requires_grad=True)
        >>> y0 = torch.ones(4, 1, requires_grad=True)
        >>> result = compare_adjoints(lambda t, y: -rate * y, y0, [0.0, 1.0], [rate], repeats=1)
        >>> result["checkpoint"].saved_bytes < result["unrolled"].saved_bytes
        True
    """
    for adjoint in adjoints:
        check_choice("adjoints", adjoint, ADJOINTS)
    if repeats < 1:
        raise ValueError(f"repeats must be >= 1, got {repeats}")
    if not y0.requires_grad:
        raise ValueError("y0 must require a gradient, got requires_grad=False")

    def solve(adjoint: str) -> Tensor:
        return odeint(field, y0, t, adjoint=adjoint, params=params, **options).y[-1]

    def gradients(adjoint: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(solve(adjoint).sin().sum(), [y0, *params])

    def timed(adjoint: str) -> float:
        begin = time.process_time()
        gradients(adjoint)
        return time.process_time() - begin

    exact = gradients("unrolled")
    ratios: dict[str, list[float]] = {adjoint: [] for adjoint in adjoints}
    for _ in range(repeats):
        reference = timed("unrolled")
        for adjoint in adjoints:
            ratios[adjoint].append(timed(adjoint) / max(reference, 1e-9))
    return {
        adjoint: AdjointComparison(
            max(float((a - b).norm() / b.norm()) for a, b in zip(gradients(adjoint), exact, strict=True)),
            statistics.median(ratios[adjoint]),
            saved_bytes(solve, adjoint).total,
        )
        for adjoint in adjoints
    }
