"""Contracts of worlds of blocks and of transitions between their slots, each worked out slot by slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Exempt, Module
from tests.contracts.dynamics.models import RANGE, seeded

ORDER = torch.tensor([2, 0, 1])


def _scene(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(1, 3, n, generator=g, dtype=torch.float64) for n in (3, 2)))]


def _graph(g: torch.Generator) -> nn.Module:
    return seeded(lambda: dynamics.GraphTransition(3, 2, width=4))(g)


def _aligned(g: torch.Generator) -> nn.Module:
    return seeded(lambda: dynamics.AlignedTransition(3, 3, 2, width=4))(g)


def _in_order(model: Any, slots: Tensor, actions: Tensor) -> Tensor:
    batch = slots.shape[:-1]
    return model(slots, actions.expand(*batch, 2), ORDER.to(slots.device).expand(batch))


def _graph_by_hand(slots: Tensor, actions: Tensor) -> Tensor:
    model: Any = _graph(torch.Generator().manual_seed(0)).double()
    x = torch.cat([slots, actions], -1)[0]
    rows = []
    for i in range(3):
        total = sum(model.edge(torch.cat([x[i], x[j]])) for j in range(3) if j != i)
        rows.append(slots[0, i] + model.node(torch.cat([x[i], total])))
    return torch.stack(rows)[None]


def _aligned_by_hand(slots: Tensor, actions: Tensor) -> Tensor:
    model: Any = _aligned(torch.Generator().manual_seed(0)).double()
    x = torch.cat([slots, actions], -1)[0]
    change = model.net(torch.cat([x[2], x[0], x[1]])).view(3, 3)
    return (slots[0] + torch.stack([change[1], change[2], change[0]]))[None]


CONTRACTS = [
    Exempt("dynamics.BlockWorld", "integers in, integers and pictures of them out", "dynamics/test_block_world.py"),
    Module(
        "dynamics.GraphTransition",
        lambda model, slots, actions: model(slots, actions.expand(*slots.shape[:-1], 2)),
        _scene,
        reference=_graph_by_hand,
        build=_graph,
        large_limit=100.0,
        why=RANGE,
        bad=[Bad((torch.zeros(2, 4), torch.zeros(2, 2)), {}, ValueError, "slots must have shape")],
    ),
    Module(
        "dynamics.AlignedTransition",
        _in_order,
        _scene,
        reference=_aligned_by_hand,
        build=_aligned,
        large_limit=100.0,
        why=RANGE,
        bad=[Bad((torch.zeros(3, 4), torch.zeros(3, 2)), {}, ValueError, "slots must have shape")],
    ),
]
