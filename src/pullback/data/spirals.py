"""Simulated spirals: planar trajectories of two turning directions, observed with noise at irregular times."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_integer, check_positive

__all__ = ["Spirals", "spirals"]


class Spirals(NamedTuple):
    """Times ``[n, steps]``; states ``[n, steps, 2]`` without and with noise."""

    times: Tensor
    clean: Tensor
    noisy: Tensor

    def observed(self, points: int, first: int, last: int, *, generator: torch.Generator) -> Spirals:
        """Return ``points`` of the steps first .. last - 1 of each spiral, drawn without replacement, in order.

        Raises:
            ValueError: there are not so many steps.
        """
        steps = self.times.shape[1]
        if not 0 <= first < last <= steps or not 1 <= points <= last - first:
            raise ValueError(
                f"points must be 1 .. last - first within {steps} steps, got {points} of {first} .. {last}"
            )
        order = torch.rand(len(self.times), last - first, generator=generator).argsort(1)
        chosen = first + order[:, :points].sort(1).values
        pair = chosen.unsqueeze(-1).expand(-1, -1, 2)
        return Spirals(self.times.gather(1, chosen), self.clean.gather(1, pair), self.noisy.gather(1, pair))


def spirals(n: int, *, noise: float = 0.3, latest: int = 799, generator: torch.Generator) -> Spirals:
    """Return ``n`` pieces, 200 steps and 1.2 pi of angle long, of a clockwise and an anti-clockwise spiral.

    Anti-clockwise, the radius is 0.3 angle around (5, 0); clockwise, 15 / angle around (-5, 0), with the angle falling
    from 6 pi + 1. Angles are sampled 1 000 times over 6 pi; a piece starts at any sample from 100 to ``latest``. Time
    is the angle passed since the start.

    Args:
        n: number of pieces, one direction and the other in turn.
        noise: standard deviation of the noise on both coordinates.
        latest: last sample at which a piece starts, 100 to 799.
        generator: of starts and noise.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> sequence = spirals(4, generator=torch.Generator().manual_seed(0))
        >>> sequence.clean.shape, round(float(sequence.times[0, -1] / math.pi), 2)
        (torch.Size([4, 200, 2]), 1.2)

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), section 5.1, arXiv 1806.07366; constants of the authors' code.
    """
    check_integer("n", n, 1)
    check_positive("noise", noise, zero=True)
    check_integer("latest", latest, 100, 799)
    step = 6 * math.pi / 999
    start = torch.randint(100, latest + 1, (n, 1), generator=generator)
    passed = step * torch.arange(200)
    anticlockwise = (torch.arange(n) % 2 == 0).unsqueeze(1)
    angle = torch.where(anticlockwise, step * start + passed, 6 * math.pi + 1 - step * start - passed)
    radius = torch.where(anticlockwise, 0.3 * angle, 15.0 / angle)
    centre = torch.where(anticlockwise, 5.0, -5.0)
    clean = torch.stack([centre + radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    return Spirals(passed.expand(n, 200), clean, clean + noise * torch.randn(clean.shape, generator=generator))
