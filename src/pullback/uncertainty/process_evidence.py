r"""The evidence of a Gaussian process and the distances its kernels are made of, with gradients in closed form.

With :math:`K` the covariance of the data, :math:`r` the data without the mean and :math:`\alpha=K^{-1}r`,

.. math::
    \log p=-\tfrac12r^T\alpha-\tfrac12\log\det K-\tfrac n2\log2\pi,\qquad
    \partial_K=\tfrac12(\alpha\alpha^T-K^{-1}),\quad\partial_r=-\alpha,

so that one inverse from the factor takes the place of the way back through the factorisation. Of squared distances
:math:`d_{ij}=|x_i-y_j|^2` with a cotangent W, :math:`\bar x_i=2\sum_jW_{ij}(x_i-y_j)` is a product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["evidence", "squared_distances"]

_Factoring = Callable[[Tensor], Tensor]


def evidence(factored: _Factoring, covariance: Tensor, noise: Tensor, residual: Tensor) -> Tensor:
    """Return the log density of ``residual`` under N(0, covariance + noise I), twice differentiable.

    Args:
        factored: returns the Cholesky factor of a matrix, or of one a little larger.
        covariance: ``[*#batch, n, n]`` symmetric.
        noise: ``[*#batch]`` > 0.
        residual: ``[*batch, n]``.

    Returns:
        ``[*batch]``.
    """
    batch = torch.broadcast_shapes(covariance.shape[:-2], noise.shape, residual.shape[:-1])
    n = residual.shape[-1]
    parts = covariance.expand(*batch, n, n), noise.expand(batch), residual.expand(*batch, n)
    return _Evidence.apply(factored, *parts)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distances of all points, ``[*batch, n, m]`` of ``[*#batch, n, d]`` and ``[*#batch, m, d]``.

    Unlike by the expansion of the square they are exact to rounding where points are close.
    """
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return _Squares.apply(x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:]))


class _Evidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factored: _Factoring, covariance: Tensor, noise: Tensor, residual: Tensor) -> Tensor:
        factor = factored(_with_noise(covariance, noise))
        white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)
        ctx.factored = factored
        ctx.save_for_backward(covariance, noise, residual, factor, white)
        logs = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * white.square().sum((-2, -1)) - logs - 0.5 * residual.shape[-1] * math.log(2 * math.pi)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        covariance, noise, residual, factor, white = ctx.saved_tensors
        again = torch.is_grad_enabled()  # derivatives of the gradient are wanted
        if again:
            factor = ctx.factored(_with_noise(covariance, noise))
            white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)
        alpha = torch.linalg.solve_triangular(factor.mT, white, upper=True)
        share = 0.5 * cotangent[..., None, None]
        to_residual = -cotangent.unsqueeze(-1) * alpha.squeeze(-1)
        if again:
            eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
            slope = share * (alpha @ alpha.mT - torch.cholesky_solve(eye.expand_as(factor), factor))
        else:
            slope = torch.cholesky_inverse(factor).neg_().add_(alpha @ alpha.mT) * share
        return None, slope, slope.diagonal(dim1=-2, dim2=-1).sum(-1), to_residual


def _with_noise(covariance: Tensor, noise: Tensor) -> Tensor:
    matrix = covariance.clone()
    matrix.diagonal(dim1=-2, dim2=-1).add_(noise.unsqueeze(-1))
    return matrix


class _Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        middle = x.mean(-2, keepdim=True).detach()  # a common shift changes nothing but the rounding
        x, y = x - middle, y - middle
        to_x = cotangent.sum(-1, keepdim=True) * x - cotangent @ y
        to_y = cotangent.sum(-2).unsqueeze(-1) * y - cotangent.mT @ x
        return 2 * to_x, 2 * to_y
