"""Transforms of torch.func as the solvers meet them: whether one is under way, decisions for all of its samples."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["every", "physical", "some", "transformed"]


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is under way."""
    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def every(mask: Tensor) -> bool:
    """Whether ``mask`` holds everywhere, below every transform of ``torch.func``: the loop decides for all samples."""
    return bool(physical(mask).all())


def some(mask: Tensor) -> bool:
    """Whether ``mask`` holds anywhere, below every transform of ``torch.func``."""
    return bool(physical(mask).any())


def physical(x: Tensor) -> Tensor:
    """The tensor below every transform of ``torch.func``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x
