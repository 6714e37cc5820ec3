"""Random numbers are drawn on the generator's device, so that one seed gives the same draws on every device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["drawing_device", "unit_vectors"]


def drawing_device(generator: torch.Generator | None, like: Tensor | torch.device) -> torch.device:
    """Return the device on which to draw numbers that ``like`` will meet; the caller moves them there.

    torch refuses a generator of another device than the tensor that it fills. A block takes any generator: it draws
    where the generator lives, ``torch.randn(shape, device=drawing_device(generator, x), generator=generator)``, and
    moves the draws ``.to(x.device)``. Without a generator, that is the same device.

    Args:
        generator: of the caller, or ``None`` for torch's own.
        like: the tensor that the draws meet, or its device.

    Returns:
        The generator's device, or that of ``like``.

    Example:
        >>> drawing_device(torch.Generator("cpu"), torch.device("cuda"))
        device(type='cpu')
        >>> drawing_device(None, torch.zeros(2))
        device(type='cpu')
    """
    if generator is not None:
        return generator.device
    return like.device if isinstance(like, Tensor) else like


def unit_vectors(count: int, dim: int, *, generator: torch.Generator | None, like: Tensor | torch.device) -> Tensor:
    """Return independent directions, uniform on the sphere: ``[count, dim]`` float64, on the device of ``like``.

    Example:
        >>> unit_vectors(5, 3, generator=None, like=torch.device("cpu")).square().sum(-1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    device = drawing_device(generator, like)
    drawn = torch.randn(count, dim, dtype=torch.float64, device=device, generator=generator)
    return (drawn / drawn.norm(dim=-1, keepdim=True)).to(like.device if isinstance(like, Tensor) else like)
