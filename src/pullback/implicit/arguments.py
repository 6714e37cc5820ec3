"""Checks of arguments that several solvers, projections and proxes share."""

from __future__ import annotations

from typing import Any

import torch

from pullback.core.checks import check_positive
from pullback.core.shapes import Tensor
from pullback.core.transforms import physical

__all__ = ["broadcast", "check_function", "check_number", "positive"]


def check_function(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def check_number(name: str, value: Any, *, zero: bool = False) -> None:
    """Raise unless ``value`` is a number > 0 (>= 0 with ``zero``) and no tensor, which would get no gradient."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a number, got a tensor, which would get no gradient; pass its .item()")
    check_positive(name, value, zero=zero)


def positive(name: str, value: Any, like: Tensor, shape: tuple[int, ...], *, zero: bool = False) -> Tensor:
    """Return a parameter that must be finite and > 0 (>= 0 with ``zero``) as :func:`broadcast` does, or raise."""
    if isinstance(value, Tensor):
        tensor = broadcast(name, value, like, shape)
        if not torch.compiler.is_compiling():
            check_positive(name, physical(value.detach()), zero=zero)
        return tensor
    check_positive(name, value, zero=zero)
    return broadcast(name, value, like, shape)


def broadcast(name: str, value: Any, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a parameter as a tensor in the type of ``like``, with its gradient.

    Args:
        name: of the parameter.
        value: a number, or a real tensor that broadcasts against ``shape``.
        like: whose dtype and device are taken.
        shape: of what the parameter belongs to.

    Raises:
        TypeError: ``value`` is neither a number nor a real tensor.
        ValueError: it does not broadcast.
    """
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be a number or a real tensor, got {value.dtype}")
    fits = value.ndim <= len(shape) and all(
        n in (1, m) for n, m in zip(reversed(value.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} must be a number or a tensor that broadcasts against {tuple(shape)}, got {tuple(value.shape)}"
        )
    return value.to(dtype=like.dtype, device=like.device)
