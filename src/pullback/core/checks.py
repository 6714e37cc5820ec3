"""Argument checks: before any work is done, naming the argument, what came and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.core.choices import check_choice, nearest
from pullback.core.transforms import physical

__all__ = [
    "check_broadcast",
    "check_callable",
    "check_choice",
    "check_dim",
    "check_finite",
    "check_floating",
    "check_integer",
    "check_positive",
    "check_range",
    "check_same_dtype",
    "check_scalar",
    "check_shape",
    "check_tensor",
    "nearest",
]


def check_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a tensor, else raise ``TypeError``.

    Example:
        >>> check_tensor("x", [1.0])
        Traceback (most recent call last):
        TypeError: x must be a torch.Tensor, got list
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def check_callable(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` can be called.

    Example:
        >>> check_callable("step", 3)
        Traceback (most recent call last):
        TypeError: step must be callable, got int
    """
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")


def check_floating(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a floating tensor, else raise ``TypeError``.

    Example:
        >>> check_floating("x", torch.tensor([1, 2]))
        Traceback (most recent call last):
        TypeError: x must be a floating tensor, got torch.int64
    """
    if not check_tensor(name, value).is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
    return value


def check_integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return ``value`` if it is an integer in ``low..high`` (``None``: no bound), else raise.

    ``TypeError`` for what is no integer, booleans and whole floats included; ``ValueError`` outside the bounds.

    Example:
        >>> check_integer("k", 4, 0, 3)
        Traceback (most recent call last):
        ValueError: k must be in 0..3, got 4
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = (
            f"an integer >= {low}" if high is None else f"an integer <= {high}" if low is None else f"in {low}..{high}"
        )
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return value


def check_positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Raise ``ValueError`` unless the number (or every element of the tensor) is finite and > 0 (>= 0 with ``zero``).

    Example:
        >>> check_positive("temperature", -1.0)
        Traceback (most recent call last):
        ValueError: temperature must be > 0, got -1.0
    """
    bound = ">= 0" if zero else "> 0"
    if isinstance(value, Tensor):
        good = torch.isfinite(value) & ((value >= 0) if zero else (value > 0))
        if not bool(good.all()):
            raise ValueError(f"{name} must be {bound} everywhere, got minimum {value.min().item()}")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number {bound}, got {type(value).__name__}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_scalar(name: str, value: Any, *, zero: bool = False) -> float | None:
    """Check a parameter that is a number or a floating tensor without dimensions, which may want a gradient.

    Args:
        name: of the parameter.
        value: finite, > 0 (>= 0 with ``zero``).
        zero: whether 0 is allowed.

    Returns:
        The number; ``None`` for a tensor whose value is not one number yet: in a compiled graph, mapped over by vmap.

    Raises:
        TypeError: ``value`` is neither a number nor a floating tensor.
        ValueError: ``value`` has dimensions, or is out of range.

    Example:
        >>> check_scalar("temperature", torch.tensor(0.5))
        0.5
        >>> check_scalar("temperature", torch.ones(3))
        Traceback (most recent call last):
        ValueError: temperature must be a number or a tensor without dimensions, got shape (3,)
    """
    if not isinstance(value, Tensor):
        check_positive(name, value, zero=zero)
        return float(value)
    check_floating(name, value)
    if value.ndim:
        raise ValueError(f"{name} must be a number or a tensor without dimensions, got shape {tuple(value.shape)}")
    if torch.compiler.is_compiling():
        return None
    numbers = physical(value.detach()).detach().reshape(-1).tolist()
    for number in numbers:
        check_positive(name, number, zero=zero)
    return numbers[0] if len(numbers) == 1 else None


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ``ValueError`` unless ``low <= value <= high``.

    Example:
        >>> check_range("gamma", 2.0, 1e-5, 1.0)
        Traceback (most recent call last):
        ValueError: gamma must be in [1e-05, 1.0], got 2.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number in [{low}, {high}], got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def check_dim(x: Tensor, dim: int, name: str = "dim") -> int:
    """Return ``dim`` as a non-negative index of a dimension of ``x``, else raise ``IndexError`` as torch does.

    Example:
        >>> check_dim(torch.zeros(2, 3), -1)
        1
    """
    check_integer(name, dim)
    rank = max(x.ndim, 1)
    if not -rank <= dim < rank:
        raise IndexError(f"{name} must be in [{-rank}, {rank - 1}] for shape {tuple(x.shape)}, got {dim}")
    return dim % rank


def check_shape(name: str, value: Tensor, expected: tuple[int | None, ...]) -> None:
    """Raise ``ValueError`` unless the trailing dimensions of ``value`` are ``expected`` (``None`` allows any size).

    Example:
        >>> check_shape("points", torch.zeros(4, 2), (None, 3))
        Traceback (most recent call last):
        ValueError: points must have shape (..., any, 3), got (4, 2)
    """
    tail = tuple(value.shape[-len(expected) :]) if expected else ()
    if len(tail) != len(expected) or any(e is not None and e != s for e, s in zip(expected, tail, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} must have shape (..., {wanted}), got {tuple(value.shape)}")


def check_same_dtype(**tensors: Tensor) -> None:
    """Raise ``TypeError`` unless the named tensors have one dtype, ``ValueError`` unless they are on one device.

    Example:
        >>> check_same_dtype(matrix=torch.zeros(1), right=torch.zeros(1, dtype=torch.float64))
        Traceback (most recent call last):
        TypeError: matrix and right must have the same dtype, got torch.float32 and torch.float64
    """
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        came = " and ".join(str(tensor.dtype) for tensor in tensors.values())
        raise TypeError(f"{' and '.join(tensors)} must have the same dtype, got {came}")
    if len({tensor.device for tensor in tensors.values()}) > 1:
        came = " and ".join(str(tensor.device) for tensor in tensors.values())
        raise ValueError(f"{' and '.join(tensors)} must be on the same device, got {came}")


def check_broadcast(**shapes: tuple[int, ...]) -> torch.Size:
    """Return the shape to which the named shapes broadcast, else raise ``ValueError``.

    Example:
        >>> check_broadcast(matrix=(3,), right=(2, 1))
        torch.Size([2, 3])
        >>> check_broadcast(matrix=(3,), right=(2,))
        Traceback (most recent call last):
        ValueError: matrix and right must have shapes that broadcast, got (3,) and (2,)
    """
    if len(set(shapes.values())) == 1:  # torch takes longer to see that
        return torch.Size(next(iter(shapes.values())))
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        came = " and ".join(str(tuple(shape)) for shape in shapes.values())
        raise ValueError(f"{' and '.join(shapes)} must have shapes that broadcast, got {came}") from None


def check_finite(name: str, value: Tensor) -> None:
    """Raise ``ValueError`` naming the first position where ``value`` is NaN or infinite.

    Example:
        >>> check_finite("x", torch.tensor([0.0, float("nan")]))
        Traceback (most recent call last):
        ValueError: x must be finite, got nan at index (1,)
    """
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name} must be finite, got {value[index].item()} at index {index}")
