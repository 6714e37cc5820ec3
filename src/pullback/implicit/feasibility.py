"""What iterates of a constrained problem are worth: violations of the last, best and randomised one, and the gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pullback.core.shapes import Float, Tensor
from pullback.implicit.constrained import DualState

__all__ = ["FeasibilityReport", "feasibility_report"]


class FeasibilityReport(NamedTuple):
    """Violations of iterates, each the largest of any constraint and 0 where all hold, and values; no dimensions.

    Attributes:
        last: violation of the last iterate.
        best: of the iterate that violates least.
        worst: of the one that violates most.
        randomized: of the randomised iterate, one of all drawn anew for each prediction: of the mean slacks.
        objective: mean objective, that of the randomised iterate.
        dual: largest Lagrangian; where the iterates minimise theirs, a lower bound of the constrained minimum.
        gap: ``objective - dual``.
    """

    last: Float[Tensor, ""]
    best: Float[Tensor, ""]
    worst: Float[Tensor, ""]
    randomized: Float[Tensor, ""]
    objective: Float[Tensor, ""]
    dual: Float[Tensor, ""]
    gap: Float[Tensor, ""]


def feasibility_report(states: Sequence[DualState]) -> FeasibilityReport:
    r"""Return how far iterates of a constrained problem are from feasible, and from optimal.

    Of iterate ``k`` the violation is ``max(0, max_i slack_ki)``; the randomised iterate has the slacks
    ``mean_k slack_ki`` and the objective ``mean_k objective_k``; the dual value is
    ``max_k (objective_k + sum_i multiplier_ki slack_ki)``.

    Args:
        states: the iterates that are to be judged, at least one, such as the last quarter of those that
            :class:`DualAscent` or :class:`AugmentedLagrangian` kept: ``list(method.states)[-25:]``.

    Returns:
        The seven numbers.

    Raises:
        TypeError: a state is none.
        ValueError: there is no state.

    Example:
        >>> from pullback.implicit import DualState
        >>> price = torch.tensor([2.0])  # two iterates on either side of the bound, equally far
        >>> states = [
        ...     DualState(k, torch.tensor(loss), torch.tensor([s]), price, torch.tensor(2.0), torch.tensor(loss - 2))
        ...     for k, (loss, s) in enumerate([(1.0, 0.5), (3.0, -0.5)])
        ... ]
        >>> found = feasibility_report(states)
        >>> found.last.item(), found.worst.item(), found.randomized.item(), found.gap.item()
        (0.0, 0.5, 0.0, 0.0)

    References:
        Elenter, Chamon, Ribeiro (2024), Near-optimal solutions of constrained learning problems, section 2; Cotter,
        Jiang, Sridharan (2019), Two-player games for efficient non-convex constrained optimization, theorem 1.
    """
    if not len(states):
        raise ValueError("states must hold at least one state, got none")
    for state in states:
        if not isinstance(state, DualState):
            raise TypeError(f"states must be of DualState, got {type(state).__name__}")
    objective, slacks, dual = (
        torch.stack([getattr(s, name) for s in states]) for name in ("objective", "slacks", "dual")
    )
    violation = slacks.amax(1).clamp(min=0)
    mean = objective.mean()
    randomized = slacks.mean(0).max().clamp(min=0)
    return FeasibilityReport(
        violation[-1], violation.min(), violation.max(), randomized, mean, dual.max(), mean - dual.max()
    )
