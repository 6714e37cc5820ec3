"""Euclidean distances between all points of a cloud, exact for near points, with a gradient of matrix products."""

from __future__ import annotations

from typing import Any

import torch

from pullback.core.checks import check_floating, check_shape
from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.shapes import Float, Tensor

__all__ = ["pairwise_distances"]


def pairwise_distances(x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n n"]:
    r"""Return :math:`D_{ij} = \lVert x_i - x_j \rVert`, symmetric to the bit, with gradient 0 between equal points.

    Values come from differences, not from ``|a|^2 - 2 a b + |b|^2``, which loses near points. Their gradient is

    .. math:: \sum_j (G + G^T)_{ij} (x_i - x_j) / D_{ij}

    as two matrix products, so that no tensor of ``n * n * d`` numbers is made.

    Args:
        x: ``[*batch, n, d]`` points.

    Returns:
        ``[*batch, n, n]``, 0 on the diagonal. Derivatives of every order.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``x`` has fewer than two dimensions.

    Example:
        >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[0., 5.],
                [5., 0.]])
    """
    check_shape("x", check_floating("x", x), (None, None))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = wide.detach().abs().amax((-2, -1), keepdim=True) if x.numel() else wide.new_ones(())
    extreme = ((scale > 1e15) | (scale < 1e-15)) & (scale > 0) & torch.isfinite(scale)
    scale = torch.where(extreme, scale, 1.0)  # squares overflow, or vanish
    distances: Tensor = _Distances.apply(wide, scale)[0]
    return distances.to(x.dtype)


class _Distances(torch.autograd.Function):
    """Distances, and the same over ``scale``: all derivatives are functions of the points and of the latter.

    The slope of a distance has no unit, so cotangents are never multiplied by the scale, which would overflow.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = x / scale
        scaled = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        return scaled * scale, scaled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.save_for_forward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, cotangent_scaled: Tensor) -> tuple[Tensor, None]:
        x, scale, scaled = ctx.saved_tensors
        x, cotangent = x / scale, cotangent + cotangent_scaled / scale
        weights = _divided(cotangent + cotangent.mT, scaled)
        return weights.sum(-1, keepdim=True) * x - weights @ x, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, Tensor]:
        x, scale, scaled = primals(ctx.saved_tensors)
        with nested_forward_mode():
            mixed = (x / scale) @ tangent.mT
            own = mixed.diagonal(dim1=-2, dim2=-1)
            slopes = _divided(own.unsqueeze(-1) + own.unsqueeze(-2) - mixed - mixed.mT, scaled)
            return slopes, slopes / scale


def _divided(numerator: Tensor, distances: Tensor) -> Tensor:
    apart = distances > 0
    return torch.where(apart, numerator / torch.where(apart, distances, 1.0), 0.0)
