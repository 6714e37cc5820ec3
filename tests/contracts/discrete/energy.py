"""Contracts of energies of structured outputs and of what explains them."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module


def _pair(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(4, 3, generator=g, dtype=torch.float64), torch.rand(4, 2, generator=g).double()))]


def _energies(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(6, generator=g, dtype=torch.float64) for _ in range(2)))]


def _energy(g: torch.Generator) -> discrete.StructuredEnergy:
    energy = discrete.StructuredEnergy(3, 2, 4, generator=g)
    with torch.no_grad():
        energy.pairs.fill_(0.7)
    return energy


def _by_hand(x: Tensor, y: Tensor) -> Tensor:
    local = _energy(torch.Generator().manual_seed(0)).double().local(x).detach()
    first, second = (2 * y - 1).unbind(-1)
    return -first * local[..., 0] - second * local[..., 1] - 0.7 * first * second


CONTRACTS = [
    Module(
        "discrete.StructuredEnergy",
        lambda module, x, y: module(x, y),
        _pair,
        build=_energy,
        reference=_by_hand,
        large=(),
        why="sizes are those of its network",
        bad=[
            Bad((torch.ones(2, 4), torch.ones(2, 2)), {}, ValueError, "x must have 3 features"),
            Bad((torch.ones(2, 3), torch.ones(2, 3)), {}, ValueError, "y must have 2 outputs"),
            Bad((torch.ones(2, 3), torch.ones(2, 2).long()), {}, TypeError, "y must be a floating tensor"),
        ],
    ),
    Contract(
        "discrete.margin_energy_loss",
        lambda right, wrong, margin=1.0: discrete.margin_energy_loss(right, wrong, margin=margin),
        _energies,
        reference=lambda right, wrong: torch.stack(
            [(1 + a - b).clamp(min=0) for a, b in zip(right, wrong, strict=True)]
        ).mean(),
        batched=False,
        large=(),
        why="a mean over all entries, which overflows",
        edges=Edges(
            lambda x: torch.relu(1 + x).mean(),
            args=lambda x: (x, torch.zeros_like(x)),
        ),
        bad=[
            Bad((torch.ones(2), torch.ones(3)), {}, ValueError, "right and wrong must have one shape"),
            Bad((torch.ones(2), torch.ones(2)), {"margin": 0.0}, ValueError, "margin must be > 0"),
            Bad((torch.ones(2).long(), torch.ones(2)), {}, TypeError, "right must be a floating tensor"),
        ],
    ),
    Exempt(
        "discrete.mask_recovery",
        "takes masks alone: there are no ties, infinities or halves",
        "discrete/test_energy.py",
    ),
    Exempt(
        "discrete.EnergyInterpreter",
        "it is stepped by the caller and asks a black box; recovery and resuming are tested",
        "discrete/test_energy.py",
    ),
]
