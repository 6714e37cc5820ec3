"""Arrays of microphones against closed forms: sinusoids, superposition, a direction found by its gradient."""

from __future__ import annotations

import math

import torch

from pullback import audio, geometry

_RATE = 8000.0


def _square(radius: float) -> torch.Tensor:
    corners = torch.tensor([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    return radius * corners


def test_a_sinusoid_arrives_early_by_its_phase() -> None:
    t = torch.arange(4000, dtype=torch.float64)
    towards = torch.tensor([[[3.0, 4.0, 0.0]]], dtype=torch.float64)
    early = _square(0.2) @ towards[0, 0] / 5 / 343 * _RATE
    for frequency in (200.0, 1234.0, 3000.0):
        turn = 2 * math.pi * frequency / _RATE
        heard = audio.simulate_array((turn * t).sin()[None], towards, _square(0.2), _RATE)
        expected = (turn * (t + early[:, None])).sin()
        assert (heard - expected)[:, 300:-300].abs().max() < 2e-3


def test_sources_add_and_a_moving_one_is_between_its_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3000, generator=generator, dtype=torch.float64)
    towards = torch.randn(2, 1, 3, generator=generator, dtype=torch.float64)
    both = audio.simulate_array(x, towards, _square(0.1), _RATE)
    each = [audio.simulate_array(x[i : i + 1], towards[i : i + 1], _square(0.1), _RATE) for i in range(2)]
    torch.testing.assert_close(both, each[0] + each[1])
    angles = torch.linspace(-0.5, 2, 10, dtype=torch.float64).clamp(0, math.pi / 2)  # at rest at both ends
    track = torch.stack([angles.cos(), angles.sin(), 0 * angles], -1)[None]
    moving = audio.simulate_array(x[:1], track, _square(0.1), _RATE)
    ends = [audio.simulate_array(x[:1], track[:, k : k + 1], _square(0.1), _RATE) for k in (0, 9)]
    torch.testing.assert_close(moving[:, :64], ends[0][:, :64])
    torch.testing.assert_close(moving[:, -64:], ends[1][:, -64:])


def test_correlations_peak_at_the_delay_between_microphones() -> None:
    x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    towards = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=torch.float64)
    positions = _square(0.2)
    heard = audio.simulate_array(x, towards, positions, _RATE)
    found = audio.gcc_phat(heard, frame=800, lags=12)[2]
    early = positions[:, 0] / 343 * _RATE
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for row, (i, j) in zip(found, pairs, strict=True):
        assert abs((int(row.argmax()) - 12) - float(early[j] - early[i])) <= 0.6


def test_a_direction_is_found_by_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2000, generator=generator, dtype=torch.float64)
    x = torch.nn.functional.avg_pool1d(x, 31, 1, 15)  # low frequencies: no ripples between here and there
    towards = torch.tensor([[[1.0, 0.2, 0.0]]], dtype=torch.float64)
    heard = audio.simulate_array(x, towards, _square(0.2), _RATE)
    guess = torch.tensor([[[0.8, 0.9, 0.0]]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([guess], lr=0.05)
    for _ in range(60):
        loss = (audio.simulate_array(x, guess, _square(0.2), _RATE) - heard).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert geometry.angular_distance(guess.detach(), towards) < math.radians(2)
