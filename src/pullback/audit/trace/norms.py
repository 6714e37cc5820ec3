"""Size of a tensor: its norm, and whether it is finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["checked", "finite", "norm_of"]


def finite(tensor: Tensor) -> str:
    """Return ``""`` if all values are finite, else ``"nan"`` (if there is one) or ``"inf"``."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return ""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if math.isfinite(abs(tensor.detach().sum().item())):
        return ""
    if bool(tensor.isnan().any()):
        return "nan"
    return "inf" if bool(tensor.isinf().any()) else ""


def checked(tensor: Tensor) -> tuple[str, float]:
    """Return :func:`finite` and the Euclidean norm of a dense tensor, in one pass where all is well."""
    norm = float(torch.linalg.vector_norm(tensor.detach())) if tensor.numel() else 0.0
    return ("", norm) if math.isfinite(norm) else (finite(tensor), norm)


def norm_of(tensor: Tensor) -> float:
    """Return the Euclidean norm, in float64 where the squares of finite values overflow."""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if not tensor.numel():
        return 0.0
    norm = float(torch.linalg.vector_norm(tensor))
    if math.isfinite(norm) or finite(tensor):
        return norm
    return float(torch.linalg.vector_norm(tensor.double()))
