"""Contracts of mechanisms that a graph gates: against one small network a node, fed with its parents alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback import causal
from tests.contracts.contract import Bad, Call, Module


def _graph(g: torch.Generator, *shape: int) -> Tensor:
    """Soft gates, the diagonal too."""
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def _one_by_one(module: causal.MaskedMechanisms, x: Tensor, adjacency: Tensor) -> Tensor:
    """Every network by itself on gated copies of the data, the node itself left out."""
    if adjacency.ndim > 2:
        return torch.stack([_one_by_one(module, x, one) for one in adjacency])
    columns = []
    for j in range(module.nodes):
        gates = adjacency[:, j].clone()
        gates[j] = 0
        z = x * (gates if module.inputs == 1 else gates[:, None])
        z = z.flatten(1)
        for k, (weight, bias) in enumerate(zip(module.weights, module.biases, strict=True)):
            z = (torch.relu(z) if k else z) @ weight[j] + bias[j]
        columns.append(z)
    result = torch.stack(columns, 1)
    return result.squeeze(-1) if module.output == 1 else result


def _use(module: nn.Module, x: Tensor, adjacency: Tensor) -> Any:
    return module(x, adjacency)


def _reference(inputs: int, output: int, hidden: tuple[int, ...]) -> Any:
    def reference(x: Tensor, adjacency: Tensor) -> Tensor:
        module = _build(inputs, output, hidden)(torch.Generator().manual_seed(0)).double()
        return _one_by_one(module, x, adjacency).detach()

    return reference


def _build(inputs: int, output: int, hidden: tuple[int, ...]) -> Any:
    return lambda g: causal.MaskedMechanisms(3, hidden, inputs=inputs, output=output, generator=g)


CONTRACTS = [
    Module(
        f"causal.MaskedMechanisms[{name}]",
        _use,
        lambda g, inputs=inputs: [
            Call((torch.randn(2, 3, *([inputs] if inputs > 1 else []), generator=g).double(), _graph(g, *lead, 3, 3)))
            for lead in ((), (2,))
        ],
        build=_build(inputs, output, hidden),
        reference=_reference(inputs, output, hidden),
        bad=[
            Bad((torch.zeros(2, 4), torch.zeros(3, 3)), {}, ValueError, r"x must have shape \(..., n, 3\), got \(2, 4"),
            Bad((torch.zeros(2, 3), torch.zeros(3)), {}, ValueError, r"adjacency must have shape \(..., 3, 3\)"),
            Bad((torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 3)), {}, TypeError, "x must be a floating"),
        ]
        if inputs == 1
        else (),
        batched=False,
        large_limit=1e30,
        why="data sets at once need parameters of their own: tests/causal/test_mechanisms.py; sums overflow",
    )
    for name, inputs, output, hidden in (("one number", 1, 1, (4,)), ("classes", 2, 2, (3, 3)), ("linear", 1, 1, ()))
]
