"""Contracts of arrays of microphones: against delays of whole periods and sums over samples, one at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback import audio
from tests.contracts.contract import Bad, Call, Contract

_RATE, _SPEED = 100.0, 10.0


def _randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _scene(g: torch.Generator) -> list[Call]:
    positions = 0.1 * torch.rand(3, 3, generator=g, dtype=torch.float64)
    return [
        Call((_randn(g, 2, 2, 11), _randn(g, 2, 1, 3), positions)),
        Call((_randn(g, 1, 9), _randn(g, 1, 4, 3), positions[:2])),
    ]


def _simulate(signals: Tensor, directions: Tensor, positions: Tensor, rate: float = _RATE, **words: object) -> Tensor:
    return audio.simulate_array(signals, directions, positions, rate, **{"speed": _SPEED, "block": 8, **words})


def _window_by_window(signals: Tensor, directions: Tensor, positions: Tensor) -> Tensor:
    """Every window is a sum of cosines, evaluated at the delayed times."""
    if signals.ndim > 2:
        return torch.stack([_window_by_window(x, directions, positions) for x in signals])
    block, hop, margin = 8, 4, 2
    sources, length = signals.shape
    frames = directions.shape[-2]
    unit = directions / directions.square().sum(-1, keepdim=True).sqrt()
    heard = torch.zeros(len(positions), length + 60, dtype=signals.dtype)
    for s in range(sources):
        for k in range(-(-length // hop) + 1):
            place = min(max(k * hop * frames / length - 0.5, 0), frames - 1)
            low = min(int(place), max(frames - 2, 0))
            high = min(low + 1, frames - 1)
            towards = unit[s, low] + (place - low) * (unit[s, high] - unit[s, low])
            window = torch.zeros(block + 2 * margin, dtype=signals.dtype)
            for i in range(block):
                at = (k - 1) * hop + i
                if 0 <= at < length:
                    window[margin + i] = signals[s, at] * math.sin(math.pi * i / block) ** 2
            size = len(window)
            times = torch.arange(size, dtype=signals.dtype)
            for m, position in enumerate(positions):
                early = float(position @ towards) * _RATE / _SPEED
                for i in range(size):
                    total = window.new_zeros(())
                    for f in range(size // 2 + 1):
                        angles = 2 * math.pi * f * (i + early - times) / size
                        if f in (0, size // 2):  # what a real sequence can hold of it
                            angles = 2 * math.pi * f * (i - times) / size
                            factor = math.cos(2 * math.pi * f * early / size)
                        else:
                            factor = 2.0
                        total = total + factor * (window * angles.cos()).sum() / size
                    heard[m, 20 + (k - 1) * hop - margin + i] += total
    return heard[:, 20 : 20 + length]


def _frames(g: torch.Generator) -> list[Call]:
    return [Call((_randn(g, 2, 2, 9),), {"frame": 4, "lags": 2}), Call((_randn(g, 3, 5),), {"frame": 5, "lags": 0})]


def _by_definition(signals: Tensor, frame: int, lags: int) -> Tensor:
    """Fourier sums as they stand, bin by bin, of both signs of frequency."""
    if signals.ndim > 2:
        return torch.stack([_by_definition(x, frame, lags) for x in signals])
    mics, length = signals.shape
    n, size = torch.arange(frame, dtype=signals.dtype), 2 * frame
    window = (torch.pi * n / frame).sin().square()
    rows = []
    for start in range(0, length - frame + 1, frame):
        bins = torch.arange(size, dtype=signals.dtype)[:, None]
        turn = torch.exp(-2j * torch.pi * bins * n / size)
        spectra = [(turn * (window * signals[m, start : start + frame])).sum(-1) for m in range(mics)]
        spectra = [x / x.abs() for x in spectra]
        row = []
        for i in range(mics):
            for j in range(i + 1, mics):
                cross = spectra[i] * spectra[j].conj()
                delays = range(-lags, lags + 1)
                row.append([(cross * torch.exp(2j * torch.pi * bins[:, 0] * d / size)).real.mean() for d in delays])
        rows.append(torch.stack([torch.stack(r) for r in row]))
    return torch.stack(rows)


_X, _U, _P = torch.ones(2, 8), torch.ones(2, 1, 3), torch.zeros(2, 3)

CONTRACTS = [
    Contract(
        "audio.simulate_array",
        _simulate,
        _scene,
        reference=_window_by_window,
        large=(0, 1),
        large_limit=1e8,
        compile=False,
        why="torch compiles no complex numbers; a sum of sources of the largest numbers overflows by nature",
        bad=[
            Bad((_X, torch.zeros(2, 1, 3), _P), {}, ValueError, "directions must not be of length 0"),
            Bad((_X, torch.ones(3, 1, 3), _P), {}, ValueError, r"directions must have shape \(..., 2, any, 3\)"),
            Bad((_X, _U, torch.zeros(2, 2)), {}, ValueError, r"positions must have shape \(mics, 3\)"),
            Bad((_X, _U, _P + 10), {}, ValueError, "positions must be at most block / 4 = 2 samples"),
            Bad((_X, _U, _P), {"rate": 0.0}, ValueError, "rate must be > 0"),
            Bad((_X, _U, _P), {"block": 9}, ValueError, "block must be even"),
            Bad((_X * torch.nan, _U, _P), {}, ValueError, "signals must be finite"),
            Bad((_X.long(), _U, _P), {}, TypeError, "signals must be a floating tensor"),
            Bad((_X, _U.double(), _P), {}, TypeError, "must have the same dtype"),
            Bad((_X[:, :0], _U, _P), {}, ValueError, "at least one sample"),
        ],
    ),
    Contract(
        "audio.gcc_phat",
        audio.gcc_phat,
        _frames,
        reference=_by_definition,
        large_limit=1e8,
        compile=False,
        why="torch compiles no complex numbers; the power of the largest numbers overflows by nature",
        bad=[
            Bad((torch.ones(1, 8),), {"frame": 4, "lags": 1}, ValueError, "mics >= 2"),
            Bad((torch.ones(2, 8),), {"frame": 9, "lags": 1}, ValueError, "at least one frame of 9 samples, got 8"),
            Bad((torch.ones(2, 8),), {"frame": 4, "lags": 4}, ValueError, r"lags must be in 0\.\.3"),
            Bad((torch.ones(2, 8),), {"frame": 4, "lags": 1, "hop": 0}, ValueError, "hop must be"),
            Bad((torch.ones(2, 8).long(),), {"frame": 4, "lags": 1}, TypeError, "signals must be a floating tensor"),
        ],
    ),
]
