"""Contracts of ``pullback.gradients``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.gradients import kink_distance, lyapunov_spectrum
from tests.contracts.contract import Bad, Call, Contract


def _vector(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(4, 5, generator=g, dtype=torch.float64),))]


def _second(x: Tensor) -> Tensor:
    ordered = x.sort(dim=-1, descending=True).values
    return ordered[..., 0] - ordered[..., 1]


CONTRACTS = [
    Contract(
        "gradients.kink_distance[relu]",
        lambda x: kink_distance("relu", x),
        _vector,
        reference=lambda x: x.abs(),
        bad=[Bad((torch.zeros(2),), {"operation": "rellu"}, TypeError, "operation")],
    ),
    Contract("gradients.kink_distance[max]", lambda x: kink_distance("max", x), _vector, reference=_second),
    Contract(
        "gradients.kink_distance[sort]",
        lambda x: kink_distance("sort", x),
        _vector,
        reference=lambda x: x.sort(-1).values.diff(dim=-1).min(-1).values,
    ),
    Contract(
        "gradients.lyapunov_spectrum",
        lambda x: lyapunov_spectrum(lambda s: 0.5 * s, x, steps=4),
        lambda g: [Call((torch.randn(3, generator=g, dtype=torch.float64),))],
        outputs=lambda spectrum: spectrum.exponents,
        reference=lambda x: torch.full((3,), math.log(0.5), dtype=x.dtype),
        bad=[Bad((torch.ones(2),), {"steps": 0}, TypeError, "steps")],
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        batched=False,
        compile=False,
        half=False,
        why="a measurement along one trajectory: it is not differentiated, and a batch is one large state",
    ),
]
