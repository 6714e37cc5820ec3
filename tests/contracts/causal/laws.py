"""Contracts of laws over graphs."""

from __future__ import annotations

import torch
from torch.distributions import Bernoulli, kl_divergence

from pullback import causal
from tests.contracts.contract import Bad, Call, Contract, Exempt

CONTRACTS = [
    Contract(
        "causal.bernoulli_kl",
        causal.bernoulli_kl,
        lambda g: [Call((3 * torch.randn(2, 4, generator=g, dtype=torch.float64), prior)) for prior in (0.01, 0.7)],
        reference=lambda x, p: kl_divergence(Bernoulli(logits=x), Bernoulli(torch.tensor(p, dtype=torch.float64))),
        bad=[
            Bad((torch.zeros(2), 1.0), {}, ValueError, r"prior must be inside \(0, 1\), got 1"),
            Bad((torch.zeros(2, dtype=torch.int64), 0.5), {}, TypeError, "logits must be a floating tensor"),
            Bad((torch.zeros(2), torch.full((3,), 0.5)), {}, ValueError, "logits and prior must have shapes"),
        ],
    ),
    Exempt("causal.DAGDistribution", "takes no data: it draws from its parameters", "causal/test_dag_distribution.py"),
]
