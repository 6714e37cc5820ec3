"""Markov chains that fit in a table, with their exact values and laws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = ["MarkovChain", "check_discount", "check_laws", "metropolis_walk"]


@dataclass(frozen=True)
class MarkovChain:
    r"""A chain of finitely many states, ``P[i, j]`` the probability of going from i to j, and a discount.

    Args:
        transition: P, ``[*batch, states, states]``, rows of numbers >= 0 that sum to 1.
        discount: gamma in [0, 1], a number or a tensor without dimensions.

    Raises:
        TypeError: ``transition`` is no floating tensor, ``discount`` no number.
        ValueError: ``transition`` is not square, a row is no law, ``discount`` is out of range.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), 0.5)
        >>> [round(p, 4) for p in chain.stationary().tolist()]
        [0.3333, 0.6667]
        >>> chain.values(torch.ones(2, 1)).flatten().tolist()  # 1 + 1/2 + 1/4 + ...
        [2.0, 2.0]

    References:
        Puterman (1994), Markov decision processes, chapter 5 and appendix A.
    """

    transition: Float[Tensor, "*batch states states"]
    discount: Scalar = 0.9

    def __post_init__(self) -> None:
        p = check_floating("transition", self.transition)
        if p.ndim < 2 or p.shape[-1] != p.shape[-2] or not p.shape[-1]:
            raise ValueError(f"transition must have shape (..., states, states), got {tuple(p.shape)}")
        check_laws("transition", p)
        check_discount(self.discount)

    def values(self, rewards: Float[Tensor, "*#batch states h"]) -> Float[Tensor, "*batch states h"]:
        r"""Return the expected discounted sums of rewards: the solution of :math:`V = R + \gamma P V`.

        With a discount of 1 the states that are returned to for ever have the value 0.

        Args:
            rewards: R, ``[*batch, states, h]``, on leaving a state, of h tasks.

        Raises:
            ValueError: ``rewards`` has another shape; the discount is 1 and a state that is returned to for ever has
                a reward.
        """
        p = self.transition
        check_same_dtype(transition=p, rewards=check_floating("rewards", rewards))
        if rewards.ndim < 2 or rewards.shape[-2] != p.shape[-1]:
            raise ValueError(f"rewards must have shape (..., {p.shape[-1]}, h), got {tuple(rewards.shape)}")
        check_broadcast(transition=p.shape[:-2], rewards=rewards.shape[:-2])
        if not _is_one(self.discount):
            return solve(torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - self.discount * p, rewards)
        for_ever = self._recurrent()
        if can_look(rewards) and bool((for_ever[..., None] & (rewards != 0)).any()):
            raise ValueError("rewards must be 0 in states that are returned to for ever where the discount is 1")
        passed = (~for_ever)[..., None]
        matrix = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p * passed * passed.mT
        return solve(matrix, rewards * passed)

    def stationary(self) -> Float[Tensor, "*batch states"]:
        """Return the law d with ``d P = d``.

        Raises:
            ValueError: there are several: the chain has states that do not lead to each other for ever.
        """
        p = self.transition
        if can_look(p):
            reach, for_ever = _reach(p.detach()), self._recurrent()
            apart = for_ever[..., :, None] & for_ever[..., None, :] & ~reach
            if bool(apart.any()):
                *_, i, j = apart.nonzero()[0].tolist()
                raise ValueError(f"the chain has several stationary laws: state {i} never leads to state {j}")
        size = p.shape[-1]
        matrix = torch.eye(size, dtype=p.dtype, device=p.device) - p.mT + 1 / size
        law = solve(matrix, p.new_full((size, 1), 1 / size))[..., 0]
        return law + (law.clamp_min(0) - law).detach()  # what rounding leaves below 0 still has its gradient

    def is_reversible(self, tolerance: float = 1e-6) -> Bool[Tensor, "*batch"]:
        """Return whether ``d_i P_ij = d_j P_ji``, up to a part ``tolerance`` of the largest flow.

        Raises:
            ValueError: the stationary law is not unique.
        """
        check_positive("tolerance", tolerance)
        wide = self.transition.detach().double()
        flow = MarkovChain(wide, 0.0).stationary()[..., :, None] * wide
        return (flow - flow.mT).abs().amax((-1, -2)) <= tolerance * flow.abs().amax((-1, -2))

    def _recurrent(self) -> Tensor:
        """``[*batch, states]`` whether a state is returned to for ever: all that it leads to leads back."""
        reach = _reach(self.transition.detach())
        return (~reach | reach.mT).all(-1)


def metropolis_walk(weights: Float[Tensor, "*batch n n"], discount: Scalar = 0.9) -> MarkovChain:
    r"""Return a walk along the edges of a graph that visits all its nodes equally often.

    :math:`P_{ij}=W_{ij}/\max(\sum_kW_{ik},\sum_kW_{jk})` for i other than j, and the rest is to stay: symmetric, so
    reversible with a uniform law.

    Args:
        weights: W, ``[*batch, n, n]`` >= 0 and symmetric; what stands on the diagonal is not used.
        discount: of the chain.

    Raises:
        TypeError: ``weights`` is no floating tensor.
        ValueError: ``weights`` is not square, not symmetric, negative somewhere, or a discount is out of range.

    Example:
        >>> star = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> metropolis_walk(star).transition.tolist()
        [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]

    References:
        Boyd, Diaconis, Xiao (2004), Fastest mixing Markov chain on a graph, section 1.2.
    """
    w = check_floating("weights", weights)
    if w.ndim < 2 or w.shape[-1] != w.shape[-2] or not w.shape[-1]:
        raise ValueError(f"weights must have shape (..., n, n), got {tuple(w.shape)}")
    if can_look(w):
        check_positive("weights", w.detach(), zero=True)
        if not bool(((w - w.mT).detach().abs() <= 1e-5 * w.detach().abs()).all()):
            raise ValueError("weights must be symmetric")
    eye = torch.eye(w.shape[-1], dtype=torch.bool, device=w.device)
    moves = w.masked_fill(eye, 0.0)
    degree = moves.sum(-1)
    most = torch.maximum(degree[..., :, None], degree[..., None, :])
    moves = moves / torch.where(most > 0, most, 1.0)  # a node without edges stays where it is
    return MarkovChain(moves + torch.diag_embed(1 - moves.sum(-1)).clamp_min(0.0), discount)


def check_laws(name: str, rows: Tensor) -> None:
    """Raise ``ValueError`` unless the last dimension holds numbers >= 0 that sum to 1."""
    if not can_look(rows):
        return
    slack = 8 * rows.shape[-1] ** 0.5 * torch.finfo(rows.dtype).eps
    plain = rows.detach()
    if not bool((plain >= 0).all()):
        raise ValueError(f"{name} must be >= 0 everywhere, got {plain.min().item()}")
    off = (plain.sum(-1, dtype=torch.promote_types(plain.dtype, torch.float32)) - 1).abs()
    if not bool((off <= slack + 1e-6).all()):
        raise ValueError(f"{name} must have rows that sum to 1, got one that is off by {off.max().item():.3g}")


def check_discount(discount: Any) -> None:
    """Raise unless the discount is a number, or a tensor without dimensions, in [0, 1]."""
    number = check_scalar("discount", discount, zero=True)
    if number is not None and number > 1:
        raise ValueError(f"discount must be in [0, 1], got {number}")


def _is_one(discount: Scalar) -> bool:
    return check_scalar("discount", discount, zero=True) == 1


def _reach(transition: Tensor) -> Tensor:
    """``[*batch, states, states]`` whether a state leads to another in any number of steps, 0 included."""
    size = transition.shape[-1]
    reach = (transition > 0) | torch.eye(size, dtype=torch.bool, device=transition.device)
    for _ in range(math.ceil(math.log2(max(size, 2)))):
        reach = reach.float() @ reach.float() > 0
    return reach
