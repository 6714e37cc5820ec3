"""Comparisons that return probabilities.

Each takes what :func:`greater` takes. A comparison with NaN is false, as torch's is (``not_equal`` is true), with
gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pullback.core.checks import check_choice, check_positive
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.softness import Operand, as_tensor, quotient, relax
from pullback.discrete.steps import STEP_ERRORS, soft_step

__all__ = ["equal", "greater", "greater_equal", "isclose", "less", "less_equal", "not_equal"]


def greater(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the probability that ``x > other``: ``F((x - other) / temperature)``.

    ``F`` is the step of :func:`~pullback.discrete.soft_step`; the probability is that of ``x + noise > other`` with
    noise of that distribution and scale ``temperature``. Equal arguments, equal infinities too, give 1/2.

    Args:
        x: ``[*shape]`` any floating dtype.
        other: a number or a tensor that broadcasts with ``x``; differentiable too.
        method: the step, one of those of :func:`~pullback.discrete.soft_step`.
        temperature: width of the step in units of ``x``, >= 0, a number or a differentiable tensor without dimensions;
            0 is torch's comparison as 0 and 1, with gradient 0.
        hard: return torch's comparison as 0 and 1, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and ``other``, in ``[0, 1]``.

    Raises:
        TypeError: ``x`` is not a floating tensor, ``other`` neither a tensor nor a number.
        ValueError: ``x`` and ``other`` do not broadcast, ``temperature`` is negative, not finite or has dimensions,
            ``method`` is unknown.

    Example:
        >>> greater(torch.tensor([-1.0, 0.5, 0.6]), 0.5, temperature=0.2)
        tensor([9.3576e-14, 5.0000e-01, 8.8080e-01])
    """
    return _compare(torch.gt, lambda u: soft_step(u, method), x, other, method, temperature, hard)


def greater_equal(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the probability that ``x >= other``, that of :func:`greater`; only the hard values differ, at equality.

    Args:
        x, other, method, temperature, hard: as in :func:`greater`.

    Returns:
        As :func:`greater`.

    Raises:
        TypeError, ValueError: as :func:`greater`.

    Example:
        >>> greater_equal(torch.tensor([0.4, 0.5]), 0.5, hard=True)
        tensor([0., 1.])
    """
    return _compare(torch.ge, lambda u: soft_step(u, method), x, other, method, temperature, hard)


def less(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the probability that ``x < other``: ``F((other - x) / temperature)``.

    Args:
        x, other, method, temperature, hard: as in :func:`greater`.

    Returns:
        As :func:`greater`.

    Raises:
        TypeError, ValueError: as :func:`greater`.

    Example:
        >>> less(torch.tensor([-1.0, 0.5]), 0.5)
        tensor([1.0000, 0.5000])
    """
    return _compare(torch.lt, lambda u: soft_step(-u, method), x, other, method, temperature, hard)


def less_equal(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the probability that ``x <= other``, that of :func:`less`; only the hard values differ, at equality.

    Args:
        x, other, method, temperature, hard: as in :func:`greater`.

    Returns:
        As :func:`greater`.

    Raises:
        TypeError, ValueError: as :func:`greater`.

    Example:
        >>> less_equal(torch.tensor([0.5, 0.6]), 0.5, hard=True)
        tensor([1., 0.])
    """
    return _compare(torch.le, lambda u: soft_step(-u, method), x, other, method, temperature, hard)


def equal(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return how equal two numbers are: the bump ``4 F(u) F(-u)`` of ``u = (x - other) / temperature``.

    It is 1 where they are equal and falls to 0 elsewhere; it is the normalised product of ``x >= other`` and
    ``x <= other`` (for the logistic step ``1 / cosh(2 u)^2``). Elementwise, as ``torch.eq`` (not ``torch.equal``).
    Equal infinities are equal.

    Args:
        x, other, method, temperature, hard: as in :func:`greater`.

    Returns:
        As :func:`greater`.

    Raises:
        TypeError, ValueError: as :func:`greater`.

    Example:
        >>> equal(torch.tensor([1.0, 2.0, 2.05]), 2)
        tensor([1.6993e-17, 1.0000e+00, 4.1997e-01])
    """

    def bump(u: Tensor) -> Tensor:
        return 4 * soft_step(u, method) * soft_step(-u, method)

    return _compare(torch.eq, bump, x, other, method, temperature, hard)


def not_equal(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return how different two numbers are: one minus :func:`equal`, which is the square of their soft sign.

    Args:
        x, other, method, temperature, hard: as in :func:`greater`.

    Returns:
        As :func:`greater`.

    Raises:
        TypeError, ValueError: as :func:`greater`.

    Example:
        >>> not_equal(torch.tensor([1.0, 2.0, 2.05]), 2)
        tensor([1.0000, 0.0000, 0.5800])
    """

    def dip(u: Tensor) -> Tensor:
        return (2 * soft_step(u, method) - 1).square()  # 1 - 4 F (1 - F), without the cancellation

    return _compare(torch.ne, dip, x, other, method, temperature, hard)


def isclose(
    x: Float[Tensor, "*shape"],
    other: Operand,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return how surely ``|x - other| <= tolerance`` with ``tolerance = atol + rtol |other|``.

    .. math:: \frac{F((b - d)/t)\, F((b + d)/t)}{F(b/t)^2}, \qquad d = x - \text{other}, \; b = \text{tolerance}

    A plateau of half width ``b`` with soft shoulders, 1 where the numbers are equal; with tolerance 0 it is
    :func:`equal`.

    Args:
        x, other, method, temperature, hard: as in :func:`greater`; infinities are close only to themselves.
        rtol: relative tolerance, >= 0.
        atol: absolute tolerance in units of ``x``, >= 0.
        equal_nan: whether two NaNs are close.

    Returns:
        As :func:`greater`.

    Raises:
        TypeError, ValueError: as :func:`greater`, or a tolerance is negative or not finite.

    Example:
        >>> isclose(torch.tensor([1.0, 2.0, 3.0]), 1.0, atol=1.0, rtol=0.0, temperature=0.1)
        tensor([1.0000e+00, 5.0000e-01, 4.2484e-18])
    """
    check_choice("method", method, STEP_ERRORS)
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if isinstance(tolerance, Tensor):
            raise TypeError(f"{name} must be a number, got a tensor")
        check_positive(name, tolerance, zero=True)

    def operation(x: Tensor, other: Operand) -> Tensor:
        dtype = torch.result_type(x, other)
        reference = other if isinstance(other, Tensor) else torch.full((), other, device=x.device)
        return _flat(torch.isclose(x.to(dtype), reference.to(dtype), rtol, atol, equal_nan), x, other)

    def soft(x: Tensor, other: Operand, temperature: Scalar) -> Tensor:
        other = as_tensor(other, x)
        nan = x.isnan() | other.isnan()
        alike = (x.isnan() & other.isnan() & equal_nan).to(x.dtype)
        x, other = torch.where(nan, 0.0, x), torch.where(nan, 0.0, other)
        bound = atol + rtol * torch.where(other.isinf(), 0.0, other).abs()
        bound = bound.clamp(max=torch.finfo(bound.dtype).max)  # against an infinite difference it is small still
        difference = _difference(x, other)
        top = soft_step(quotient(bound, temperature), method)
        below = soft_step(quotient(bound - difference, temperature), method) / top
        above = soft_step(quotient(bound + difference, temperature), method) / top
        return torch.where(nan, alike, below * above)

    return relax(operation, soft, temperature=temperature, hard=hard, x=x, other=other)


def _compare(
    comparison: Callable[..., Tensor],
    probability: Callable[[Tensor], Tensor],
    x: Tensor,
    other: Operand,
    method: str,
    temperature: Scalar,
    hard: bool,
) -> Tensor:
    check_choice("method", method, STEP_ERRORS)

    def operation(x: Tensor, other: Operand) -> Tensor:
        return _flat(comparison(x, other), x, other)

    def soft(x: Tensor, other: Operand, temperature: Scalar) -> Tensor:
        difference = x - as_tensor(other, x)
        undefined = difference.isnan()  # of equal infinities, which are at no distance, and of NaN
        p = probability(quotient(torch.where(undefined, 0.0, difference), temperature))
        return torch.where(undefined & (x != other), 1.0 if comparison is torch.ne else 0.0, p)

    return relax(operation, soft, temperature=temperature, hard=hard, x=x, other=other)


def _difference(x: Tensor, other: Tensor) -> Tensor:
    """Return ``x - other``, 0 for equal infinities."""
    same = x.isinf() & (x == other)
    return torch.where(same, 0.0, x) - torch.where(same, 0.0, other)


def _flat(decided: Tensor, x: Tensor, other: Operand) -> Tensor:
    """Return booleans as 0 and 1 of the operands' type, with gradient 0."""
    value = decided.to(torch.result_type(x, other))
    zero_slope = torch.sign(x) + (torch.sign(other) if isinstance(other, Tensor) else 0)
    return replace_gradient(value, zero_slope.to(value.dtype))
