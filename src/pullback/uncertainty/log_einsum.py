"""Matrix products of numbers that are known by their logarithms."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["log_einsum_exp"]

_LOST = 1e-30
"""Sums below it, in parts of the largest factors, may have lost terms to underflow of float32."""


def log_einsum_exp(
    log_weights: Float[Tensor, "*#batch n m"], log_x: Float[Tensor, "*#batch rows m"]
) -> Float[Tensor, "*batch rows n"]:
    r"""Return :math:`y_{bi}=\log\sum_j\exp(W_{ij}+x_{bj})`: a matrix product of exponentials, itself a logarithm.

    The largest exponent of each row of W and of x is taken out, one matrix product does the rest: n m rows
    multiplications, and exponentials of W and x alone. Where that underflows, since the largest exponents do not meet,
    all n m rows exponents are formed.

    Args:
        log_weights: ``[*batch, n, m]`` W, -inf for a factor of 0.
        log_x: ``[*batch, rows, m]`` x, the same.

    Returns:
        ``[*batch, rows, n]``, -inf where all terms are 0 (with a derivative of 0). Half precision is computed in
        single.

    Raises:
        TypeError: the arguments are no floating tensors of one dtype.
        ValueError: shapes do not fit, or m is 0.

    Example:
        >>> log_einsum_exp(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[-1000.0, -1000.0]]))
        tensor([[-1000.]])

    References:
        Peharz, Lang, Vergari, Stelzner, Molina, Trapp, Van den Broeck, Kersting, Ghahramani (2020), Einsum networks,
        equation 4.
    """
    for name, value in (("log_weights", log_weights), ("log_x", log_x)):
        if check_floating(name, value).ndim < 2:
            raise ValueError(f"{name} must have shape [*batch, rows, m], got {tuple(value.shape)}")
    check_same_dtype(log_weights=log_weights, log_x=log_x)
    if log_weights.shape[-1] != log_x.shape[-1] or not log_x.shape[-1]:
        came = f"{tuple(log_weights.shape)} and {tuple(log_x.shape)}"
        raise ValueError(f"log_weights and log_x must end with the same m >= 1, got {came}")
    check_broadcast(log_weights=tuple(log_weights.shape[:-2]), log_x=tuple(log_x.shape[:-2]))
    wide = torch.promote_types(log_x.dtype, torch.float32)
    w, x = log_weights.to(wide), log_x.to(wide)
    w_top, x_top = _top(w), _top(x)
    if can_look(w) and can_look(x):
        product = (x - x_top).exp() @ (w - w_top).exp().mT
        if not product.numel() or bool(product.detach().amin() >= _LOST):
            return (product.log() + x_top + w_top.mT).to(log_x.dtype)
    return _all_terms(w, x).to(log_x.dtype)


def _all_terms(w: Tensor, x: Tensor) -> Tensor:
    terms = x.unsqueeze(-2) + w.unsqueeze(-3)
    top = _top(terms)
    total = (terms - top).exp().sum(-1)
    return torch.where(total == 0, -torch.inf, torch.where(total == 0, 1, total).log() + top.squeeze(-1))


def _top(x: Tensor) -> Tensor:
    """The largest entry of each row, without gradient; 0 where all are -inf."""
    top = x.detach().amax(-1, keepdim=True)
    return torch.where(top == -torch.inf, 0, top)
