"""Standard normal draws of a generator that may live on another device than what they meet."""

from __future__ import annotations

import torch

from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor

__all__ = ["standard_normal"]


def standard_normal(
    *shape: int,
    generator: torch.Generator | None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "..."]:
    """Return draws of N(0, 1) on ``device``, torch's default where ``None``: the same of one seed on every device.

    Example:
        >>> a, b = (standard_normal(2, generator=torch.Generator().manual_seed(0)) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """
    home = torch.get_default_device() if device is None else device
    return torch.randn(shape, generator=generator, dtype=dtype, device=drawing_device(generator, home)).to(home)
