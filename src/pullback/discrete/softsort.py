"""SoftSort and NeuralSort on sorted points: row-stochastic matrices, and their products without the matrix.

A *kernel* here is a class with static methods on ascending, scaled points ``y [*batch, n]`` (temperature 1):
``mean(y, v [*batch, c, n])`` is P v, ``ranks(y)`` the expected place of each point, ``matrix(y) [*batch, n, n]`` P
itself, rows = places, columns = points; ``matrix(y, places)`` forms only those rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.transforms import is_transformed
from pullback.discrete.laplace import as_rows, batched, laplace
from pullback.kernels.neuralsort import (
    distance_sums,
    distance_sums_transposed,
    neuralsort_matrix,
    neuralsort_mean,
    neuralsort_mean_gradient,
    neuralsort_transposed,
)

__all__ = ["NeuralSort", "SoftSort"]


class SoftSort:
    """``P = softmax(-|sort(y)_i - y_j|)`` over j (Prillo, Eisenschlos 2020), products in O(n).

    Example:
        >>> SoftSort.mean(torch.tensor([0.0, 50.0]), torch.tensor([[1.0, 2.0]])).tolist()
        [[1.0, 2.0]]
    """

    @staticmethod
    def mean(y: Tensor, v: Tensor) -> Tensor:
        """Return ``P v``: one product for the channels and a column of ones."""
        ones = torch.ones_like(y).unsqueeze(-2)
        product = laplace(y, torch.cat([v, ones], dim=-2))
        return product[..., :-1, :] / product[..., -1:, :]

    @staticmethod
    def ranks(y: Tensor) -> Tensor:
        """Return the expected place of each point under ``softmax(-|y_j - sort(y)_i|)`` over the places i."""
        return SoftSort.mean(y, _places(y).unsqueeze(-2)).squeeze(-2)

    @staticmethod
    def matrix(y: Tensor, places: slice = slice(None)) -> Tensor:
        """Return ``P``, or some of its rows."""
        return torch.softmax(-(y[..., places].unsqueeze(-1) - y.unsqueeze(-2)).abs(), dim=-1)


class NeuralSort:
    """``P = softmax((2i + 1 - n) y_j - sum_k |y_j - y_k|)`` over j, places i ascending (Grover et al. 2019, eq. 5).

    Products take O(n) memory and time proportional to the band of weights above rounding. Derivatives of second order
    form the matrix.

    Example:
        >>> NeuralSort.mean(torch.tensor([0.0, 50.0]), torch.tensor([[1.0, 2.0]])).tolist()
        [[1.0, 2.0]]
    """

    @staticmethod
    def mean(y: Tensor, v: Tensor) -> Tensor:
        """Return ``P v``."""
        result: Tensor = _NeuralSortMean.apply(y, v)
        return result

    @staticmethod
    def ranks(y: Tensor) -> Tensor:
        """Return the mean place of each point, weighted by its column of P."""
        places = _places(y)
        moments: Tensor = _NeuralSortTransposed.apply(y, torch.stack([places, torch.ones_like(places)], dim=-2))
        return moments[..., 0, :] / moments[..., 1, :]

    @staticmethod
    def matrix(y: Tensor, places: slice = slice(None)) -> Tensor:
        """Return ``P``, or some of its rows."""
        return neuralsort_matrix(y, places)


def _places(y: Tensor) -> Tensor:
    return torch.arange(y.shape[-1], dtype=y.dtype, device=y.device).expand_as(y)


def _logit_tangent(y: Tensor, dy: Tensor) -> Tensor:
    n = y.shape[-1]
    place = torch.arange(n, dtype=y.dtype, device=y.device)
    return (2 * place + 1 - n).unsqueeze(-1) * dy.unsqueeze(-2) - distance_sums(dy).unsqueeze(-2)


def _logit_cotangent(grad_logits: Tensor) -> Tensor:
    n = grad_logits.shape[-1]
    place = torch.arange(n, dtype=grad_logits.dtype, device=grad_logits.device)
    slope = ((2 * place + 1 - n).unsqueeze(-1) * grad_logits).sum(-2)
    return slope - distance_sums_transposed(grad_logits.sum(-2))


def _softmax_product(p: Tensor, d: Tensor) -> Tensor:
    """Return the (symmetric) Jacobian of the softmax rows ``p`` applied to ``d``."""
    return p * (d - (p * d).sum(-1, keepdim=True))


class _NeuralSortMean(torch.autograd.Function):
    """``P v`` (or, as its transpose below, ``P^T v``) by the band kernel; higher derivatives by the matrix."""

    @staticmethod
    def forward(y: Tensor, v: Tensor) -> Tensor:
        rows, channels = as_rows(y, 1), as_rows(v, 2)
        return neuralsort_mean(rows.detach(), channels.detach()).view(v.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        y, v = ctx.saved_tensors
        if not (torch.is_grad_enabled() or is_transformed(g)):
            rows = as_rows(y, 1)
            flat_v, flat_g = (as_rows(t, 2) for t in (v, g))
            grad_y, grad_v = neuralsort_mean_gradient(rows, flat_v, flat_g)
            return grad_y.view(y.shape), grad_v.view(v.shape)
        p = neuralsort_matrix(y)
        return _logit_cotangent(_softmax_product(p, g.transpose(-1, -2) @ v)), g @ p

    @staticmethod
    def jvp(ctx: Any, dy: Tensor | None, dv: Tensor | None) -> Tensor:
        with nested_forward_mode():
            y, v = primals(ctx.saved_tensors)
            p = neuralsort_matrix(y)
            out = torch.zeros_like(v) if dv is None else dv @ p.transpose(-1, -2)
            if dy is not None:
                out = out + v @ _softmax_product(p, _logit_tangent(y, dy)).transpose(-1, -2)
            return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], y: Tensor, v: Tensor) -> Any:
        return _NeuralSortMean.apply(*batched(info.batch_size, in_dims, y, v)), 0


class _NeuralSortTransposed(torch.autograd.Function):
    """``P^T v``: the gradient of the mean in its channels, so the same kernels serve both."""

    @staticmethod
    def forward(y: Tensor, v: Tensor) -> Tensor:
        rows, channels = as_rows(y, 1).detach(), as_rows(v, 2).detach()
        return neuralsort_transposed(rows, channels).view(v.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        y, v = ctx.saved_tensors
        if not (torch.is_grad_enabled() or is_transformed(g)):
            rows = as_rows(y, 1)
            flat_v, flat_g = (as_rows(t, 2) for t in (v, g))
            # sum(g * P^T v) = sum(v * P g): the roles of channels and cotangent are swapped.
            grad_y, _ = neuralsort_mean_gradient(rows, flat_g, flat_v)
            return grad_y.view(y.shape), neuralsort_mean(rows, flat_g).view(v.shape)
        p = neuralsort_matrix(y)
        return _logit_cotangent(_softmax_product(p, v.transpose(-1, -2) @ g)), g @ p.transpose(-1, -2)

    @staticmethod
    def jvp(ctx: Any, dy: Tensor | None, dv: Tensor | None) -> Tensor:
        with nested_forward_mode():
            y, v = primals(ctx.saved_tensors)
            p = neuralsort_matrix(y)
            out = torch.zeros_like(v) if dv is None else dv @ p
            if dy is not None:
                out = out + v @ _softmax_product(p, _logit_tangent(y, dy))
            return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], y: Tensor, v: Tensor) -> Any:
        return _NeuralSortTransposed.apply(*batched(info.batch_size, in_dims, y, v)), 0
