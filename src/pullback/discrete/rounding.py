"""Rounding with a gradient: a staircase of smooth steps."""

from __future__ import annotations

import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Tensor
from pullback.discrete.softness import relax
from pullback.discrete.steps import STEP_ERRORS, soft_step

__all__ = ["ceil", "floor", "fmod", "frac", "remainder", "round", "trunc"]


def round(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Round to the nearest integer, with a smooth step of width ``temperature`` half way between the integers.

    .. math::
        n + \frac{F((f - \frac12)/t) - F(-\frac1{2t})}{F(\frac1{2t}) - F(-\frac1{2t})}, \qquad
        n = \lfloor x \rfloor, \; f = x - n

    with the step ``F`` of :func:`~pullback.discrete.soft_step`. It is continuously differentiable, keeps the integers
    and the half integers, tends to ``torch.round`` as ``t -> 0`` and to the identity as ``t -> inf``; its mean slope
    over a unit interval is 1 at every temperature. The default ``"cauchy"`` has heavy tails: its slope at the integers
    is about ``t / 2.5``, where the logistic's falls like ``exp(-2 / t)`` and is dead at small temperatures.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` stay with gradient 0, NaN stays NaN.
        method: the step, ``"logistic"``, ``"cauchy"``, ``"reciprocal"`` or ``"optimal"``.
        temperature: width of a step in units of ``x``, >= 0; 0 is ``torch.round`` with its zero gradient.
        hard: return ``torch.round(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> x = torch.tensor([0.2, 1.5, 2.9])
        >>> round(x, temperature=1e-2)
        tensor([1.3563e-03, 1.5000e+00, 2.9995e+00])
        >>> round(x, temperature=1e6)
        tensor([0.2000, 1.5000, 2.9000])
        >>> round(x, hard=True)
        tensor([0., 2., 3.])
    """
    check_choice("method", method, STEP_ERRORS)
    return relax(torch.round, lambda x: _staircase(x, method, temperature), x, temperature=temperature, hard=hard)


def floor(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Round down, with a smooth step of width ``temperature`` at every integer: ``soft_round(x - 1/2)``.

    An integer lies in the middle of a step, so there the relaxation is half way, ``x - 1/2``, at every temperature.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` stay with gradient 0, NaN stays NaN.
        method: the step, see :func:`round`.
        temperature: width of a step in units of ``x``, >= 0; 0 is ``torch.floor`` with its zero gradient.
        hard: return ``torch.floor(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> floor(torch.tensor([0.2, 1.0, 1.7]), method="logistic")
        tensor([-3.3534e-04,  5.0000e-01,  1.0000e+00])
    """
    check_choice("method", method, STEP_ERRORS)
    return relax(torch.floor, lambda x: _staircase(x - 0.5, method, temperature), x, temperature=temperature, hard=hard)


def ceil(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Round up, with a smooth step of width ``temperature`` at every integer: ``soft_round(x + 1/2)``.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` stay with gradient 0, NaN stays NaN.
        method: the step, see :func:`round`.
        temperature: width of a step in units of ``x``, >= 0; 0 is ``torch.ceil`` with its zero gradient.
        hard: return ``torch.ceil(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> ceil(torch.tensor([0.2, 1.0, 1.7]), temperature=1e-6)
        tensor([1.0000, 1.5000, 2.0000])
    """
    check_choice("method", method, STEP_ERRORS)
    return relax(torch.ceil, lambda x: _staircase(x + 0.5, method, temperature), x, temperature=temperature, hard=hard)


def trunc(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Round towards zero: ``soft_floor(x) + F(-x / temperature)``.

    The second term takes back the step of the floor at 0; what remains there is a plateau.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` stay with gradient 0, NaN stays NaN.
        method: the step, see :func:`round`.
        temperature: width of a step in units of ``x``, >= 0; 0 is ``torch.trunc`` with its zero gradient.
        hard: return ``torch.trunc(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> trunc(torch.tensor([-1.5, 0.0, 1.7]), method="logistic")
        tensor([-1.0000,  0.0000,  1.0000])
    """
    check_choice("method", method, STEP_ERRORS)

    def soft(x: Tensor) -> Tensor:
        return _staircase(x - 0.5, method, temperature) + soft_step(-x / temperature, method)

    return relax(torch.trunc, soft, x, temperature=temperature, hard=hard)


def frac(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Return the fractional part ``x - soft_trunc(x)``: a sawtooth whose jumps are ramps of width ``temperature``.

    ``torch.frac`` has derivative 1 and hides its jumps; here they have a (negative) slope.

    Args:
        x: ``[*shape]`` any floating dtype, finite where the result is to be; ``+-inf`` give NaN as in torch.
        method: the step, see :func:`round`.
        temperature: width of a jump in units of ``x``, >= 0; 0 is ``torch.frac`` with its gradient 1.
        hard: return ``torch.frac(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> frac(torch.tensor([-1.25, 0.25, 1.75]), temperature=1e-6)
        tensor([-0.2500, 0.2500, 0.7500])
    """

    def soft(x: Tensor) -> Tensor:
        return x - trunc(x, method=method, temperature=temperature)

    check_choice("method", method, STEP_ERRORS)
    return relax(torch.frac, soft, x, temperature=temperature, hard=hard)


def remainder(
    x: Float[Tensor, "*shape"],
    divisor: Tensor | float | int,
    *,
    method: str = "cauchy",
    temperature: float = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the remainder ``x - divisor * soft_floor(x / divisor)``, which has the sign of the divisor.

    Args:
        x: ``[*shape]`` any floating dtype.
        divisor: a number or a tensor that broadcasts with ``x``; 0 gives NaN as in torch.
        method: the step, see :func:`round`.
        temperature: width of a jump in units of ``x / divisor``, >= 0; 0 is ``torch.remainder`` with its gradient.
        hard: return ``torch.remainder(x, divisor)``, bit for bit, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and ``divisor``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> remainder(torch.tensor([-1.0, 1.0, 7.0]), 3, temperature=1e-6)
        tensor([2.0000, 1.0000, 1.0000])
    """

    def soft(x: Tensor, divisor: Tensor | float | int) -> Tensor:
        return x - divisor * _staircase(x / divisor - 0.5, method, temperature)

    check_choice("method", method, STEP_ERRORS)
    return relax(torch.remainder, soft, x, divisor, temperature=temperature, hard=hard)


def fmod(
    x: Float[Tensor, "*shape"],
    divisor: Tensor | float | int,
    *,
    method: str = "cauchy",
    temperature: float = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the remainder ``x - divisor * soft_trunc(x / divisor)``, which has the sign of ``x``.

    Args:
        x: ``[*shape]`` any floating dtype.
        divisor: a number or a tensor that broadcasts with ``x``; 0 gives NaN as in torch.
        method: the step, see :func:`round`.
        temperature: width of a jump in units of ``x / divisor``, >= 0; 0 is ``torch.fmod`` with its gradient.
        hard: return ``torch.fmod(x, divisor)``, bit for bit, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and ``divisor``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> fmod(torch.tensor([-1.0, 1.0, 7.0]), 3, temperature=1e-6)
        tensor([-1.0000,  1.0000,  1.0000])
    """

    def soft(x: Tensor, divisor: Tensor | float | int) -> Tensor:
        return x - divisor * trunc(x / divisor, method=method, temperature=temperature)

    check_choice("method", method, STEP_ERRORS)
    return relax(torch.fmod, soft, x, divisor, temperature=temperature, hard=hard)


def _staircase(x: Tensor, method: str, temperature: float) -> Tensor:
    """Return the sum of steps at the half integers, scaled so that the integers are kept."""
    half_width = 0.5 / temperature
    if half_width < torch.finfo(x.dtype).eps ** (1 / 3):
        return x.clone()  # a straight line here, up to less than what rounding does to the quotient below
    whole = x.detach().floor()
    fraction = torch.where(torch.isfinite(x), x - whole, 0.0)
    end = soft_step(torch.full((), half_width, dtype=x.dtype, device=x.device), method)
    step = soft_step((fraction - 0.5) / temperature, method)
    return whole + (step - (1 - end)) / (2 * end - 1)
