"""Solves with their gradients against torchdiffeq: its plain autograd, and its adjoint where memory is bounded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pullback.dynamics import odeint
from pullback.lab.bench import Case


class Problem(NamedTuple):
    field: nn.Module
    y0: Tensor
    t: Tensor


class Field(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def setup(batch: int, dim: int, hidden: int, times: int) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field, y0 = Field(dim, hidden), torch.randn(batch, dim)
    return Problem(field, y0.requires_grad_(), torch.linspace(0, 1, times))


def ours(problem: Problem, **options: object) -> None:
    odeint(problem.field, problem.y0, problem.t, rtol=1e-5, atol=1e-7, **options).y.square().sum().backward()


def torchdiffeq(problem: Problem, *, adjoint: bool) -> None:
    import torchdiffeq as peer

    solve: Callable[..., Tensor] = peer.odeint_adjoint if adjoint else peer.odeint
    solve(problem.field, problem.y0, problem.t, rtol=1e-5, atol=1e-7).square().sum().backward()


BOUNDED = {"torchdiffeq odeint_adjoint": partial(torchdiffeq, adjoint=True)}
PLAIN = {"torchdiffeq odeint": partial(torchdiffeq, adjoint=False)}

# the same memory, the same step control (one step for all samples), then what bounds the memory or gives each its step
WAYS = (
    ("unrolled, shared step", {"adjoint": "unrolled", "shared_step": True}, PLAIN),
    ("unrolled", {"adjoint": "unrolled"}, PLAIN),
    ("checkpoint", {"adjoint": "checkpoint"}, {**BOUNDED, **PLAIN}),
    ("backsolve", {"adjoint": "backsolve"}, BOUNDED),
)

CASES = [
    Case(
        f"odeint forward+backward, {name}, {batch} x {dim}, {hidden} tanh, {times} times",
        partial(setup, batch, dim, hidden, times),
        partial(ours, **options),
        peers,
    )
    for batch, dim, hidden, times in ((1, 4, 20, 2), (128, 16, 64, 2), (128, 16, 64, 20))
    for name, options, peers in WAYS
]
