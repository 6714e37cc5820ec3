"""What every elementwise relaxation does with ``temperature`` and ``hard``, said once."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from pullback.core.checks import check_floating, check_positive
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Tensor

__all__ = ["Operand", "as_tensor", "is_hard", "relax", "widen"]

_COMPUTED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}

Operand = Tensor | float | int
"""A second operand as torch takes it: a tensor or a Python number."""


def is_hard(temperature: float, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether ``temperature`` asks for the hard operation; refuse a negative or non-finite one.

    Below 16 times the smallest normal number of ``dtype`` the quotient ``x / temperature`` has an infinite slope, so
    such a temperature is 0.

    Args:
        temperature: finite, >= 0.
        dtype: the floating type that the relaxation computes in.

    Raises:
        TypeError: ``temperature`` is not a number.
        ValueError: ``temperature`` is negative or not finite.

    Example:
        >>> is_hard(0.0), is_hard(1e-30)
        (True, False)
    """
    check_positive("temperature", temperature, zero=True)
    return temperature < 16 * torch.finfo(dtype).tiny


def widen(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``x`` in float32 if it is of half precision, else ``x`` itself.

    Example:
        >>> widen(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(_COMPUTED.get(x.dtype, x.dtype))


def as_tensor(value: Operand, like: Tensor) -> Tensor:
    """Return a second operand as a tensor that can be computed with next to ``like``: floating, at least float32.

    Example:
        >>> as_tensor(2, torch.zeros(3))
        tensor(2.)
    """
    if isinstance(value, Tensor):
        return widen(value) if value.is_floating_point() else value.to(like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def relax(
    operation: Callable[..., Tensor],
    soft: Callable[..., Tensor],
    *operands: Any,
    temperature: float,
    hard: bool,
    name: str = "x",
) -> Tensor:
    """Return ``soft(*operands)``, at temperature 0 ``operation(*operands)``, with ``hard`` its values, soft gradients.

    Args:
        operation: the hard operation.
        soft: its relaxation; gets half-precision operands in float32.
        *operands: the first is a floating tensor and decides about the precision.
        temperature: >= 0.
        hard: forward ``operation``, bit for bit, backward ``soft``.
        name: what the first operand is called in errors.

    Returns:
        A tensor of the dtype of ``operation``'s result.

    Raises:
        TypeError: the first operand is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite.

    Example:
        >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
        >>> y = relax(torch.round, lambda x: 2 * x, x, temperature=1.0, hard=True)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 2.0], [2.0, 2.0])
    """
    first = check_floating(name, operands[0])
    if is_hard(temperature, _COMPUTED.get(first.dtype, first.dtype)):
        return operation(*operands)
    wide = [widen(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in operands]
    relaxed = soft(*wide)
    pairs = [torch.result_type(first, other) for other in operands[1:] if isinstance(other, Tensor)]
    relaxed = relaxed.to(reduce(torch.promote_types, pairs) if pairs else first.dtype)
    return replace_gradient(operation(*operands).detach(), relaxed) if hard else relaxed
