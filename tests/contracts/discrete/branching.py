"""Contracts of branching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback import discrete
from tests.contracts.contract import Bad, Call, Exempt, Module


def _layer(generator: torch.Generator) -> nn.Module:
    layer = discrete.BranchingLayer(3, 2)
    nn.init.uniform_(layer.logits, -1, 1, generator=generator)
    return layer.double()


def _sampled(method: str) -> Any:
    def block(layer: Any, outputs: Tensor, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return layer(outputs, method=method, generator=generator, **options)

    return block


CONTRACTS = [
    Module(
        "discrete.BranchingLayer[gumbel]",
        _sampled("gumbel"),
        lambda g: [Call((torch.randn(3, 4, generator=g, dtype=torch.float64),))],
        build=_layer,
        batched=False,
        vmap=False,
        half=False,
        large_limit=1e4,
        bad=[
            Bad((torch.ones(3, 4),), {"temperature": -1.0}, ValueError, "temperature must be"),
            Bad((torch.ones(2, 4),), {}, ValueError, r"outputs must have shape \(3, \.\.\.\), got \(2, 4\)"),
            Bad((torch.tensor(1.0),), {}, ValueError, r"outputs must have shape \(3, \.\.\.\), got \(\)"),
        ],
        why="the first dimension is that of the parents; what is drawn in other dtypes is other",
    ),
    Exempt(
        "discrete.BranchingNetwork", "its parameters are nodes of which a tree uses some", "discrete/test_branching.py"
    ),
    Exempt("discrete.grouping_score", "gives Python numbers", "discrete/test_branching.py"),
    Exempt("discrete.search_branching", "calls functions of the user", "discrete/test_branching.py"),
]
