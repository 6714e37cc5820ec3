"""Autograd helpers shared by the families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import transform_running

__all__ = ["nested_forward_mode", "primals", "replace_gradient"]


class _ReplaceGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, cotangent

    @staticmethod
    def jvp(ctx: Any, hard_tangent: Tensor | None, soft_tangent: Tensor) -> Tensor:
        with nested_forward_mode():
            return soft_tangent.clone()


class _ReplaceGradientPlainly(torch.autograd.Function):
    """The same outside of transforms: torch binds the arguments of a separate ``setup_context`` anew at every call."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, cotangent


def replace_gradient(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the values of ``hard``, bit for bit, with the derivative of ``soft`` (straight-through).

    The usual ``soft + (hard - soft).detach()`` is off by rounding and NaN where both are infinite; this is exact.

    Args:
        hard: ``[*shape]`` the forward value; no gradient flows into it.
        soft: ``[*shape]`` of the same dtype; receives the whole cotangent.

    Returns:
        ``[*shape]`` a tensor equal to ``hard``.

    Raises:
        ValueError: the shapes or dtypes differ.

    Example:
        >>> x = torch.tensor([0.3, 1.7], requires_grad=True)
        >>> y = replace_gradient(x.detach().round(), x)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 2.0], [1.0, 1.0])

    References:
        Bengio, Leonard, Courville (2013), Estimating or propagating gradients through stochastic neurons.
    """
    if hard.shape != soft.shape or hard.dtype != soft.dtype:
        raise ValueError(
            f"hard and soft must agree, got {tuple(hard.shape)} {hard.dtype} and {tuple(soft.shape)} {soft.dtype}"
        )
    general = torch.compiler.is_compiling() or transform_running()
    if not general and type(soft) is Tensor and soft.stride() == hard.stride() and _is_dense(soft):
        # A copy with other numbers: several times faster than a function of Python's.
        copy = soft.clone()
        copy.detach().copy_(hard.detach())
        return copy
    result: Tensor = (_ReplaceGradient if general else _ReplaceGradientPlainly).apply(hard.detach(), soft)
    return result


def _is_dense(x: Tensor) -> bool:
    return x.layout is torch.strided and x.is_contiguous()


def nested_forward_mode() -> Any:
    """Return a context for the body of a ``jvp`` rule, so that forward derivatives of it exist.

    torch switches forward mode off inside a rule, which would silently make the outer derivative of a nested forward
    derivative zero. Saved tensors then still carry the tangent of the level being differentiated: see :func:`primals`.
    """
    return torch.autograd.forward_ad._set_fwd_grad_enabled(True)


def primals(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return saved tensors without the tangent of the level that is being differentiated (outer levels stay)."""
    return tuple(torch.autograd.forward_ad.unpack_dual(t).primal for t in tensors)
