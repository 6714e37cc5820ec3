"""Piecewise constant and piecewise linear functions with a gradient: steps and bends.

The piecewise constant ones are steps; the piecewise linear ones are all made of one soft ``relu``, either the integral
of the logistic step (``"softplus"``: convex, monotonic) or ``x F(x / t)`` (``"gated"``: exact at the kink).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from pullback.core.checks import check_choice
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Tensor
from pullback.discrete.softness import Operand, as_tensor, relax
from pullback.discrete.steps import STEP_ERRORS, soft_step

__all__ = ["RAMPS", "abs", "clamp", "heaviside", "maximum", "minimum", "relu", "sign"]

RAMPS = ("softplus", "gated")
"""The methods of the piecewise linear functions."""


def sign(
    x: Float[Tensor, "*shape"], *, method: str = "logistic", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Return the soft sign ``2 F(x / temperature) - 1`` with the step ``F`` of :func:`~pullback.discrete.soft_step`.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` give ``+-1`` with gradient 0, NaN stays NaN.
        method: the step, ``"logistic"``, ``"cauchy"``, ``"reciprocal"`` or ``"optimal"``.
        temperature: width of the step in units of ``x``, >= 0; 0 is ``torch.sign`` with its zero gradient.
        hard: return ``torch.sign(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` in ``[-1, 1]``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> sign(torch.tensor([-1.0, 0.0, 0.05]), temperature=0.1)
        tensor([-1.0000,  0.0000,  0.7616])
    """
    check_choice("method", method, STEP_ERRORS)

    def soft(x: Tensor) -> Tensor:
        return 2 * soft_step(x / temperature, method) - 1

    return relax(torch.sign, soft, x, temperature=temperature, hard=hard)


def heaviside(
    x: Float[Tensor, "*shape"],
    values: Tensor | None = None,
    *,
    method: str = "logistic",
    temperature: float = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the soft unit step ``F(x / temperature)``, 1/2 at 0.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` give 1 and 0 with gradient 0, NaN stays NaN.
        values: what the hard step is where ``x == 0``, as in ``torch.heaviside``: same dtype, broadcasts with ``x``;
            1/2 by default. It has no effect on the relaxation and gets no gradient.
        method: the step, see :func:`sign`.
        temperature: width of the step in units of ``x``, >= 0; 0 is ``torch.heaviside`` with gradient 0.
        hard: return ``torch.heaviside(x, values)``, bit for bit, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and ``values``, in ``[0, 1]``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> heaviside(torch.tensor([-1.0, 0.0, 0.05]), temperature=0.1)
        tensor([4.2484e-18, 5.0000e-01, 8.8080e-01])
    """
    check_choice("method", method, STEP_ERRORS)

    def operation(x: Tensor, values: Tensor | None) -> Tensor:
        at_zero = torch.full_like(x, 0.5) if values is None else values
        step = torch.heaviside(x.detach(), at_zero.detach())  # torch gives it no derivative, not even 0
        return replace_gradient(step, torch.sign(x).expand(step.shape))

    def soft(x: Tensor, values: Tensor | None) -> Tensor:
        step = soft_step(x / temperature, method)
        return step if values is None else step.expand(torch.broadcast_shapes(x.shape, values.shape))

    return relax(operation, soft, x, values, temperature=temperature, hard=hard)


def relu(
    x: Float[Tensor, "*shape"], *, method: str = "softplus", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Return the soft positive part.

    .. math::
        \text{softplus: } \tfrac t4 \log(1 + e^{4x/t}), \qquad \text{gated: } \frac{x}{1 + e^{-4x/t}}

    Softplus is the integral of the logistic step of slope ``1 / t``: convex, above ``relu`` by at most
    ``t log(2) / 4``, at ``x = 0``. Gated (SiLU) is 0 at 0, below ``relu`` by at most ``0.07 t`` and not monotonic.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` give ``inf`` and 0, NaN stays NaN.
        method: ``"softplus"`` or ``"gated"``.
        temperature: width of the bend in units of ``x``, >= 0; 0 is ``torch.relu`` with its gradient.
        hard: return ``torch.relu(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> relu(torch.tensor([-1.0, 0.0, 1.0]), temperature=1.0)
        tensor([0.0045, 0.1733, 1.0045])
        >>> relu(torch.tensor([-1.0, 0.0, 1.0]), temperature=1.0, method="gated")
        tensor([-0.0180,  0.0000,  0.9820])
    """
    check_choice("method", method, RAMPS)
    return relax(torch.relu, lambda x: _ramp(x, method, temperature), x, temperature=temperature, hard=hard)


def abs(
    x: Float[Tensor, "*shape"], *, method: str = "softplus", temperature: float = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Return the soft absolute value ``relu(x) + relu(-x)``.

    Softplus gives ``|x| + t/2 log(1 + exp(-4 |x| / t))``, smooth, convex, at least ``|x|``; gated gives
    ``x tanh(2 x / t)``, 0 at 0.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` give ``inf``, NaN stays NaN.
        method: ``"softplus"`` or ``"gated"``, see :func:`relu`.
        temperature: width of the bend in units of ``x``, >= 0; 0 is ``torch.abs`` with its gradient.
        hard: return ``torch.abs(x)``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> abs(torch.tensor([-1.0, 0.0, 1.0]), method="gated", temperature=1.0)
        tensor([0.9640, 0.0000, 0.9640])
    """
    check_choice("method", method, RAMPS)

    def soft(x: Tensor) -> Tensor:
        return _ramp(x, method, temperature) + _ramp(-x, method, temperature)

    return relax(torch.abs, soft, x, temperature=temperature, hard=hard)


def maximum(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "softplus",
    temperature: float = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the elementwise soft maximum ``other + relu(x - other)``, symmetric in its arguments.

    Softplus is ``t/4 logsumexp(4x/t, 4 other/t)``, at least the maximum; gated is the mean weighted by the
    probabilities that each is the larger one, at most the maximum.

    Args:
        x: ``[*shape]`` any floating dtype. Where an argument is infinite or NaN the hard maximum is returned.
        other: a number or a tensor that broadcasts with ``x``; differentiable too.
        method: ``"softplus"`` or ``"gated"``, see :func:`relu`.
        temperature: width of the bend in units of ``x``, >= 0; 0 is ``torch.maximum`` with its gradient (one half to
            each where they are equal).
        hard: return ``torch.maximum(x, other)``, bit for bit, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and ``other``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> maximum(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), temperature=1.0)
        tensor([1.0045, 1.1733])
    """
    check_choice("method", method, RAMPS)

    def soft(x: Tensor, other: Operand) -> Tensor:
        return _larger(x, as_tensor(other, x), method, temperature)

    return relax(_maximum, soft, x, other, temperature=temperature, hard=hard)


def minimum(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "softplus",
    temperature: float = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the elementwise soft minimum ``-maximum(-x, -other)``, symmetric in its arguments.

    Args:
        x: ``[*shape]`` any floating dtype. Where an argument is infinite or NaN the hard minimum is returned.
        other: a number or a tensor that broadcasts with ``x``; differentiable too.
        method: ``"softplus"`` (at most the minimum) or ``"gated"`` (at least the minimum).
        temperature: width of the bend in units of ``x``, >= 0; 0 is ``torch.minimum`` with its gradient.
        hard: return ``torch.minimum(x, other)``, bit for bit, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and ``other``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> minimum(torch.tensor([0.0, 1.0]), 1.0, temperature=1.0)
        tensor([-0.0045,  0.8267])
    """
    check_choice("method", method, RAMPS)

    def soft(x: Tensor, other: Operand) -> Tensor:
        return -_larger(-x, -as_tensor(other, x), method, temperature)

    return relax(_minimum, soft, x, other, temperature=temperature, hard=hard)


def clamp(
    x: Float[Tensor, "*shape"],
    min: Operand | None = None,
    max: Operand | None = None,
    *,
    method: str = "softplus",
    temperature: float = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return ``x`` limited to ``[min, max]`` with soft bends, so that the gradient outside does not die at once.

    .. math:: \min + \mathrm{relu}(x - \min) - \mathrm{relu}(x - \max)

    With softplus the result lies in ``[min, max]`` and increases with ``x`` at every temperature.

    Args:
        x: ``[*shape]`` any floating dtype; where it is infinite or NaN the hard result is returned.
        min: lower bound, a number or a tensor that broadcasts with ``x`` (differentiable), or ``None``.
        max: upper bound, likewise; as in torch it wins where ``min > max``.
        method: ``"softplus"`` or ``"gated"``, see :func:`relu`.
        temperature: width of the bends in units of ``x``, >= 0; 0 is ``torch.clamp`` with its gradient.
        hard: return ``torch.clamp(x, min, max)``, bit for bit, with the gradient of the relaxation.

    Returns:
        The broadcast shape of ``x`` and the bounds.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: both bounds are ``None``, ``temperature`` is negative or not finite, ``method`` is unknown.

    Example:
        >>> clamp(torch.tensor([-1.0, 0.5, 9.0]), 0, 1, temperature=1.0)
        tensor([0.0045, 0.5000, 1.0000])
    """
    check_choice("method", method, RAMPS)
    if min is None and max is None:
        raise ValueError("min and max must not both be None")

    def soft(x: Tensor, min: Operand | None, max: Operand | None) -> Tensor:
        if max is None:
            return _larger(x, as_tensor(min, x), method, temperature)  # type: ignore[arg-type]
        if min is None:
            return -_larger(-x, -as_tensor(max, x), method, temperature)
        high = as_tensor(max, x)
        low = torch.minimum(as_tensor(min, x), high)
        finite = torch.isfinite(x) & torch.isfinite(low) & torch.isfinite(high)
        inside, below, above = (torch.where(finite, a, 0.0) for a in (x, low, high))
        limited = below + _ramp(inside - below, method, temperature) - _ramp(inside - above, method, temperature)
        nested = -_larger(-_larger(x, low, method, temperature), -high, method, temperature)
        outside = torch.minimum(torch.maximum(x, low), high)
        return torch.where(finite, limited, torch.where(torch.isfinite(x), nested, outside))

    return relax(_clamp, soft, x, min, max, temperature=temperature, hard=hard)


def _maximum(x: Tensor, other: Operand) -> Tensor:
    return torch.maximum(x, other if isinstance(other, Tensor) else torch.full_like(x, other))


def _minimum(x: Tensor, other: Operand) -> Tensor:
    return torch.minimum(x, other if isinstance(other, Tensor) else torch.full_like(x, other))


def _clamp(x: Tensor, min: Operand | None, max: Operand | None) -> Tensor:
    if isinstance(min, Tensor) == isinstance(max, Tensor) or min is None or max is None:
        return torch.clamp(x, min, max)  # type: ignore[arg-type]
    low = min if isinstance(min, Tensor) else torch.full_like(x, min)
    high = max if isinstance(max, Tensor) else torch.full_like(x, max)
    return torch.clamp(x, low, high)


def _ramp(x: Tensor, method: str, temperature: float) -> Tensor:
    """Return the soft ``relu``; where ``x`` is not finite, the hard one."""
    finite = torch.isfinite(x)
    safe = torch.where(finite, x, 0.0)
    if method == "softplus":
        # The threshold only guards against overflow: log(1 + exp(40)) is 40 in float64.
        soft = functional.softplus(safe, beta=4 / temperature, threshold=40.0)
    else:
        soft = safe * soft_step(safe / temperature)
    return torch.where(finite, soft, torch.relu(x))


def _larger(a: Tensor, b: Tensor, method: str, temperature: float) -> Tensor:
    finite = torch.isfinite(a) & torch.isfinite(b)
    gap = torch.where(finite, a - b, 0.0)
    floor = torch.where(finite, b, 0.0)
    return torch.where(finite, floor + _ramp(gap, method, temperature), torch.maximum(a, b))
