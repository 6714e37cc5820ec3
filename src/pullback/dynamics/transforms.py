"""Decisions of a loop for all samples of a transform of ``torch.func``."""

from __future__ import annotations

from torch import Tensor

from pullback.core.transforms import physical

__all__ = ["every", "some"]


def every(mask: Tensor) -> bool:
    """Whether ``mask`` holds everywhere, below every transform of ``torch.func``: the loop decides for all samples."""
    return bool(physical(mask).all())


def some(mask: Tensor) -> bool:
    """Whether ``mask`` holds anywhere, below every transform of ``torch.func``."""
    return bool(physical(mask).any())
