"""Levels of quantiles and of coverage, and data of those who have arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pullback.core.checks import check_floating
from pullback.core.shapes import Tensor
from pullback.core.transforms import can_look


def check_level(name: str, value: Any, *, ndim: int | None = None) -> None:
    """Refuse what is neither a number nor a floating tensor (of ``ndim`` dimensions) in (0, 1)."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number or a floating tensor in (0, 1), got {type(value).__name__}")
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
        return
    check_floating(name, value)
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(value.shape)}")
    if can_look(value) and not bool(((value > 0) & (value < 1)).all()):
        raise ValueError(f"{name} must be in (0, 1), got {value.detach().flatten().tolist()[:8]}")


def check_increasing_levels(name: str, levels: Any) -> Tensor:
    """Return levels ``[k]`` if they increase within (0, 1), else raise."""
    check_level(name, check_floating(name, levels), ndim=1)
    if can_look(levels) and not bool((levels[1:] > levels[:-1]).all()):
        raise ValueError(f"{name} must increase, got {levels.detach().tolist()[:8]}")
    return levels


def check_known(name: str, value: Tensor) -> None:
    """Refuse NaN; infinities are values."""
    if can_look(value) and bool(value.isnan().any()):
        index = tuple(int(i) for i in value.isnan().nonzero()[0])
        raise ValueError(f"{name} must not be NaN, got it at index {index}")


def from_array(name: str, value: Any) -> Tensor:
    """Return a floating tensor of a tensor, an array, a column of a data frame or a list of numbers."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be a tensor or an array of numbers, got {type(value).__name__}")
        value = torch.from_numpy(array.astype(array.dtype if array.dtype.kind == "f" else np.float64))
    return check_floating(name, value)


def as_given(value: Tensor, given: Any) -> Any:
    """Return ``value`` as a tensor where ``given`` is one, else as an array."""
    return value if isinstance(given, Tensor) else value.detach().numpy(force=True)
