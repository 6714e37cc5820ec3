"""Lagrange multipliers of inequality constraints, moved by projected ascent."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pullback.core.checks import check_integer, check_positive
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_number

__all__ = ["InfeasibleError", "Multipliers"]


class InfeasibleError(ConvergenceError):
    """A multiplier grew beyond its limit: the constraint is violated however much its violation costs.

    ``result`` holds the multipliers, of :class:`DualAscent` and :class:`AugmentedLagrangian` all states that are kept.

    Example:
        >>> issubclass(InfeasibleError, ConvergenceError)
        True
    """


class Multipliers(nn.Module):
    r"""One multiplier ``lambda_i >= 0`` for each constraint ``slack_i <= 0``, for projected gradient ascent.

    Called with slacks it returns the term ``sum_i lambda_i slack_i`` of a Lagrangian, whose gradient reaches what the
    slacks depend on and not the multipliers; :meth:`ascend` moves these to ``max(0, lambda + lr slack)``.

    Args:
        count: of constraints, >= 1.
        lr: step size of the ascent, >= 0, in units of multiplier per slack.
        initial: value of every multiplier before the first step, >= 0.
        limit: largest multiplier that is accepted, > 0.

    Attributes:
        values: ``[count]`` the multipliers, a buffer.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of range.

    Example:
        >>> price = Multipliers(2, lr=0.5)
        >>> price.ascend(torch.tensor([1.0, -3.0]))  # the first constraint is violated, the second is not
        >>> price.values.tolist(), price(torch.tensor([4.0, 9.0])).item()
        ([0.5, 0.0], 2.0)

    References:
        Arrow, Hurwicz, Uzawa (1958), Studies in linear and non-linear programming, chapter 5.
    """

    values: Float[Tensor, "count"]

    def __init__(self, count: int, *, lr: float, initial: float = 0.0, limit: float = math.inf) -> None:
        super().__init__()
        check_integer("count", count, 1)
        check_number("lr", lr, zero=True)
        check_number("initial", initial, zero=True)
        if limit != math.inf:
            check_positive("limit", limit)
        self.lr, self.limit = lr, limit
        self.register_buffer("values", torch.full((count,), float(initial)))

    def forward(self, slacks: Float[Tensor, "count"]) -> Float[Tensor, ""]:
        """Return ``sum_i lambda_i slack_i``.

        Raises:
            ValueError: there are more or fewer slacks than multipliers.
        """
        return (self.values.detach() * self._checked(slacks)).sum()

    @torch.no_grad()
    def ascend(self, slacks: Float[Tensor, "count"]) -> None:
        """Move every multiplier by ``lr`` times its slack, and not below zero.

        Raises:
            ValueError: there are more or fewer slacks than multipliers.
            InfeasibleError: a multiplier is then larger than ``limit``, infinite or NaN.
        """
        slacks = self._checked(slacks).to(self.values)
        self.values.add_(slacks, alpha=self.lr).clamp_(min=0)
        check_limit(self.values, self.limit, slacks, self.values.clone())

    def extra_repr(self) -> str:
        """What the module prints of itself."""
        return f"{len(self.values)}, lr={self.lr:g}, limit={self.limit:g}"

    def _checked(self, slacks: Tensor) -> Tensor:
        if not isinstance(slacks, Tensor) or slacks.shape != self.values.shape:
            got = tuple(slacks.shape) if isinstance(slacks, Tensor) else type(slacks).__name__
            raise ValueError(f"slacks must have shape {tuple(self.values.shape)}, one for each multiplier, got {got}")
        return slacks


def check_limit(multipliers: Tensor, limit: float, slacks: Tensor, result: Any) -> None:
    """Raise ``InfeasibleError``, which carries ``result``, unless every multiplier is finite and within ``limit``."""
    beyond = ~(multipliers <= limit) | multipliers.isinf()
    if bool(beyond.any()):
        worst = int(torch.where(beyond, multipliers.nan_to_num(nan=math.inf), -1).argmax())
        raise InfeasibleError(
            f"the multiplier of constraint {worst} grew to {float(multipliers[worst]):.3g}, beyond the limit of "
            f"{limit:g}, and its slack is {float(slacks[worst]):.3g}: a bound that cannot be met, or steps that are "
            "too large",
            result,
        )
