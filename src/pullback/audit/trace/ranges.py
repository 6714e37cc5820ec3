"""The range of the argument that decides whether a singular operation meets its pole."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback.audit.trace import operations as ops
from pullback.audit.trace.private import unseen

__all__ = ["values_of"]


def values_of(name: str, args: Any) -> tuple[float, float, float] | None:
    """Return minimum, maximum and the value nearest to zero of the argument that decides, ``None`` without one."""
    place = ops.SINGULAR.get(name)
    value = args[place] if place is not None and len(args) > place else None
    if not isinstance(value, Tensor) or not value.numel() or not value.is_floating_point():
        return None
    with unseen():
        value = value.detach().flatten()
        low, high = value.aminmax()
        return float(low), float(high), float(value[value.abs().argmin()])
