"""Blocks of uncertainty against torch's own operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.lab.bench import Case
from pullback.uncertainty import LinearGaussian, kalman_evidence, log_einsum_exp


def _logarithms() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    weights, x = (torch.randn(32, *shape, generator=g) for shape in ((32, 32), (256, 32)))
    return weights.log_softmax(-1).requires_grad_(), x.requires_grad_()


def _ours(given: tuple[Tensor, Tensor]) -> None:
    log_einsum_exp(*given).sum().backward()


def _all_terms(given: tuple[Tensor, Tensor]) -> None:
    weights, x = given
    torch.logsumexp(x.unsqueeze(-2) + weights.unsqueeze(-3), -1).sum().backward()


def _series() -> tuple[LinearGaussian, Tensor]:
    g = torch.Generator().manual_seed(0)
    eye = torch.eye(4)
    fields = (0.3 * torch.randn(4, 4, generator=g), torch.randn(2, 4, generator=g), eye, torch.eye(2), eye[0], eye)
    return LinearGaussian(*(f.clone().requires_grad_() for f in fields)), torch.randn(64, 100, 2, generator=g)


def _evidence(given: tuple[LinearGaussian, Tensor]) -> None:
    kalman_evidence(*given).sum().backward()


def _through_covariances(given: tuple[LinearGaussian, Tensor]) -> None:
    """Kalman's filter as in textbooks, differentiated step by step."""
    model, y = given
    a, c, m, p, total = model.dynamics, model.emission, model.mean, model.covariance, torch.zeros(64)
    for seen in y.unbind(-2):
        factor = torch.linalg.cholesky(c @ p @ c.mT + model.observation_noise)
        gap = (seen - m @ c.mT).unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor, gap, upper=False)
        spread = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + math.log(2 * math.pi)
        total = total - white.square().sum((-2, -1)) / 2 - spread
        gain = torch.cholesky_solve(c @ p, factor).mT
        m, p = (m + (gain @ gap).squeeze(-1)) @ a.mT, a @ (p - gain @ c @ p) @ a.mT + model.process_noise
    total.sum().backward()


CASES = [
    Case(
        "evidence of 64 linear Gaussian series of 100 steps, 4 states, forward + backward",
        _series,
        _evidence,
        {"torch, through covariances": _through_covariances},
    ),
    Case(
        "matrix product of logarithms, forward + backward, 32 latents of 32 states, batch 256",
        _logarithms,
        _ours,
        {"torch, all terms": _all_terms},
    ),
]
