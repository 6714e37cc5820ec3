"""Piecewise constant and piecewise linear functions with a gradient: steps and bends.

The piecewise constant ones are steps and take what :func:`sign` takes; the piecewise linear ones are all made of one
soft ``relu``, either the integral of a step (``"softplus"``: of the logistic one; ``"linear"``, ``"cubic"``,
``"quintic"``: of those, exact outside of a band; convex, monotonic) or ``x F(x / t)`` (``"gated"``: exact at the kink),
and take what :func:`relu` takes. At temperature 0 each is torch's function with its
own gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pullback.core.checks import check_choice, check_floating, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.softness import Operand, as_tensor, quotient, relax
from pullback.discrete.steps import STEP_ERRORS, soft_step

__all__ = ["RAMPS", "abs", "clamp", "heaviside", "maximum", "minimum", "relu", "sign"]

RAMPS = ("softplus", "gated", "linear", "cubic", "quintic")
"""The methods of the piecewise linear functions."""


def sign(
    x: Float[Tensor, "*shape"], *, method: str = "logistic", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Return the soft sign ``2 F(x / temperature) - 1`` with the step ``F`` of :func:`~pullback.discrete.soft_step`.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` give the ends with gradient 0, NaN stays NaN.
        method: the step, one of those of :func:`~pullback.discrete.soft_step`.
        temperature: width of the step in units of ``x``, >= 0, a number or a differentiable tensor without dimensions;
            0 is torch's function, with gradient 0.
        hard: return the values of torch's function, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` in ``[-1, 1]``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative, not finite or has dimensions, ``method`` is unknown.

    Example:
        >>> sign(torch.tensor([-1.0, 0.0, 0.05]), temperature=0.1)
        tensor([-1.0000,  0.0000,  0.7616])
    """
    check_choice("method", method, STEP_ERRORS)

    def soft(x: Tensor, temperature: Scalar) -> Tensor:
        return 2 * soft_step(quotient(x, temperature), method) - 1

    return relax(torch.sign, soft, temperature=temperature, hard=hard, x=x)


def heaviside(
    x: Float[Tensor, "*shape"],
    values: Tensor | None = None,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the soft unit step ``F(x / temperature)``, 1/2 at 0.

    Args:
        x, method, temperature, hard: as in :func:`sign`.
        values: what the hard step is where ``x == 0``, as in ``torch.heaviside``: same dtype, broadcasts with ``x``;
            1/2 by default. It has no effect on the relaxation and gets no gradient.

    Returns:
        The broadcast shape of ``x`` and ``values``, in ``[0, 1]``.

    Raises:
        TypeError, ValueError: as :func:`sign`, or ``values`` differs from ``x`` in dtype or does not broadcast with it.

    Example:
        >>> heaviside(torch.tensor([-1.0, 0.0, 0.05]), temperature=0.1)
        tensor([4.2484e-18, 5.0000e-01, 8.8080e-01])
    """
    check_choice("method", method, STEP_ERRORS)

    if values is not None and check_tensor("values", values).dtype != check_floating("x", x).dtype:
        raise ValueError(f"values must have the dtype of x, got {values.dtype} and {x.dtype}")

    def operation(x: Tensor, values: Tensor | None) -> Tensor:
        at_zero = torch.full_like(x, 0.5) if values is None else values
        step = torch.heaviside(x.detach(), at_zero.detach())  # torch gives it no derivative, not even 0
        return replace_gradient(step, torch.sign(x).expand(step.shape))

    def soft(x: Tensor, values: Tensor | None, temperature: Scalar) -> Tensor:
        step = soft_step(quotient(x, temperature), method)
        return step if values is None else step.expand(torch.broadcast_shapes(x.shape, values.shape))

    return relax(operation, soft, temperature=temperature, hard=hard, optional=("values",), x=x, values=values)


def relu(
    x: Float[Tensor, "*shape"], *, method: str = "softplus", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Return the soft positive part.

    .. math::
        \text{softplus: } \tfrac t4 \log(1 + e^{4x/t}), \qquad \text{gated: } \frac{x}{1 + e^{-4x/t}}

    .. math::
        \text{linear: } \tfrac t2 p^2, \qquad \text{cubic: } \tfrac{3t}{2} \big(p^3 - \tfrac12 p^4\big), \qquad
        \text{quintic: } \tfrac{15t}{8} \big(\tfrac52 p^4 - 3 p^5 + p^6\big)

    Softplus is the integral of the logistic step of slope ``1 / t``: convex, above ``relu`` by at most
    ``t log(2) / 4``, at ``x = 0``. Gated (SiLU) is 0 at 0, below ``relu`` by at most ``0.07 t`` and not monotonic.
    Linear, cubic and quintic are the integrals of those steps, with ``p`` of :func:`~pullback.discrete.soft_step`:
    convex, exactly ``relu`` outside of ``|x| < t/2``, ``3t/4``, ``15t/16``, above it by at most 0.125, 0.141 and
    0.147 ``t``, with 1, 2 and 3 continuous derivatives.

    Args:
        x: ``[*shape]`` any floating dtype; where it is infinite or NaN the result is that of torch's function.
        method: one of ``RAMPS``: ``"softplus"``, ``"gated"``, ``"linear"``, ``"cubic"`` or ``"quintic"``.
        temperature: width of the bend in units of ``x``, >= 0, a number or a differentiable tensor without dimensions;
            0 is torch's function with its gradient.
        hard: return the values of torch's function, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``temperature`` is negative, not finite or has dimensions, ``method`` is unknown.

    Example:
        >>> relu(torch.tensor([-1.0, 0.0, 1.0]), temperature=1.0)
        tensor([0.0045, 0.1733, 1.0045])
        >>> relu(torch.tensor([-1.0, 0.0, 1.0]), temperature=1.0, method="gated")
        tensor([-0.0180,  0.0000,  0.9820])
    """
    check_choice("method", method, RAMPS)
    return relax(torch.relu, lambda x, t: _ramp(x, method, t), temperature=temperature, hard=hard, x=x)


def abs(
    x: Float[Tensor, "*shape"], *, method: str = "softplus", temperature: Scalar = 0.1, hard: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Return the soft absolute value ``relu(x) + relu(-x)``.

    Softplus gives ``|x| + t/2 log(1 + exp(-4 |x| / t))``, smooth, convex, at least ``|x|``; gated gives
    ``x tanh(2 x / t)``, 0 at 0.

    Args:
        x, method, temperature, hard: as in :func:`relu`.

    Returns:
        As :func:`relu`.

    Raises:
        TypeError, ValueError: as :func:`relu`.

    Example:
        >>> abs(torch.tensor([-1.0, 0.0, 1.0]), method="gated", temperature=1.0)
        tensor([0.9640, 0.0000, 0.9640])
    """
    check_choice("method", method, RAMPS)

    def soft(x: Tensor, temperature: Scalar) -> Tensor:
        return _ramp(x, method, temperature) + _ramp(-x, method, temperature)

    return relax(torch.abs, soft, temperature=temperature, hard=hard, x=x)


def maximum(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "softplus",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the elementwise soft maximum ``other + relu(x - other)``, symmetric in its arguments.

    Softplus is ``t/4 logsumexp(4x/t, 4 other/t)``, at least the maximum; gated is the mean weighted by the
    probabilities that each is the larger one, at most the maximum.

    Args:
        x, method, temperature, hard: as in :func:`relu`.
        other: a number or a tensor that broadcasts with ``x``; differentiable too.

    Returns:
        The broadcast shape of ``x`` and ``other``.

    Raises:
        TypeError, ValueError: as :func:`relu`, or ``other`` is no tensor or number, or does not broadcast with ``x``.

    Example:
        >>> maximum(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), temperature=1.0)
        tensor([1.0045, 1.1733])
    """
    check_choice("method", method, RAMPS)

    def soft(x: Tensor, other: Operand, temperature: Scalar) -> Tensor:
        return _larger(x, as_tensor(other, x), method, temperature)

    return relax(_maximum, soft, temperature=temperature, hard=hard, x=x, other=other)


def minimum(
    x: Float[Tensor, "*shape"],
    other: Operand,
    *,
    method: str = "softplus",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the elementwise soft minimum ``-maximum(-x, -other)``: softplus at most, gated at least the minimum.

    Args:
        x, other, method, temperature, hard: as in :func:`maximum`.

    Returns:
        As :func:`maximum`.

    Raises:
        TypeError, ValueError: as :func:`maximum`.

    Example:
        >>> minimum(torch.tensor([0.0, 1.0]), 1.0, temperature=1.0)
        tensor([-0.0045,  0.8267])
    """
    check_choice("method", method, RAMPS)

    def soft(x: Tensor, other: Operand, temperature: Scalar) -> Tensor:
        return -_larger(-x, -as_tensor(other, x), method, temperature)

    return relax(_minimum, soft, temperature=temperature, hard=hard, x=x, other=other)


def clamp(
    x: Float[Tensor, "*shape"],
    min: Operand | None = None,
    max: Operand | None = None,
    *,
    method: str = "softplus",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return ``x`` limited to ``[min, max]`` with soft bends, so that the gradient outside does not die at once.

    .. math:: \min + \mathrm{relu}(x - \min) - \mathrm{relu}(x - \max)

    With softplus the result lies in ``[min, max]`` and increases with ``x`` at every temperature.

    Args:
        x, method, temperature, hard: as in :func:`relu`.
        min: lower bound, a number or a tensor that broadcasts with ``x`` (differentiable), or ``None``.
        max: upper bound, likewise; as in torch it wins where ``min > max``.

    Returns:
        The broadcast shape of ``x`` and the bounds.

    Raises:
        TypeError, ValueError: as :func:`relu`, or both bounds are ``None``, or one is no tensor or number or does not
            broadcast with ``x``.

    Example:
        >>> clamp(torch.tensor([-1.0, 0.5, 9.0]), 0, 1, temperature=1.0)
        tensor([0.0045, 0.5000, 1.0000])
    """
    check_choice("method", method, RAMPS)
    if min is None and max is None:
        raise ValueError("min and max must not both be None")

    def soft(x: Tensor, min: Operand | None, max: Operand | None, temperature: Scalar) -> Tensor:
        if max is None:
            return _larger(x, as_tensor(min, x, "min"), method, temperature)  # type: ignore[arg-type]
        high = as_tensor(max, x, "max")
        if min is None:
            return -_larger(-x, -high, method, temperature)
        low = torch.minimum(as_tensor(min, x, "min"), high)
        finite = torch.isfinite(x) & torch.isfinite(low) & torch.isfinite(high)
        inside, below, above = (torch.where(finite, a, 0.0) for a in (x, low, high))
        under, over = inside < below, inside > above
        # relu(a) = a + relu(-a): of the three equal forms the one where nothing large cancels.
        start = torch.where(over, above, torch.where(under, below, inside))
        first = _bend(torch.where(under, inside - below, below - inside), method, temperature)
        second = _bend(torch.where(over, above - inside, inside - above), method, temperature)
        outside = torch.minimum(torch.maximum(x, low), high)
        if isinstance(min, Tensor) or isinstance(max, Tensor) or not math.isfinite(min) or not math.isfinite(max):
            # An infinite bound is none: the bend at the other one is left.
            nested = -_larger(-_larger(x, low, method, temperature), -high, method, temperature)
            outside = torch.where(torch.isfinite(x), nested, outside)
        return torch.where(finite, start + first - second, outside)

    return relax(_clamp, soft, temperature=temperature, hard=hard, optional=("min", "max"), x=x, min=min, max=max)


def _maximum(x: Tensor, other: Operand) -> Tensor:
    return torch.maximum(x, other if isinstance(other, Tensor) else torch.full_like(x, other))


def _minimum(x: Tensor, other: Operand) -> Tensor:
    return torch.minimum(x, other if isinstance(other, Tensor) else torch.full_like(x, other))


def _clamp(x: Tensor, min: Operand | None, max: Operand | None) -> Tensor:
    # Bounds of one kind, and x of their shape: torch's gradient fails where a bound has more dimensions.
    tensors = [b for b in (min, max) if isinstance(b, Tensor)]
    if tensors:
        x = x.expand(torch.broadcast_shapes(x.shape, *(b.shape for b in tensors)))
        min, max = (torch.full_like(x, b) if isinstance(b, float | int) else b for b in (min, max))
    return torch.clamp(x, min, max)  # type: ignore[arg-type]


def _ramp(x: Tensor, method: str, temperature: Scalar) -> Tensor:
    """Return the soft ``relu``; where ``x`` is not finite, the hard one."""
    finite = torch.isfinite(x)
    return torch.where(finite, _bend(torch.where(finite, x, 0.0), method, temperature), torch.relu(x))


_INTEGRALS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "linear": (0.5, lambda p: p * p / 2),
    "cubic": (0.75, lambda p: p**3 * (1.5 - 0.75 * p)),
    "quintic": (0.9375, lambda p: p**4 * (4.6875 - p * (5.625 - 1.875 * p))),
}
"""Half the width of a step of that name, and its integral as a function of the share of the width that is passed."""


def _bend(x: Tensor, method: str, temperature: Scalar) -> Tensor:
    """Return the soft ``relu`` of finite ``x``."""
    if method == "gated":
        return x * soft_step(quotient(x, temperature))
    if method in _INTEGRALS:
        half, integral = _INTEGRALS[method]
        if isinstance(temperature, Tensor):
            temperature = temperature.to(x)
        straight = x.detach() >= half * temperature
        share = (quotient(torch.where(straight, 0.0, x), temperature) / (2 * half) + 0.5).clamp(min=0.0)
        return torch.where(straight, x, temperature * integral(share))
    # Beyond 60 the difference from a straight line is below every rounding, and the quotient could overflow.
    if not isinstance(temperature, Tensor):
        return torch.nn.functional.softplus(x, beta=4 / temperature, threshold=60.0)
    temperature = temperature.to(x)
    straight = x.detach() > 15 * temperature
    bend = torch.nn.functional.softplus(quotient(4 * torch.where(straight, 0.0, x), temperature), threshold=60.0)
    return torch.where(straight, x, temperature / 4 * bend)


def _larger(a: Tensor, b: Tensor, method: str, temperature: Scalar) -> Tensor:
    difference = a - b
    finite = torch.isfinite(difference)
    larger = difference > 0
    # Symmetric: the larger one plus the bend at minus the distance, so that nothing large cancels.
    gap = torch.where(finite, torch.where(larger, -difference, difference), 0.0)
    soft = torch.where(larger, a, b) + _bend(gap, method, temperature)
    return torch.where(finite, soft, torch.maximum(a, b))
