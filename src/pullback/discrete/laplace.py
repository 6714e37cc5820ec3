"""Differentiable products with the Laplace kernel of sorted points: what SoftSort and the transport plan are made of.

``K_ij = exp(-|y_i - y_j|)`` and ``S_ij = sign(y_i - y_j) K_ij`` are closed under differentiation:
``d(K v) = K dv + S (dy v) - dy S v`` and ``d(S v) = S dv + K (dy v) - dy K v`` (no ties), so derivatives of every
order, forward mode and vmap cost O(n) as the products do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.gradients import nested_forward_mode, primals
from pullback.kernels.laplace import laplace_product

__all__ = ["as_rows", "batched", "laplace"]


def laplace(y: Tensor, v: Tensor, *, signed: bool = False) -> Tensor:
    """Return ``sum_j s_ij exp(-|y_i - y_j|) v_cj`` for ascending ``y``, in O(n).

    Args:
        y: ``[*batch, n]`` ascending.
        v: ``[*batch, c, n]``.
        signed: with ``s_ij = sign(y_i - y_j)`` instead of 1.

    Returns:
        ``[*batch, c, n]``.

    Example:
        >>> laplace(torch.zeros(3), torch.ones(1, 3)).tolist()
        [[3.0, 3.0, 3.0]]
    """
    result: Tensor = _Laplace.apply(y, v, signed)
    return result


class _Laplace(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, v: Tensor, signed: bool) -> Tensor:
        rows, channels = as_rows(y, 1), as_rows(v, 2)
        return laplace_product(rows.detach(), channels.detach(), signed).view(v.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        y, v, ctx.signed = inputs
        ctx.save_for_backward(y, v)
        ctx.save_for_forward(y, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, v = ctx.saved_tensors
        grad_y = grad_v = None
        if ctx.needs_input_grad[0]:
            both = laplace(y, torch.cat([v, g], dim=-2), signed=not ctx.signed)
            of_v, of_g = both.split([v.shape[-2], g.shape[-2]], dim=-2)
            grad_y = ((v * of_g if ctx.signed else -v * of_g) - g * of_v).sum(-2)
        if ctx.needs_input_grad[1]:
            product = laplace(y, g, signed=ctx.signed)
            grad_v = -product if ctx.signed else product
        return grad_y, grad_v, None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor | None, dv: Tensor | None, _: None) -> Tensor:
        with nested_forward_mode():
            y, v = primals(ctx.saved_tensors)
            out = torch.zeros_like(v) if dv is None else laplace(y, dv, signed=ctx.signed)
            if dy is not None:
                dy = dy.unsqueeze(-2)
                out = out + laplace(y, dy * v, signed=not ctx.signed) - dy * laplace(y, v, signed=not ctx.signed)
            return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None, None], y: Tensor, v: Tensor, signed: bool) -> Any:
        y, v = batched(info.batch_size, in_dims[:2], y, v)
        return laplace(y, v, signed=signed), 0


def batched(size: int, in_dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Return the tensors of a vmap rule with the mapped dimension first, expanded where it is missing.

    Example:
        >>> [tuple(t.shape) for t in batched(3, (1, None), torch.zeros(2, 3), torch.zeros(2))]
        [(3, 2), (3, 2)]
    """
    return [
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0) for dim, t in zip(in_dims, tensors, strict=True)
    ]


def as_rows(t: Tensor, kept: int) -> Tensor:
    """Return ``t`` with all but its last ``kept`` dimensions merged into one, also where some are empty.

    Example:
        >>> as_rows(torch.zeros(2, 3, 0), 1).shape
        torch.Size([6, 0])
    """
    return t.reshape(t.shape[: t.ndim - kept].numel(), *t.shape[t.ndim - kept :])
