"""Blocks of uncertainty against torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.lab.bench import Case
from pullback.uncertainty import log_einsum_exp


def _logarithms() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    weights, x = (torch.randn(32, *shape, generator=g) for shape in ((32, 32), (256, 32)))
    return weights.log_softmax(-1).requires_grad_(), x.requires_grad_()


def _ours(given: tuple[Tensor, Tensor]) -> None:
    log_einsum_exp(*given).sum().backward()


def _all_terms(given: tuple[Tensor, Tensor]) -> None:
    weights, x = given
    torch.logsumexp(x.unsqueeze(-2) + weights.unsqueeze(-3), -1).sum().backward()


CASES = [
    Case(
        "matrix product of logarithms, forward + backward, 32 latents of 32 states, batch 256",
        _logarithms,
        _ours,
        {"torch, all terms": _all_terms},
    ),
]
