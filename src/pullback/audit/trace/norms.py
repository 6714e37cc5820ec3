"""Size of a tensor: its norm, which neither underflows nor overflows, and whether it is finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["checked", "finite", "norm_of", "vanished"]

_SAFE = {torch.float64: (1e-140, 1e150)}
"""Norms whose squares kept their digits; between these no second look is needed. Other types are summed in float32."""
_SAFE_FLOAT32 = (1e-15, 1e18)


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
    """Return :func:`finite` and :func:`norm_of` of a dense tensor, in one pass where all is well."""
    norm = norm_of(tensor)
    return ("", norm) if math.isfinite(norm) else (finite(tensor), norm)


def norm_of(tensor: Tensor) -> float:
    """Return the Euclidean norm, scaled by the largest entry where squares would leave the range of numbers.

    Example:
        >>> [f"{norm_of(torch.tensor([3.0, 4.0]) * scale):.4g}" for scale in (1e-30, 1.0, 1e30)]
        ['5e-30', '5', '5e+30']
    """
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if not tensor.numel():
        return 0.0
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float32 if half else None))
    low, high = _SAFE.get(tensor.dtype, _SAFE_FLOAT32)
    if low <= norm <= high or math.isnan(norm):
        return norm
    largest = float(tensor.abs().amax())
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
    return largest * float(torch.linalg.vector_norm(wide / largest))


def vanished(norm: float, dtype: torch.dtype) -> bool:
    """Whether a norm is so close to the smallest number of a type that its products are zero by rounding alone."""
    return norm < 1e3 * torch.finfo(dtype).tiny
