"""Signs of a tensor in a bit each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["pack_bits", "unpack_bits"]


def pack_bits(x: Tensor) -> Tensor:
    """Return whether each element is not ``<= 0`` (so NaN counts), eight to a byte: ``[ceil(n / 8)]`` uint8.

    Example:
        >>> pack_bits(torch.tensor([1.0, -1.0, 0.0, 2.0]))
        tensor([144], dtype=torch.uint8)
    """
    flat = x.detach().reshape(-1)
    if flat.device.type == "cpu":
        wide = flat.dtype in (torch.float32, torch.float64)  # whose comparisons are fast in numpy
        array = ~(flat.resolve_neg().numpy() <= 0) if wide else (~(flat <= 0)).numpy()
        return torch.from_numpy(np.packbits(array))
    signs = torch.nn.functional.pad((~(flat <= 0)).to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    return (signs << _places(flat.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, like: Tensor) -> Tensor:
    """Return what :func:`pack_bits` packed as numbers 0 and 1, in the shape and type of ``like``, in new memory.

    Example:
        >>> unpack_bits(torch.tensor([144], dtype=torch.uint8), torch.zeros(2, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    if bits.device.type == "cpu":
        signs = torch.from_numpy(np.unpackbits(bits.numpy(), count=like.numel()))
    else:
        signs = ((bits[:, None] >> _places(bits.device)) & 1).view(-1)[: like.numel()]
    return signs.view(like.shape).to(like.dtype)


def _places(device: torch.device) -> Tensor:
    """Places of the bits in a byte, the first element in the highest, as numpy has it."""
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
