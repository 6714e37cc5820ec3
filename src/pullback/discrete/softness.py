"""What every elementwise relaxation does with ``temperature`` and ``hard``, said once."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from pullback.core.checks import check_floating, check_scalar
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor

__all__ = ["Operand", "as_tensor", "broadcast", "decide", "is_hard", "quotient", "relax", "softmax", "widen"]

_COMPUTED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}

Operand = Tensor | float | int
"""A second operand as torch takes it: a tensor or a Python number."""


def is_hard(temperature: Scalar, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether ``temperature`` asks for the hard operation; refuse what is no temperature.

    Below 16 times the smallest normal number of ``dtype`` the quotient ``x / temperature`` has an infinite slope, so
    such a temperature is 0. One whose value is not known yet (see :func:`~pullback.core.checks.check_scalar`) is not.

    Args:
        temperature: finite, >= 0; a number or a floating tensor without dimensions.
        dtype: the floating type that the relaxation computes in.

    Raises:
        TypeError: ``temperature`` is neither a number nor a floating tensor.
        ValueError: ``temperature`` is negative or not finite, or has dimensions.

    Example:
        >>> is_hard(0.0), is_hard(1e-30), is_hard(torch.tensor(0.0))
        (True, False, True)
    """
    number = check_scalar("temperature", temperature, zero=True)
    return number is not None and number < 16 * torch.finfo(dtype).tiny


def widen(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``x`` in float32 if it is of half precision, else ``x`` itself.

    Example:
        >>> widen(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(_COMPUTED.get(x.dtype, x.dtype))


def as_tensor(value: Operand, like: Tensor, name: str = "other") -> Tensor:
    """Return a second operand as a tensor that can be computed with next to ``like``: floating, at least float32.

    Raises:
        TypeError: ``value`` is neither a real tensor nor a number.

    Example:
        >>> as_tensor(2, torch.zeros(3))
        tensor(2.)
    """
    _check_operand(name, value)
    if isinstance(value, Tensor):
        return widen(value) if value.is_floating_point() else value.to(like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def quotient(x: Float[Tensor, "*shape"], temperature: Scalar) -> Float[Tensor, "*shape"]:
    """Return ``x / temperature``; where that is not finite, with derivative 0 and not NaN in a learned temperature.

    Example:
        >>> t = torch.tensor(0.5, requires_grad=True)
        >>> torch.sigmoid(quotient(torch.tensor([1.0, torch.inf]), t)).sum().backward()
        >>> round(t.grad.item(), 4)
        -0.42
    """
    if not isinstance(temperature, Tensor):
        return x / temperature
    temperature = temperature.to(x)
    value = (x / temperature).detach()
    finite = (value / temperature.detach()).isfinite()  # the slope in the temperature is, too
    return torch.where(finite, torch.where(finite, x, 0.0) / temperature, value)


def softmax(x: Float[Tensor, "..."], dim: int, temperature: Scalar) -> Float[Tensor, "..."]:
    """Return ``softmax(x / temperature)``, for every temperature > 0 and every size of ``x``; ``inf`` takes all.

    Example:
        >>> softmax(torch.tensor([1e30, 0.0]), 0, 1e-37).tolist()
        [1.0, 0.0]
    """
    if not x.numel() or (not isinstance(temperature, Tensor) and temperature == 1):
        return torch.softmax(x, dim)
    # Less the largest the quotient is at most 0: it overflows to -inf alone, whose weight is 0 indeed.
    return torch.softmax(quotient(x - x.detach().amax(dim, keepdim=True), temperature), dim)


def broadcast(**operands: Any) -> tuple[int, ...]:
    """Return the shape that the operands which are tensors (or shapes) have in common.

    Raises:
        TypeError: an operand is neither a real tensor nor a number.
        ValueError: two shapes do not broadcast; the first and the offending one are named.

    Example:
        >>> broadcast(x=torch.zeros(2), other=torch.zeros(3))
        Traceback (most recent call last):
        ValueError: other must broadcast with x, got (3,) and (2,)
    """
    shape: tuple[int, ...] | None = None
    first = ""
    for name, operand in operands.items():
        if shape is not None and type(operand) in (float, int):
            continue
        if not isinstance(operand, torch.Size):
            _check_operand(name, operand)
            if not isinstance(operand, Tensor):
                continue
        came = operand if isinstance(operand, torch.Size) else operand.shape
        if shape is None:
            shape, first = came, name
        elif came != shape:
            if any(m != n and 1 not in (m, n) for m, n in zip(shape[::-1], came[::-1], strict=False)):
                raise ValueError(f"{name} must broadcast with {first}, got {tuple(came)} and {tuple(shape)}")
            shape = torch.broadcast_shapes(shape, came)
    return tuple(shape or ())


def relax(
    operation: Callable[..., Tensor],
    soft: Callable[..., Tensor],
    *,
    temperature: Scalar,
    hard: bool,
    optional: tuple[str, ...] = (),
    **operands: Any,
) -> Tensor:
    """Return ``soft(*operands, temperature)``, at temperature 0 ``operation(*operands)``, with ``hard`` its values.

    Args:
        operation: the hard operation.
        soft: its relaxation; gets half-precision operands in float32.
        temperature: >= 0.
        hard: forward ``operation``, bit for bit, backward ``soft``.
        optional: the operands that may be ``None``.
        **operands: as in :func:`decide`.

    Returns:
        A tensor of the dtype of ``operation``'s result.

    Raises:
        TypeError: the first operand is not a floating tensor, another neither a tensor nor a number.
        ValueError: ``temperature`` is negative, not finite or has dimensions, or the operands do not broadcast.

    Example:
        >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
        >>> y = relax(torch.round, lambda x, t: 2 * x / t, temperature=1.0, hard=True, x=x)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 2.0], [2.0, 2.0])
    """
    name = next(iter(operands))
    first = check_floating(name, operands[name])
    if is_hard(temperature, _COMPUTED.get(first.dtype, first.dtype)):
        _check_operands(operands, optional)
        return operation(*operands.values())
    return decide(operation, lambda *values: soft(*values, temperature), hard=hard, optional=optional, **operands)


def decide(
    operation: Callable[..., Tensor],
    soft: Callable[..., Tensor],
    *,
    hard: bool,
    optional: tuple[str, ...] = (),
    **operands: Any,
) -> Tensor:
    """Return ``soft(*operands)``, a relaxation without temperature, with ``hard`` the values of ``operation``.

    Args:
        operation, soft, hard, optional: as in :func:`relax`.
        **operands: under the names that errors call them by: the first is a floating tensor and decides about the
            precision, the others are what broadcasts with it: tensors, numbers or, if optional, ``None``.

    Example:
        >>> decide(torch.logical_not, lambda p: 1 - p, hard=False, p=torch.tensor([0.25]))
        tensor([0.7500])
    """
    name = next(iter(operands))
    first = check_floating(name, operands[name])
    _check_operands(operands, optional)
    values = list(operands.values())
    relaxed = soft(*[widen(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in values])
    pairs = [torch.result_type(first, other) for other in values[1:] if isinstance(other, Tensor)]
    relaxed = relaxed.to(reduce(torch.promote_types, pairs) if pairs else first.dtype)
    return replace_gradient(operation(*values).detach(), relaxed) if hard else relaxed


def _check_operands(operands: dict[str, Any], optional: tuple[str, ...]) -> None:
    if len(operands) > 1:
        broadcast(**{name: a for name, a in operands.items() if a is not None or name not in optional})


def _check_operand(name: str, value: Any) -> None:
    if isinstance(value, Tensor) and not value.is_complex():
        return
    if not isinstance(value, int | float):
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a real tensor or a number, got {came}")
