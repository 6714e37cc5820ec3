"""Contracts of adapters in a frozen teacher, and of the losses that train them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module
from tests.contracts.dynamics.models import seeded


def _aligned(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    words = {"weights": {"a": 2.0, "b": 0.5}, "mask": torch.tensor([True, False, True], device=x.device)}
    return dynamics.feature_alignment_loss({"a": x, "b": y}, {"a": y, "b": z}, **words)


def _aligned_by_hand(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    def huber(d: Tensor) -> Tensor:
        return torch.where(d.abs() < 1, 0.5 * d * d, d.abs() - 0.5)[[0, 2]].mean()

    return 2 * huber(x - y) + 0.5 * huber(y - z)


def _positive(*given: Tensor, **words: Tensor) -> Tensor:
    return dynamics.action_kl(*(0.2 + x.square() for x in given), **words)


def _by_quadrature(*given: Tensor, **_: Tensor) -> Tensor:
    p, q = (torch.distributions.Beta(0.2 + given[i].square(), 0.2 + given[i + 1].square()) for i in (0, 2))
    return torch.distributions.kl_divergence(p, q).mean(-1)


class _Adapted(nn.Module):
    """An adapter whose last layer is not 0, so that all of it counts."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = dynamics.Adapter(4, 2, kind=kind)  # type: ignore[arg-type]
        nn.init.normal_(self.inner.last.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return self.inner(x, side)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


CONTRACTS = [
    Module(
        "dynamics.Adapter",
        lambda adapter, x, side: adapter(x, side),
        lambda g: [Call((normal(g, 2, 4), normal(g, 2, 2)))],
        build=seeded(lambda: _Adapted("mlp")),
        large_limit=1e8,
        why="sums of the largest numbers of either sign leave the range",
    ),
    Exempt("dynamics.FrozenBackbone", "holds given modules", "dynamics/test_adapters.py"),
    Contract(
        "dynamics.feature_alignment_loss",
        _aligned,
        lambda g: [Call((normal(g, 3, 4), normal(g, 3, 4), normal(g, 3, 4)))],
        reference=_aligned_by_hand,
        large_limit=1e4,
        batched=False,
        vmap=False,
        why="a mean over the batch; weights of more than 1 leave the range",
    ),
    Contract(
        "dynamics.action_kl",
        _positive,
        lambda g: [Call(tuple(normal(g, 3, 2) for _ in range(4)))],
        reference=_by_quadrature,
        large_limit=1e3,
        half=False,
        bad=[
            Bad((torch.ones(()), *[torch.ones(1)] * 3), {}, ValueError, "alpha_p must have shape"),
        ],
        why="a small difference of large numbers, rounded away in half precision; squares make the argument here",
    ),
]
