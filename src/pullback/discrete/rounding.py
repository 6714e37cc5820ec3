"""Rounding with a gradient: a staircase of smooth steps.

Each takes what :func:`round` takes; at temperature 0 it is torch's function with its own gradient.
"""

from __future__ import annotations

import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.softness import Operand, quotient, relax
from pullback.discrete.steps import STEP_ERRORS, soft_step

__all__ = ["ceil", "floor", "fmod", "frac", "remainder", "round", "trunc"]

_STEPS = tuple(name for name in STEP_ERRORS if name != "logistic_phi")
"""Those that are straight near 0, so that wide ones tend to the identity."""


def round(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Round to the nearest integer, with a smooth step of width ``temperature`` half way between the integers.

    .. math::
        n + \frac{F((f - \frac12)/t) - F(-\frac1{2t})}{F(\frac1{2t}) - F(-\frac1{2t})}, \qquad
        n = \lfloor x \rfloor, \; f = x - n

    with the step ``F`` of :func:`~pullback.discrete.soft_step`. It is as smooth as the step, keeps the integers and the
    half integers, tends to ``torch.round`` as ``t -> 0`` and to the identity as ``t -> inf``; its mean slope
    over a unit interval is 1 at every temperature. The default ``"cauchy"`` has heavy tails: its slope at the integers
    is about ``t / 2.5``, where the logistic's falls like ``exp(-2 / t)`` and is dead at small temperatures.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` stay with gradient 0, NaN stays NaN.
        method: the step, one of those of :func:`~pullback.discrete.soft_step` but ``"logistic_phi"``, which is a power
            near 0: a wider temperature would not bring its staircase nearer to the identity.
        temperature: width of a step in units of ``x``, >= 0, a number or a differentiable tensor without dimensions;
            0 is torch's function.
        hard: return the values of torch's function, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative, not finite or has dimensions, ``method`` is unknown.

    Example:
        >>> x = torch.tensor([0.2, 1.5, 2.9])
        >>> round(x, temperature=1e-2)
        tensor([1.3563e-03, 1.5000e+00, 2.9995e+00])
        >>> round(x, temperature=1e6)
        tensor([0.2000, 1.5000, 2.9000])
        >>> round(x, hard=True)
        tensor([0., 2., 3.])
    """
    check_choice("method", method, _STEPS)
    return relax(torch.round, lambda x, t: _staircase(x, method, t), temperature=temperature, hard=hard, x=x)


def floor(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    """Round down, with a smooth step of width ``temperature`` at every integer: ``soft_round(x - 1/2)``.

    An integer lies in the middle of a step, so there the relaxation is half way, ``x - 1/2``, at every temperature.

    Args:
        x, method, temperature, hard: as in :func:`round`.

    Returns:
        As :func:`round`.

    Raises:
        TypeError, ValueError: as :func:`round`.

    Example:
        >>> floor(torch.tensor([0.2, 1.0, 1.7]), method="logistic")
        tensor([-3.3534e-04,  5.0000e-01,  1.0000e+00])
    """
    check_choice("method", method, _STEPS)
    return relax(torch.floor, lambda x, t: _floor(x, method, t), temperature=temperature, hard=hard, x=x)


def ceil(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    """Round up, with a smooth step of width ``temperature`` at every integer: ``soft_round(x + 1/2)``.

    Args:
        x, method, temperature, hard: as in :func:`round`.

    Returns:
        As :func:`round`.

    Raises:
        TypeError, ValueError: as :func:`round`.

    Example:
        >>> ceil(torch.tensor([0.2, 1.0, 1.7]), temperature=1e-6)
        tensor([1.0000, 1.5000, 2.0000])
    """
    check_choice("method", method, _STEPS)
    return relax(torch.ceil, lambda x, t: _staircase(x + 0.5, method, t), temperature=temperature, hard=hard, x=x)


def trunc(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    """Round towards zero: ``soft_floor(x) + F(-x / temperature)``.

    The second term takes back the step of the floor at 0; what remains there is a plateau.

    Args:
        x, method, temperature, hard: as in :func:`round`.

    Returns:
        As :func:`round`.

    Raises:
        TypeError, ValueError: as :func:`round`.

    Example:
        >>> trunc(torch.tensor([-1.5, 0.0, 1.7]), method="logistic")
        tensor([-1.0000,  0.0000,  1.0000])
    """
    check_choice("method", method, _STEPS)

    def soft(x: Tensor, temperature: Scalar) -> Tensor:
        return _floor(x, method, temperature) + soft_step(quotient(-x, temperature), method)

    return relax(torch.trunc, soft, temperature=temperature, hard=hard, x=x)


def frac(
    x: Float[Tensor, "*shape"], *, method: str = "cauchy", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    """Return the fractional part ``x - soft_trunc(x)``: a sawtooth whose jumps are ramps of width ``temperature``.

    ``torch.frac`` has derivative 1 and hides its jumps; here they have a (negative) slope. ``+-inf`` give NaN as there.

    Args:
        x, method, temperature, hard: as in :func:`round`.

    Returns:
        As :func:`round`.

    Raises:
        TypeError, ValueError: as :func:`round`.

    Example:
        >>> frac(torch.tensor([-1.25, 0.25, 1.75]), temperature=1e-6)
        tensor([-0.2500, 0.2500, 0.7500])
    """
    check_choice("method", method, _STEPS)

    def soft(x: Tensor, temperature: Scalar) -> Tensor:
        return _sawtooth(x - x.detach().floor(), method, temperature) - soft_step(quotient(-x, temperature), method)

    return relax(torch.frac, soft, temperature=temperature, hard=hard, x=x)


def remainder(
    x: Float[Tensor, "*shape"],
    divisor: Operand,
    *,
    method: str = "cauchy",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the remainder ``x - divisor * soft_floor(x / divisor)``, which has the sign of the divisor.

    Args:
        x, method, hard: as in :func:`round`.
        divisor: a number or a tensor that broadcasts with ``x``, differentiable too; 0 gives NaN as in torch.
        temperature: as in :func:`round`, in units of ``x / divisor``.

    Returns:
        The broadcast shape of ``x`` and ``divisor``.

    Raises:
        TypeError, ValueError: as :func:`round`, or ``divisor`` does not broadcast with ``x``.

    Example:
        >>> remainder(torch.tensor([-1.0, 1.0, 7.0]), 3, temperature=1e-6)
        tensor([2.0000, 1.0000, 1.0000])
    """
    check_choice("method", method, _STEPS)

    def soft(x: Tensor, divisor: Operand, temperature: Scalar) -> Tensor:
        return divisor * _sawtooth(torch.remainder(x, divisor) / divisor, method, temperature)

    return relax(torch.remainder, soft, temperature=temperature, hard=hard, x=x, divisor=divisor)


def fmod(
    x: Float[Tensor, "*shape"],
    divisor: Operand,
    *,
    method: str = "cauchy",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the remainder ``x - divisor * soft_trunc(x / divisor)``, which has the sign of ``x``.

    Args:
        x, method, hard: as in :func:`round`.
        divisor: a number or a tensor that broadcasts with ``x``, differentiable too; 0 gives NaN as in torch.
        temperature: as in :func:`round`, in units of ``x / divisor``.

    Returns:
        The broadcast shape of ``x`` and ``divisor``.

    Raises:
        TypeError, ValueError: as :func:`round`, or ``divisor`` does not broadcast with ``x``.

    Example:
        >>> fmod(torch.tensor([-1.0, 1.0, 7.0]), 3, temperature=1e-6)
        tensor([-1.0000,  1.0000,  1.0000])
    """
    check_choice("method", method, _STEPS)

    def soft(x: Tensor, divisor: Operand, temperature: Scalar) -> Tensor:
        above = _sawtooth(torch.remainder(x, divisor) / divisor, method, temperature)
        return divisor * (above - soft_step(quotient(-x / divisor, temperature), method))

    return relax(torch.fmod, soft, temperature=temperature, hard=hard, x=x, divisor=divisor)


def _staircase(x: Tensor, method: str, temperature: Scalar) -> Tensor:
    """Return the sum of steps at the half integers, scaled so that the integers are kept."""
    whole = x.detach().floor()
    fraction = torch.where(torch.isfinite(x), x - whole, 0.0)
    return whole + _unit_step(fraction, method, temperature)


def _floor(x: Tensor, method: str, temperature: Scalar) -> Tensor:
    return _staircase(x - 0.5, method, temperature)


def _sawtooth(fraction: Tensor, method: str, temperature: Scalar) -> Tensor:
    """Return ``x - soft_floor(x)`` of the distance of ``x`` from the integer below, where the integers cancel."""
    return fraction - _floor(fraction, method, temperature)


def _unit_step(fraction: Tensor, method: str, temperature: Scalar) -> Tensor:
    """Return the step from 0 at 0 to 1 at 1."""
    half = quotient(torch.full((), 0.5, dtype=fraction.dtype, device=fraction.device), temperature)
    # Where the steps are this wide they are a straight line, up to less than what rounding does to the quotient.
    narrowest = torch.finfo(fraction.dtype).eps ** (1 / 3)
    if not isinstance(temperature, Tensor):
        return fraction.clone() if 0.5 / temperature < narrowest else _curved(fraction, half, method, temperature)
    straight = half < narrowest
    curved = _curved(torch.where(straight, 0.0, fraction), torch.where(straight, 0.5, half), method, temperature)
    return torch.where(straight, fraction, curved)


def _curved(fraction: Tensor, half: Tensor, method: str, temperature: Scalar) -> Tensor:
    start = soft_step(-half, method)
    return (soft_step(quotient(fraction - 0.5, temperature), method) - start) / (1 - 2 * start)
