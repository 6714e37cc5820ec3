"""Contracts of ``pullback.core``."""

from __future__ import annotations

import torch

from pullback.core.gradients import replace_gradient
from tests.contracts.contract import Call, Contract

CONTRACTS = [
    Contract(
        "core.gradients.replace_gradient",
        lambda x: replace_gradient(x.detach() * 1.0, x),
        lambda g: [Call((torch.randn(3, 4, generator=g, dtype=torch.float64),))],
        reference=lambda x: x,
    ),
]
