"""The pipeline of the demo, unchanged, learns on the device under relaxed, from images drawn here: it needs no data."""

from __future__ import annotations

import torch
from torch import Tensor

import pullback
from pullback.demo import pipeline
from tests.contracts.contract import DEVICE

GLYPHS = torch.rand(10, 8, 8, generator=torch.Generator().manual_seed(7)).round()
"""One pattern of black and white a digit."""


def sets(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[count, 5, 8, 32]`` of four noisy digits side by side, and the numbers that they show."""
    digits = torch.randint(10, (count, 5, 4), generator=generator)
    images = GLYPHS[digits].movedim(-3, -2).flatten(-2)
    images = images + 0.1 * torch.randn(images.shape, generator=generator)
    values = (digits * torch.tensor([1000, 100, 10, 1])).sum(-1).float()
    return images.to(DEVICE), values.to(DEVICE)


def test_the_pipeline_learns_on_the_device() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pipeline.NumberReader().to(DEVICE)
    held_out = sets(200, torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    steps = 150
    for step in range(steps):
        optimizer.zero_grad()
        with pullback.relaxed(temperature=0.3 * 0.03 ** (step / steps)):
            loss = pipeline.ordering_loss(model, *sets(32, generator))
        loss.backward()
        optimizer.step()
    assert pipeline.exact_order(model, *held_out) > 0.25  # chance is 1 / 120
