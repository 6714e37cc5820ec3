"""Spirals against their equations in polar coordinates."""

from __future__ import annotations

import math

import pytest
import torch

from pullback import data


def test_radius_and_turning_direction(generator: torch.Generator) -> None:
    sequence = data.spirals(40, generator=generator)
    for rows, centre, turn in ((slice(0, None, 2), 5.0, 1.0), (slice(1, None, 2), -5.0, -1.0)):
        x, y = (sequence.clean[rows].double() - torch.tensor([centre, 0.0])).unbind(-1)
        radius, polar = torch.hypot(x, y), torch.atan2(y, x)
        angle = radius / 0.3 if turn > 0 else 15 / radius
        assert torch.allclose(torch.cos(angle), torch.cos(polar), atol=1e-4)
        assert torch.allclose(torch.sin(angle), torch.sin(polar), atol=1e-4)
        passed = sequence.times[rows]
        assert torch.allclose(angle - angle[:, :1], turn * passed.double(), atol=1e-4)
        assert bool((angle > 1).all())
        assert bool((angle < 6 * math.pi + 1).all())
    assert (sequence.noisy - sequence.clean).std().item() == pytest.approx(0.3, rel=0.05)


def test_observed_points_are_distinct_ordered_and_of_the_range(generator: torch.Generator) -> None:
    sequence = data.spirals(6, generator=generator)
    part = sequence.observed(30, 100, 200, generator=generator)
    assert part.noisy.shape == (6, 30, 2)
    assert bool((part.times.diff(dim=1) > 0).all())
    assert bool((part.times >= sequence.times[:, 100:101]).all())
    for row in range(6):
        index = torch.isin(sequence.times[row], part.times[row])
        assert torch.equal(part.noisy[row], sequence.noisy[row, index])
    with pytest.raises(ValueError, match=r"points must be 1 \.\. last - first"):
        sequence.observed(101, 0, 100, generator=generator)


def test_the_latest_start_is_kept(generator: torch.Generator) -> None:
    sequence = data.spirals(400, latest=120, generator=generator)
    step = 6 * math.pi / 999
    start = sequence.clean[::2, 0].sub(torch.tensor([5.0, 0.0])).norm(dim=1) / 0.3 / step
    assert 99.5 < start.min() < 101
    assert 119 < start.max() < 120.5
    with pytest.raises(ValueError, match=r"latest must be in 100\.\.799, got 800"):
        data.spirals(4, latest=800, generator=generator)
