"""Laws over outcomes with rewards, in logarithms and double precision: what best of n and its rivals compute with."""

from __future__ import annotations

import math

import torch

from pullback.core.checks import check_broadcast, check_floating
from pullback.core.shapes import Tensor
from pullback.core.transforms import can_look

__all__ = [
    "IMPOSSIBLE",
    "divergence",
    "finished",
    "log_any",
    "log_complement",
    "read_law",
    "refuse_nan",
    "reward_order",
    "tolerance",
    "winners_law",
]

IMPOSSIBLE = -1e250
"""The logarithm of a probability that is 0, with a gradient that is not NaN."""


def read_law(log_prob: Tensor, reward: Tensor, name: str = "log_prob") -> tuple[Tensor, Tensor]:
    """Check a law and the rewards of its outcomes; both in double precision, the law of their common shape.

    The law is normalised anew, so that the two ways to write a probability, as itself and as what is left to 1, are
    one function of ``log_prob``; what is impossible gets a finite logarithm.
    """
    check_floating(name, log_prob)
    check_floating("reward", reward)
    shape = check_broadcast(**{name: log_prob.shape, "reward": reward.shape})
    if not log_prob.ndim or not shape[-1]:
        raise ValueError(f"{name} must have at least one outcome, got shape {tuple(log_prob.shape)}")
    if log_prob.shape[-1] != shape[-1]:
        raise ValueError(f"{name} must have {shape[-1]} outcomes as reward has, got {log_prob.shape[-1]}")
    refuse_nan(name, log_prob)
    refuse_nan("reward", reward)
    wide = log_prob.double()
    if can_look(log_prob):
        total = wide.detach().logsumexp(-1)
        if bool((total.abs() > tolerance(log_prob)).any()):
            worst = float(total.flatten()[total.abs().argmax()])
            raise ValueError(
                f"{name} must be normalised, got probabilities that sum to {math.exp(min(worst, 700)):.4g}"
            )
    law = torch.log_softmax(torch.where(wide == -torch.inf, IMPOSSIBLE, wide), -1)
    return law.expand(shape), reward.double().expand(*reward.shape[:-1], shape[-1])


def finished(law: Tensor, log_p: Tensor) -> Tensor:
    """Return -inf, with gradient 0, where the outcome is impossible."""
    possible = (log_p > IMPOSSIBLE / 2) & (law > IMPOSSIBLE / 2)
    return torch.where(possible, law, -torch.inf)


def reward_order(reward: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of ascending rewards, stable, and for each place the last place of equal reward."""
    order = reward.argsort(dim=-1, stable=True)
    ordered = reward.gather(-1, order)
    ends = torch.cat([ordered[..., 1:] != ordered[..., :-1], torch.ones_like(ordered[..., :1], dtype=torch.bool)], -1)
    places = torch.arange(reward.shape[-1], device=reward.device).expand_as(order)
    last = torch.where(ends, places, reward.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return order.expand_as(like), last.expand_as(like)


def winners_law(log_p: Tensor, reward: Tensor, n: int, ties: str) -> Tensor:
    """Return the law of the best of n draws; ties go to the later outcome (``"order"``) or are shared (``"split"``)."""
    if n == 1:
        return log_p
    order, last = reward_order(reward, log_p)
    group = own = log_p.gather(-1, order)
    up_to = own.logcumsumexp(-1)
    if ties == "split":
        up_to = up_to.gather(-1, last)
        lowest = torch.full_like(own, -torch.inf).detach()
        likeliest = lowest.scatter_reduce(-1, last, own.detach(), "amax").gather(-1, last)
        share = (own - likeliest).exp()
        group = likeliest + torch.zeros_like(share).scatter_add(-1, last, share).gather(-1, last).log()
    law = n * up_to + log_any((group - up_to).clamp(max=0), n) + own - group
    return torch.zeros_like(law).scatter(-1, order, law)


def log_any(log_p: Tensor, n: int) -> Tensor:
    """Return ``log(1 - (1 - p)^n)``: of n draws at least one hits."""
    if n == 1:
        return log_p
    rare = log_p < -34 - math.log(n)  # there it is log n + log p to the last digit
    return torch.where(rare, math.log(n) + log_p, log_complement(n * log_complement(torch.where(rare, -1.0, log_p))))


def log_complement(log_p: Tensor) -> Tensor:
    """Return ``log(1 - p)``; of p = 1 a number so low that its powers are 0."""
    log_p = log_p.clamp(max=-1e-300)
    likely = log_p > -math.log(2)
    near = (-torch.where(likely, log_p, -1.0).expm1()).log()
    return torch.where(likely, near, torch.log1p(-torch.where(likely, -1.0, log_p).exp()))


def divergence(law: Tensor, reference: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of two laws in logarithms, in nats."""
    return (law.exp() * (law - reference)).sum(-1)


def refuse_nan(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` for a NaN, where values may be looked at."""
    if can_look(x) and bool(x.isnan().any()):
        raise ValueError(f"{name} must not be NaN")


def tolerance(log_prob: Tensor) -> float:
    """Return by how much the logarithm of a total may differ from 0 in this precision."""
    return 0.1 if torch.finfo(log_prob.dtype).bits < 32 else 1e-3
