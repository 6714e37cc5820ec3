"""Contracts of operators on grids and sensors."""

from __future__ import annotations

import torch

from pullback.dynamics import DeepOperatorNetwork, FourierOperator
from tests.contracts.contract import Bad, Call, Exempt, Module


def _operator(g: torch.Generator) -> FourierOperator:
    return FourierOperator(fields=1, channels=2, modes=1, layers=1, padding=1, generator=g)


CONTRACTS = [
    Module(
        "dynamics.FourierOperator",
        lambda operator, x: operator(x),
        lambda g: [Call((torch.randn(2, 1, 3, 3, generator=g, dtype=torch.float64),))],
        build=_operator,
        bad=[
            Bad((torch.ones(2, 3, 3),), {}, ValueError, r"x must have shape \(\.\.\., 1, any, any\)"),
            Bad((torch.ones(1, 0, 3),), {}, ValueError, "x must have at least 1 points a side, got 0, 3"),
        ],
        large_limit=1e3,
        why="sums of the largest numbers leave the range",
    ),
    Module(
        "dynamics.DeepOperatorNetwork",
        lambda operator, values, points: operator(values, points),
        lambda g: [Call(tuple(torch.randn(2, *s, generator=g, dtype=torch.float64) for s in ((5,), (3, 2))))],
        build=lambda g: DeepOperatorNetwork(5, width=4, generator=g),
        bad=[
            Bad((torch.ones(4), torch.ones(3, 2)), {}, ValueError, r"values must have shape \(\.\.\., 5\)"),
            Bad((torch.ones(5), torch.ones(3, 3)), {}, ValueError, r"points must have shape \(\.\.\., any, 2\)"),
            Bad((torch.ones(5), torch.ones(3, 2).double()), {}, TypeError, "must have the same dtype"),
            Bad((torch.ones(2, 5), torch.ones(3, 3, 2)), {}, ValueError, "values and points must have shapes that"),
        ],
        batched=False,
        large_limit=1e4,
        why="batched: values and points have one batch; large: sums of the largest numbers leave the range",
    ),
    Exempt("dynamics.random_waves", "draws functions", "dynamics/test_diffusion.py"),
    Exempt("dynamics.diffusion_problems", "draws problems", "dynamics/test_diffusion.py"),
]
