"""Checks of what goes into convolutions, norms and pools, by the names of the arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_integer, check_same_dtype
from pullback.core.transforms import transform_running

__all__ = ["Sizes", "check_convolution", "check_output", "check_parameters", "sizes", "theirs"]

Sizes = int | Sequence[int]


def sizes(name: str, size: Sizes, dims: int, low: int) -> tuple[int, ...]:
    """Return a size as one number >= ``low`` for each dimension, or raise."""
    each = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(each) == 1:
        each *= dims
    if len(each) != dims:
        raise ValueError(f"{name} must be a number or {dims} of them, got {size}")
    return tuple(check_integer(name, one, low) for one in each)


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *, transposed: bool) -> int:
    """Check what goes into a convolution and return its dimensions of space."""
    check_floating("x", x)
    check_floating("weight", weight)
    check_integer("groups", groups, 1)
    if weight.ndim not in (3, 4, 5) or 0 in weight.shape or weight.shape[0] % groups:
        shape = tuple(weight.shape)
        raise ValueError(f"weight must have 3 to 5 dimensions, the first a multiple of {groups} groups, got {shape}")
    if not torch.is_autocast_enabled(x.device.type):
        check_same_dtype(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    dims = weight.ndim - 2
    inner, outer = weight.shape[0], weight.shape[1] * groups
    channels, out = (inner, outer) if transposed else (outer, inner)
    if x.ndim not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels or 0 in x.shape[-dims:]:
        wanted = f"[*batch, {channels}, *space] with {dims} dimensions of space"
        raise ValueError(f"x must be {wanted} for weight {tuple(weight.shape)}, got {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (out,):
        raise ValueError(f"bias must have shape ({out},), got {tuple(bias.shape)}")
    return dims


def check_output(last: list[int], x: Tensor) -> None:
    """Raise unless the last places of the kernel in ``x`` are at 0 or beyond."""
    if any(size < 0 for size in last):
        raise ValueError(f"x must be at least as large as the kernel, less the padding, got shape {tuple(x.shape)}")


def check_parameters(x: Tensor, shape: tuple[int, ...], **parameters: Tensor | None) -> None:
    """Check statistics and weights of a norm: their shape, and a type that torch mixes with that of ``x``."""
    allowed = {x.dtype} | ({torch.float32} if x.dtype in (torch.float16, torch.bfloat16) else set())
    if torch.is_autocast_enabled(x.device.type):
        allowed.add(torch.float32)
    for name, value in parameters.items():
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        if value is not None and value.dtype not in allowed:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {value.dtype}")


def theirs(*tensors: Tensor | None) -> bool:
    """Return whether torch's own function serves: nothing is kept, or what is kept is not ours to say."""
    if torch.compiler.is_compiling() or transform_running() or not torch.is_grad_enabled():
        return True
    return not any(t.requires_grad for t in tensors if t is not None)
