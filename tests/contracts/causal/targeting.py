"""Contracts of ``pullback.causal``: beliefs about arcs, categorical mechanisms, the choice of targets."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import causal
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module


def _beliefs(generator: torch.Generator) -> list[Call]:
    masks = (torch.rand(3, 2, 2, generator=generator) < 0.5).double()
    likelihoods = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    return [Call((likelihoods, masks, torch.rand(2, 2, generator=generator, dtype=torch.float64)))]


def _arc_by_arc(likelihoods: Tensor, masks: Tensor, beliefs: Tensor) -> Tensor:
    """Every arc by itself: the belief less the share of likelihood that the masks with the arc have."""
    rows = []
    for i in range(beliefs.shape[0]):
        row = []
        for j in range(beliefs.shape[0]):
            each = (likelihoods[:, j] - likelihoods[:, j].max()).exp()
            row.append(beliefs[i, j] - (each * masks[:, i, j]).sum() / each.sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _samples(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 3, 4, 3, generator=generator, dtype=torch.float64), 1))]


def _groups(samples: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over graphs, draws and the other nodes, one after the other."""
    results = []
    for x in samples:
        x = x[..., [j for j in range(x.shape[-1]) if j != target]]
        means = [graph.mean(0) for graph in x]
        centre = sum(means) / len(means)
        between = sum((mean - centre).square().sum() for mean in means)
        within = sum((draw - mean).square().sum() for graph, mean in zip(x, means, strict=True) for draw in graph)
        results.append(torch.stack([between / within, between, within]))
    return tuple(torch.stack(results).unbind(-1))


def _softmax_networks(module: causal.CategoricalMechanisms, adjacency: Tensor) -> Tensor:
    return module(torch.tensor([[0, 1, 1], [1, 1, 0]], device=adjacency.device), adjacency)


CONTRACTS = [
    Contract(
        "causal.belief_gradient",
        causal.belief_gradient,
        _beliefs,
        reference=_arc_by_arc,
        bad=[
            Bad((torch.zeros(1, 2), torch.zeros(1, 2, 2), torch.zeros(2, 2)), {}, ValueError, "number of masks"),
            Bad((torch.zeros(3, 2), torch.zeros(3, 3, 3), torch.zeros(2, 2)), {}, ValueError, "masks must have shape"),
            Bad((torch.zeros(3, 3), torch.zeros(3, 2, 2), torch.zeros(2, 2)), {}, ValueError, "log_likelihoods must"),
        ],
        batched=False,
        why="the masks lead, before the batch",
    ),
    Contract(
        "causal.intervention_discrepancy",
        causal.intervention_discrepancy,
        _samples,
        reference=_groups,
        outputs=tuple,
        bad=[
            Bad((torch.zeros(1, 4, 3), 0), {}, ValueError, "number of graphs"),
            Bad((torch.zeros(2, 1, 3), 0), {}, ValueError, "number of draws"),
            Bad((torch.zeros(2, 4, 3), 3), {}, ValueError, r"target must be in 0\.\.2"),
            Bad((torch.zeros(4, 3), 0), {}, ValueError, r"samples must have shape \(\.\.\., graphs, draws, d\)"),
        ],
        large=(),
        why="squares of large samples overflow",
    ),
    Module(
        "causal.GraphBelief",
        lambda belief, scale: (belief() * scale, belief.penalty() * scale.sum()),
        lambda g: [Call((torch.rand(3, 3, generator=g, dtype=torch.float64),))],
        build=lambda g: causal.GraphBelief(3),
        batched=False,
        large=(),
        why="it has no input: its penalties and draws are in causal/test_targeting.py",
    ),
    Module(
        "causal.CategoricalMechanisms",
        _softmax_networks,
        lambda g: [Call((torch.rand(3, 3, generator=g, dtype=torch.float64),))],
        build=lambda g: causal.CategoricalMechanisms(3, 2, (4,), generator=g),
        batched=False,
        compile=False,
        large=(),
        half_tolerance=3e-2,
        why="classes are looked at, and gates are in [0, 1]; its law is in causal/test_targeting.py",
    ),
    Exempt("causal.sample_dags_from_beliefs", "draws", "causal/test_targeting.py"),
    Exempt("causal.next_target", "draws graphs and samples", "causal/test_targeting.py"),
]
