"""Planar flows: a density changed by layers that each bend space along one direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import check_shape
from pullback.core.shapes import Float
from pullback.dynamics.draws import standard_normal

__all__ = ["PlanarFlow"]


class PlanarFlow(nn.Module):
    """Layers ``z <- z + u tanh(w^T z + b)`` from the data to a standard normal base.

    ``log p(x) = log N(z_K) + sum_k log(1 + (1 - tanh^2) u_k . w_k)``; ``u`` is moved along ``w`` so that
    ``u . w = softplus(u . w) - 1 > -1``, which makes every layer invertible.

    Args:
        dim: of x.
        layers: K.
        generator: of the initial weights.

    Example:
        >>> flow = PlanarFlow(2, 4, generator=torch.Generator().manual_seed(0))
        >>> flow.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])

    References:
        Rezende, Mohamed (2015), Variational inference with normalizing flows, arXiv 1505.05770, eq. 10 and A.1.
    """

    def __init__(self, dim: int, layers: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.w = nn.Parameter(standard_normal(layers, dim, generator=generator))
        self.u = nn.Parameter(0.1 * standard_normal(layers, dim, generator=generator))
        self.b = nn.Parameter(standard_normal(layers, generator=generator))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch"]]:
        """Return the base points and log |det| of the map."""
        check_shape("x", x, (self.dim,))
        inner = (self.w * self.u).sum(1)
        u = self.u + ((F.softplus(inner) - 1 - inner) / self.w.square().sum(1)).unsqueeze(1) * self.w
        change = torch.zeros_like(x[..., 0])
        for w, v, b in zip(self.w, u, self.b, strict=True):
            h = torch.tanh(x @ w + b)
            change = change + torch.log1p((1 - h.square()) * (v @ w))
            x = x + h.unsqueeze(-1) * v
        return x, change

    def log_prob(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the log density at ``x``."""
        z, change = self(x)
        return -0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi) + change
