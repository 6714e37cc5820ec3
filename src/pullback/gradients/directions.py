"""Random directions with zero mean and unit covariance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pullback.core.random import drawing_device

__all__ = ["DISTRIBUTIONS", "Distribution", "draw"]

Distribution = Literal["normal", "rademacher"]
"""Standard normal numbers, or signs with equal chances."""
DISTRIBUTIONS = ("normal", "rademacher")


def draw(shape: tuple[int, ...], like: Tensor, distribution: str, generator: torch.Generator | None) -> Tensor:
    """Draw numbers of zero mean and unit variance, of the dtype and on the device of ``like``."""
    numbers = torch.empty(shape, dtype=like.dtype, device=drawing_device(generator, like))
    if distribution == "normal":
        return numbers.normal_(generator=generator).to(like.device)
    return numbers.bernoulli_(0.5, generator=generator).mul_(2).sub_(1).to(like.device)
