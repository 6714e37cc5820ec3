"""The sigmoids of a soft comparison: steps from 0 to 1, all but one with slope 1 at 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pullback.core.checks import check_choice, check_floating
from pullback.core.shapes import Float, Tensor

__all__ = ["STEP_ERRORS", "soft_step"]

STEP_ERRORS = {
    "logistic": 0.2784645427610738 / 4,
    "gaussian": 0.0678087011146178,
    "cauchy": 1 / math.pi**2,
    "reciprocal": 1 / 4,
    "optimal": 1 / 16,
    "linear": 1 / 16,
    "cubic": 0.06526428962874675,
    "quintic": 0.06614332322155458,
    "logistic_phi": 0.04950803061665792,
}
"""``sup_x |x| (1 - f(|x|))`` of every distribution: the error of ``min``/``max`` built on it at steepness 1.

Cauchy and reciprocal tend to it as ``x -> inf``; the optimal has it from ``x = 1/4`` on, the others (the logistic:
Lambert ``W(1/e) / 4``) at one ``x``.
"""

_PHI = 1e-4
"""Where ``logistic_phi`` leaves its power, whose slope at 0 is infinite, for a straight line."""


def soft_step(x: Float[Tensor, "*shape"], distribution: str = "logistic") -> Float[Tensor, "*shape"]:
    r"""Return a relaxed Heaviside step: the cumulative distribution function of a symmetric distribution.

    .. math::
        \text{logistic: } \frac{1}{1 + e^{-4x}}, \qquad
        \text{gaussian: } \Phi(\sqrt{2 \pi} x), \qquad
        \text{cauchy: } \frac{\arctan(\pi x)}{\pi} + \frac12, \qquad
        \text{reciprocal: } \frac{x}{1 + 2|x|} + \frac12, \qquad
        \text{optimal: } \begin{cases} x + \frac12 & |x| \le \frac14 \\ 1 - \frac{1}{16 x} & x > \frac14 \\
        -\frac{1}{16 x} & x < -\frac14 \end{cases}

    .. math::
        \text{linear: } p, \; h = \tfrac12, \qquad
        \text{cubic: } p^2 (3 - 2 p), \; h = \tfrac34, \qquad
        \text{quintic: } p^3 (10 - 15 p + 6 p^2), \; h = \tfrac{15}{16}, \qquad
        p = \mathrm{clamp}\big(\tfrac{x}{2h} + \tfrac12, 0, 1\big)

    .. math::
        \text{logistic\_phi: } \frac{1}{1 + e^{-4 \varphi(x)}}, \qquad
        \varphi(x) = \frac{x}{(x^2 + 10^{-8})^{1/8}} \approx \mathrm{sign}(x) |x|^{3/4}

    All are increasing and satisfy ``f(-x) = 1 - f(x)``. All but logistic_phi have slope 1 at 0, so that steepness means
    the same for each: ``soft_step(steepness * x)`` has slope ``steepness`` at 0. The slopes of cauchy, reciprocal and
    optimal decay like ``1/x^2``, which makes ``x f(x)`` monotonic; those of logistic and gaussian vanish far out.
    Linear, cubic and quintic are exactly 0 and 1 from ``|x| = h`` on; they have 0, 1 and 2 continuous derivatives (the
    modes c0, c1, c2 of softtorch, whose softness is ``1/10``, ``3/20`` and ``3/16`` of the temperature here).
    Logistic_phi pushes small differences apart before the logistic: its slope is 10 at 0 and its tail is longer. A
    steepness ``b`` of diffsort's step of that name is ``(b / 4)^(4/3)`` here.

    Args:
        x: ``[*shape]`` any floating dtype; ``+-inf`` give exactly 1 and 0 with gradient 0, NaN stays NaN.
        distribution: ``"logistic"``, ``"gaussian"``, ``"cauchy"``, ``"reciprocal"``, ``"optimal"``, ``"linear"``,
            ``"cubic"``, ``"quintic"`` or ``"logistic_phi"``.

    Returns:
        ``[*shape]`` in ``[0, 1]``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: unknown ``distribution``.

    Example:
        >>> x = torch.tensor([-torch.inf, -0.5, 0.0, 0.5, torch.inf])
        >>> soft_step(x, "optimal").tolist()
        [0.0, 0.125, 0.5, 0.875, 1.0]
        >>> soft_step(x, "reciprocal").tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]

    References:
        Petersen, Borgelt, Kuehne, Deussen (2022), Monotonic differentiable sorting networks, equations 7-10 (there
        with other scales: ``arctan(x)``, ``x / (2 + |x|)``, logistic of ``x``). Petersen, Borgelt, Kuehne, Deussen
        (2021), Differentiable sorting networks for scalable sorting and ranking supervision, section 4, for the
        activation replacement ``phi``.
    """
    check_floating("x", x)
    check_choice("distribution", distribution, _STEPS)
    return _STEPS[distribution](x)


def _logistic(x: Tensor) -> Tensor:
    return torch.sigmoid(4 * x)


def _gaussian(x: Tensor) -> Tensor:
    # erfc keeps the relative precision of the lower tail.
    return 0.5 * torch.erfc(-math.sqrt(math.pi) * x)


def _cauchy(x: Tensor) -> Tensor:
    # Below -1 the sum arctan + 1/2 cancels; 1/2 - arctan(t)/pi = arctan(1/t)/pi keeps the tail's relative precision.
    tail = x < -1
    inside = torch.atan(math.pi * torch.where(tail, 0.0, x)) / math.pi + 0.5
    return torch.where(tail, torch.atan(1 / (-math.pi * torch.where(tail, x, -1.0))) / math.pi, inside)


def _reciprocal(x: Tensor) -> Tensor:
    # x / (1 + 2 |x|) has the right derivative at 0, but is inf / inf far out and cancels against 1/2 below 0.
    tail = x.abs() > 1
    outside = 0.5 / (1 + 2 * torch.where(tail, x.abs(), 1.0))
    near = torch.where(tail, 0.0, x)
    return torch.where(tail, torch.where(x > 0, 1 - outside, outside), near / (1 + 2 * near.abs()) + 0.5)


def _optimal(x: Tensor) -> Tensor:
    tail = x.abs() > 0.25
    outside = 1 / (16 * torch.where(tail, x.abs(), 1.0))
    return torch.where(tail, torch.where(x > 0, 1 - outside, outside), torch.where(tail, 0.0, x) + 0.5)


def _share(x: Tensor, half: float) -> Tensor:
    """Return how much of ``[-half, half]`` lies below ``x``."""
    return (x / (2 * half) + 0.5).clamp(0.0, 1.0)


def _linear(x: Tensor) -> Tensor:
    return _share(x, 0.5)


def _cubic(x: Tensor) -> Tensor:
    p = _share(x, 0.75)
    return p * p * (3 - 2 * p)


def _quintic(x: Tensor) -> Tensor:
    p = _share(x, 0.9375)
    return p * p * p * (10 - p * (15 - 6 * p))


def _logistic_phi(x: Tensor) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):  # neither the square of 1e-4 nor that of 1e6 is a number there
        return _logistic_phi(x.float()).to(x.dtype)
    near = x.clamp(-1e6, 1e6)  # beyond it is 0 or 1; squares of larger numbers may overflow
    return torch.sigmoid(4 * near * (near * near + _PHI**2) ** -0.125)


_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": _logistic,
    "gaussian": _gaussian,
    "cauchy": _cauchy,
    "reciprocal": _reciprocal,
    "optimal": _optimal,
    "linear": _linear,
    "cubic": _cubic,
    "quintic": _quintic,
    "logistic_phi": _logistic_phi,
}
