"""Logic on probabilities, and what is done with a mask once it is one: select, fill, average, count.

Probabilities lie in [0, 1], up to a few units of rounding; others are refused, except where values cannot be looked at
(``torch.func`` transforms, ``torch.compile``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pullback.core.checks import check_choice, check_dim, check_floating, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.softness import Operand, as_tensor, broadcast, decide, widen

__all__ = [
    "all",
    "any",
    "count",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "masked_fill",
    "masked_mean",
    "where",
]

_NORMS = ("product", "minimum")
_Dims = int | tuple[int, ...] | None


def logical_and(
    p: Float[Tensor, "*shape"], q: Float[Tensor, "..."], *, method: str = "product", hard: bool = False
) -> Float[Tensor, "..."]:
    """Return the probability of both: ``p q`` of independent events, or ``min(p, q)``.

    Args:
        p: ``[*shape]`` probabilities.
        q: probabilities that broadcast with ``p``.
        method: ``"product"`` (smooth) or ``"minimum"`` (idempotent, with a kink where they are equal).
        hard: decide both at 1/2 first (a probability above it is true), with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``p`` and ``q``, in ``[0, 1]``.

    Raises:
        TypeError: ``p`` or ``q`` is not a floating tensor.
        ValueError: ``p`` or ``q`` is outside [0, 1], they do not broadcast, or ``method`` is unknown.

    Example:
        >>> logical_and(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.75]))
        tensor([0.2500, 0.7500])
    """
    return _logical(torch.logical_and, torch.mul, torch.minimum, p, q, method, hard)


def logical_or(
    p: Float[Tensor, "*shape"], q: Float[Tensor, "..."], *, method: str = "product", hard: bool = False
) -> Float[Tensor, "..."]:
    """Return the probability of at least one: ``p + q - p q`` of independent events, or ``max(p, q)``.

    Args:
        p, q, method, hard: as in :func:`logical_and`.

    Returns:
        As :func:`logical_and`.

    Raises:
        TypeError, ValueError: as :func:`logical_and`.

    Example:
        >>> logical_or(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.75]))
        tensor([0.7500, 1.0000])
    """
    return _logical(torch.logical_or, lambda p, q: p + (1 - p) * q, torch.maximum, p, q, method, hard)


def logical_xor(
    p: Float[Tensor, "*shape"], q: Float[Tensor, "..."], *, method: str = "product", hard: bool = False
) -> Float[Tensor, "..."]:
    """Return the probability of exactly one: ``p (1 - q) + q (1 - p)``, or ``max(min(p, 1 - q), min(q, 1 - p))``.

    Args:
        p, q, method, hard: as in :func:`logical_and`.

    Returns:
        As :func:`logical_and`.

    Raises:
        TypeError, ValueError: as :func:`logical_and`.

    Example:
        >>> logical_xor(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.75]))
        tensor([0.5000, 0.2500])
    """

    def fuzzy(p: Tensor, q: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(p, 1 - q), torch.minimum(q, 1 - p))

    return _logical(torch.logical_xor, lambda p, q: p * (1 - q) + q * (1 - p), fuzzy, p, q, method, hard)


def logical_not(p: Float[Tensor, "*shape"], *, hard: bool = False) -> Float[Tensor, "*shape"]:
    """Return the probability of the opposite, ``1 - p``.

    Args:
        p: ``[*shape]`` probabilities.
        hard: decide at 1/2 first, with the gradient -1.

    Returns:
        ``[*shape]`` in ``[0, 1]``.

    Raises:
        TypeError: ``p`` is not a floating tensor.
        ValueError: ``p`` is outside [0, 1].

    Example:
        >>> logical_not(torch.tensor([0.25, 1.0]))
        tensor([0.7500, 0.0000])
    """
    _check_probability("p", p)
    return decide(lambda p: (p <= 0.5).to(p.dtype), lambda p: 1 - p, hard=hard, p=p)


def all(
    p: Float[Tensor, "*shape"], dim: _Dims = None, keepdim: bool = False, *, method: str = "product", hard: bool = False
) -> Float[Tensor, "..."]:
    """Return the probability that all hold: the product (of independent events) or the minimum along ``dim``.

    Args:
        p: ``[*shape]`` probabilities. Nothing to hold gives 1.
        dim: one or several dimensions; all of them by default.
        keepdim: keep the reduced dimensions with size 1.
        method: ``"product"`` or ``"minimum"``, see :func:`logical_and`.
        hard: decide every one at 1/2 first, with the gradient of the relaxation.

    Returns:
        ``p`` without ``dim``, in ``[0, 1]``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``p`` is not a floating tensor.
        ValueError: ``p`` is outside [0, 1], or ``method`` is unknown.

    Example:
        >>> all(torch.tensor([[0.5, 0.5], [1.0, 0.5]]), dim=-1)
        tensor([0.2500, 0.5000])
    """
    check_choice("method", method, _NORMS)
    dims = _dims(_check_probability("p", p), dim, keepdim)

    def operation(p: Tensor) -> Tensor:
        return torch.all(p > 0.5, dims, keepdim).to(p.dtype)

    def soft(p: Tensor) -> Tensor:
        return _conjunction(p, dims, keepdim, method)

    return decide(operation, soft, hard=hard, p=p)


def any(
    p: Float[Tensor, "*shape"], dim: _Dims = None, keepdim: bool = False, *, method: str = "product", hard: bool = False
) -> Float[Tensor, "..."]:
    """Return the probability that at least one holds: ``1 - prod(1 - p)`` or the maximum along ``dim``.

    Args:
        p, dim, keepdim, method, hard: as in :func:`all`. None at all gives 0.

    Returns:
        As :func:`all`.

    Raises:
        IndexError, TypeError, ValueError: as :func:`all`.

    Example:
        >>> any(torch.tensor([[0.5, 0.5], [0.0, 0.5]]), dim=-1)
        tensor([0.7500, 0.5000])
    """
    check_choice("method", method, _NORMS)
    dims = _dims(_check_probability("p", p), dim, keepdim)

    def operation(p: Tensor) -> Tensor:
        return torch.any(p > 0.5, dims, keepdim).to(p.dtype)

    def soft(p: Tensor) -> Tensor:
        return 1 - _conjunction(1 - p, dims, keepdim, method)

    return decide(operation, soft, hard=hard, p=p)


def count(
    p: Float[Tensor, "*shape"], dim: _Dims = None, keepdim: bool = False, *, hard: bool = False
) -> Float[Tensor, "..."]:
    """Return the expected number of those that hold, ``sum(p)`` along ``dim``.

    Args:
        p, dim, keepdim: as in :func:`all`.
        hard: count those above 1/2, with the gradient 1.

    Returns:
        ``p`` without ``dim``.

    Raises:
        IndexError, TypeError, ValueError: as :func:`all`.

    Example:
        >>> count(torch.tensor([0.25, 1.0, 0.75])), count(torch.tensor([0.25, 1.0, 0.75]), hard=True)
        (tensor(2.), tensor(2.))
    """
    dims = _dims(_check_probability("p", p), dim, keepdim)

    def operation(p: Tensor) -> Tensor:
        return (p > 0.5).sum(dims, keepdim).to(p.dtype)

    return decide(operation, lambda p: p.sum(dims, keepdim), hard=hard, p=p)


def where(condition: Shaped[Tensor, "..."], x: Operand, other: Operand, *, hard: bool = False) -> Shaped[Tensor, "..."]:
    """Return the mean ``p x + (1 - p) other`` under the probability ``p`` that the condition holds.

    Where ``p`` is exactly 0 or 1 and one of the branches is infinite or NaN, the result is the other branch, and what
    is not chosen sends no NaN back (``torch.where`` with a product in place of the choice would: ``0 * inf``).

    Args:
        condition: probabilities, or booleans, for which this is ``torch.where``.
        x: a number or a tensor that broadcasts, taken where the condition holds.
        other: a number or a tensor that broadcasts, taken elsewhere.
        hard: take ``x`` where ``p > 1/2``, bit for bit, with the gradient of the mean.

    Returns:
        The broadcast shape of all three.

    Raises:
        TypeError: ``condition`` is neither floating nor boolean, a branch neither a tensor nor a number.
        ValueError: ``condition`` is outside [0, 1], or the shapes do not broadcast.

    Example:
        >>> where(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([torch.inf, 4.0, 4.0]), 0.0)
        tensor([0., 1., 4.])
    """
    certain = check_tensor("condition", condition).dtype == torch.bool
    if not certain:
        _check_probability("condition", condition)
    broadcast(condition=condition, x=x, other=other)
    if certain:
        return torch.where(condition, x, other)
    p = widen(condition)
    floats = [a.dtype for a in (x, other) if isinstance(a, Tensor) and a.is_floating_point()]
    chosen = torch.where(condition > 0.5, x, other)
    chosen = chosen if floats else chosen.to(condition.dtype)
    mean = _mix(p, as_tensor(x, p, "x"), as_tensor(other, p)).to(chosen.dtype)
    return replace_gradient(chosen.detach(), mean) if hard else mean


def masked_fill(
    x: Float[Tensor, "*shape"], mask: Shaped[Tensor, "..."], value: Operand, *, hard: bool = False
) -> Float[Tensor, "..."]:
    r"""Return ``x`` with ``value`` where the mask holds: the mean ``p value + (1 - p) x``.

    A mask that fills with ``-inf`` (attention) is meant for the softmax or logsumexp after it, where a mean makes no
    sense; there the entry keeps its weight times ``1 - p``: ``x + log(1 - p)``, and ``x - log(1 - p)`` for ``inf``.

    Args:
        x: ``[*shape]`` any floating dtype.
        mask: probabilities, or booleans, that broadcast with ``x``.
        value: a number, or a tensor without dimensions (which counts as finite).
        hard: fill where ``p > 1/2``, bit for bit, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and ``mask``, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor, or ``mask`` is neither floating nor boolean.
        ValueError: ``mask`` is outside [0, 1] or does not broadcast with ``x``, or ``value`` has dimensions.

    Example:
        >>> masked_fill(torch.ones(3), torch.tensor([0.0, 0.5, 1.0]), 3.0)
        tensor([1., 2., 3.])
        >>> masked_fill(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]), -torch.inf).softmax(-1)
        tensor([0.6667, 0.3333, 0.0000])
    """
    check_floating("x", x)
    certain = check_tensor("mask", mask).dtype == torch.bool
    if not certain:
        _check_probability("mask", mask)
    broadcast(x=x, mask=mask, value=value)
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(f"value must be a number or a tensor without dimensions, got shape {tuple(value.shape)}")
    if certain:
        return torch.masked_fill(x, mask, value)
    p, wide = widen(mask), widen(x)
    if not isinstance(value, Tensor) and math.isinf(value):
        gone = p >= 1
        keep = torch.log1p(-torch.where(gone, 0.0, p))
        soft = torch.where(gone, value, wide + keep if value < 0 else wide - keep)
    else:
        soft = _mix(p, as_tensor(value, wide, "value"), wide)
    soft = soft.to(x.dtype)
    return replace_gradient(torch.masked_fill(x, mask > 0.5, value).detach(), soft) if hard else soft


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Shaped[Tensor, "..."], dim: _Dims = None, keepdim: bool = False
) -> Float[Tensor, "..."]:
    r"""Return the mean of the entries that the mask selects, ``sum(p x) / sum(p)`` (``x[mask].mean()`` for booleans).

    Args:
        x: ``[*shape]`` any floating dtype; infinite and NaN entries do not matter where ``p`` is exactly 0.
        mask: probabilities or booleans that broadcast with ``x``.
        dim: one or several dimensions; all of them by default.
        keepdim: keep the reduced dimensions with size 1.

    Returns:
        ``x`` without ``dim``; NaN, with gradient 0, where nothing is selected.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``x`` is not a floating tensor, or ``mask`` is neither floating nor boolean.
        ValueError: ``mask`` is outside [0, 1] or does not broadcast with ``x``.

    Example:
        >>> masked_mean(torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([1.0, 0.5, 0.0]))
        tensor(1.3333)
    """
    check_floating("x", x)
    if check_tensor("mask", mask).dtype == torch.bool:
        mask = mask.to(x.dtype)
    _check_probability("mask", mask)
    broadcast(x=x, mask=mask)
    wide, p = torch.broadcast_tensors(widen(x), widen(mask))
    dims = _dims(wide, dim, keepdim)
    ignored = (p == 0) & ~torch.isfinite(wide)
    total = p.sum(dims, True)
    empty = total == 0
    # Shares first: the sum of large entries could overflow, their mean does not.
    share = p / torch.where(empty, 1.0, total)
    mean = (share * torch.where(ignored, 0.0, wide)).sum(dims, keepdim)
    return torch.where(empty if keepdim else empty.reshape(mean.shape), math.nan, mean).to(x.dtype)


def _logical(
    operation: Callable[..., Tensor],
    product: Callable[..., Tensor],
    minimum: Callable[..., Tensor],
    p: Tensor,
    q: Tensor,
    method: str,
    hard: bool,
) -> Tensor:
    check_choice("method", method, _NORMS)
    _check_probability("p", p)
    _check_probability("q", q)

    def decided(p: Tensor, q: Tensor) -> Tensor:
        return operation(p > 0.5, q > 0.5).to(torch.result_type(p, q))

    soft = product if method == "product" else minimum
    return decide(decided, soft, hard=hard, p=p, q=q)


def _check_probability(name: str, p: Tensor) -> Tensor:
    slack = 16 * torch.finfo(check_floating(name, p).dtype).eps
    if p.numel() and can_look(p):
        low, high = (float(end) for end in torch.aminmax(p.detach()))
        if low < -slack or high > 1 + slack:  # NaN stays NaN
            raise ValueError(f"{name} must be in [0, 1], got minimum {low} and maximum {high}")
    return p


def _dims(x: Tensor, dim: _Dims, keepdim: bool) -> tuple[int, ...]:
    if not isinstance(keepdim, bool):
        raise TypeError(f"keepdim must be True or False, got {type(keepdim).__name__}")
    if dim is None:
        return tuple(range(x.ndim))
    dims = tuple(check_dim(x, d) for d in (dim if isinstance(dim, tuple | list) else (dim,)))
    return dims if x.ndim else ()


def _conjunction(p: Tensor, dims: tuple[int, ...], keepdim: bool, method: str) -> Tensor:
    for d in sorted(dims, reverse=True):
        if method == "product":
            p = torch.prod(p, d, keepdim)
        elif p.shape[d]:
            p = torch.amin(p, d, keepdim)
        else:
            p = 1 + p.sum(d, keepdim)
    return p


def _mix(p: Tensor, x: Tensor, other: Tensor) -> Tensor:
    decided = ((p == 0) | (p == 1)) & ~(torch.isfinite(x) & torch.isfinite(other))
    inside, outside = torch.where(decided, 0.0, x), torch.where(decided, 0.0, other)
    return torch.where(decided, torch.where(p == 0, other, x), p * inside + (1 - p) * outside)
