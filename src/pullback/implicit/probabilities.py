"""The check of probabilities that blocks on laws of finitely many outcomes share."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.transforms import can_look

__all__ = ["check_law"]


def check_law(name: str, law: Tensor) -> None:
    """Raise ``ValueError`` unless entries are >= 0 and sum to one along the last dimension, up to rounding.

    Example:
        >>> check_law("law", torch.tensor([0.5, 0.25]))
        Traceback (most recent call last):
        ValueError: law must sum to 1 along the last dimension, got 0.75
    """
    if not can_look(law):
        return
    if not bool((law >= 0).all()):
        raise ValueError(f"{name} must be >= 0 everywhere, got minimum {law.min().item()}")
    total = law.detach().double().sum(-1)
    off = (total - 1).abs()
    if bool((off > max(1e-3, 16 * torch.finfo(law.dtype).eps)).any()):
        worst = total.flatten()[off.flatten().argmax()].item()
        raise ValueError(f"{name} must sum to 1 along the last dimension, got {worst:.6g}")
