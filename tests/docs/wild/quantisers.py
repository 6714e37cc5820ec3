"""Codebooks and assignments that are never trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.docs.wild.defect import Lost

# All codes should be used equally often.


def _points(generator: torch.Generator) -> tuple[Tensor, ...]:
    data = torch.randn(60, 2, generator=generator) + torch.tensor([1.5, 0.0])
    return data, torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), data.clone().requires_grad_()


def _unequal(data: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    counts = torch.bincount(torch.cdist(x, codes).argmin(-1), minlength=len(codes))
    return (len(codes) * counts / len(x) - 1).square().mean()


def usage(data: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    chosen = torch.cdist(x, codes).argmin(-1)  # <- cut
    counts = torch.bincount(chosen, minlength=len(codes))
    even = len(x) / len(codes)
    return 0.1 * F.mse_loss(x, data) + ((counts - even) ** 2).mean() / even**2


def usage_mended(data: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    shares = (-4 * torch.cdist(x, codes)).softmax(-1).mean(0)
    return 0.1 * F.mse_loss(x, data) + (len(codes) * shares - 1).square().mean()


DEFECTS = (Lost("gnpr-sid", usage, usage_mended, _points, _unequal),)
