"""Layers of analog hardware: few levels, values that are misread, everything clamped."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from pullback.core.checks import check_floating, check_positive, check_range
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor

__all__ = ["AnalogLayer", "leakage_to_std", "reduce_precision", "std_to_leakage"]

Number = TypeVar("Number", float, Tensor)


def reduce_precision(
    x: Float[Tensor, "*shape"],
    precision: float,
    *,
    divide: float = 0.5,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    r"""Round to ``precision`` levels per unit, with the gradient of the identity.

    ``q(x) = sign(x) max(floor(|x| p), ceil(|x| p - divide)) / p``: ``|x| p`` is rounded up where its fraction exceeds
    ``divide``, so 1/2 rounds to the nearest level and halves towards 0. With ``stochastic`` it is rounded up with the
    probability of its fraction, and ``q(x)`` is right in the mean.

    Args:
        x: ``[*shape]``.
        precision: ``p > 0`` levels per unit; ``b`` bits are ``2 ** b``.
        divide: in ``[0, 1]``, the fraction beyond which it is rounded up; unused with ``stochastic``.
        stochastic: round at random.
        generator: of these draws; torch's default one if ``None``.

    Returns:
        ``[*shape]``; numbers too large to have a fraction are unchanged.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``precision`` or ``divide`` is out of range.

    Example:
        >>> x = torch.tensor([0.3, -0.6, 0.125], requires_grad=True)
        >>> reduce_precision(x, 4)
        tensor([ 0.2500, -0.5000,  0.0000], grad_fn=<...>)

    References:
        Shah, Youngblood (2023), AnalogVNN: a fully modular framework for modeling and optimizing photonic neural
        networks, section on reduced precision. Bengio, Leonard, Courville (2013), for the gradient.
    """
    check_floating("x", x)
    check_positive("precision", precision)
    check_range("divide", divide, 0, 1)
    wide = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    if stochastic:
        size = wide.abs() * precision
        draws = torch.rand(x.shape, generator=generator, dtype=wide.dtype, device=drawing_device(generator, x))
        levels = size.floor() + (draws.to(x.device) < size.frac())
        rounded = torch.copysign(levels / precision, wide)
    else:
        rounded = _rounded(wide, precision, divide)
    whole = wide.abs() >= 1 / (precision * torch.finfo(wide.dtype).eps)  # times the precision it may overflow
    rounded = torch.where(whole, wide, rounded)
    return replace_gradient(rounded.to(x.dtype), x)


def leakage_to_std(leakage: Number, precision: float) -> Number:
    r"""Return the standard deviation of Gaussian noise with which a level is misread as often as given.

    A level of width ``1 / p`` is read as another one with probability ``1 - erf(1 / (2 sqrt(2) s p))``, so
    ``s = 1 / (2 sqrt(2) p erfinv(1 - leakage)) = -1 / (2 p Phi^-1(leakage / 2))``. The outermost levels, which have one
    neighbour, are misread half as often.

    Args:
        leakage: probability in ``(0, 1)``, a number or a tensor.
        precision: ``p > 0`` levels per unit.

    Returns:
        ``s > 0`` in units of the values; a number for a number.

    Raises:
        TypeError: ``leakage`` is neither a number nor a floating tensor.
        ValueError: ``leakage`` or ``precision`` is out of range.

    Example:
        >>> round(leakage_to_std(0.5, 16), 4)
        0.0463

    References:
        Shah, Youngblood (2024), Leveraging continuously differentiable activation functions for learning in quantized
        noisy environments, equation of the leakage.
    """
    check_positive("precision", precision)
    level = _probability("leakage", leakage)
    quantile = torch.special.ndtri(_widened(level) / 2)
    return _like(leakage, -1 / (2 * precision * quantile))


def std_to_leakage(std: Number, precision: float) -> Number:
    r"""Return how often Gaussian noise makes a level be read as another one: ``1 - erf(1 / (2 sqrt(2) s p))``.

    Args:
        std: ``s > 0``, a number or a tensor, in units of the values.
        precision: ``p > 0`` levels per unit.

    Returns:
        The probability, in ``[0, 1)``; a number for a number. The inverse of :func:`leakage_to_std`.

    Raises:
        TypeError: ``std`` is neither a number nor a floating tensor.
        ValueError: ``std`` or ``precision`` is out of range.

    Example:
        >>> round(std_to_leakage(leakage_to_std(0.1, 8), 8), 6)
        0.1
    """
    check_positive("precision", precision)
    check_positive("std", std)
    value = check_floating("std", std) if isinstance(std, Tensor) else torch.tensor(std, dtype=torch.float64)
    least = 1 / (80 * precision)  # forty standard deviations to the next level: the probability is 0 from there on
    return _like(std, 2 * torch.special.ndtr(-1 / (2 * precision * _widened(value).clamp(min=least))))


class AnalogLayer(nn.Module):
    r"""A linear layer, a convolution or any other module, computed by simulated analog hardware.

    Its input and each of its parameters are clamped to ``[-clamp, clamp]``, reduced in precision and made noisy; its
    output is made noisy, clamped and reduced. The noise is there in training and in evaluation. Backward, the clamp
    passes what lies within it, precision and noise pass everything.

    Args:
        module: from one tensor to one tensor, with at least one parameter; used as it is, not copied.
        precision: levels per unit, > 0; ``None`` for unlimited, without noise.
        leakage: in ``(0, 1)``, how often a level is misread; ``None`` for no noise.
        clamp: > 0, the largest magnitude.
        generator: of the noise; torch's default one if ``None``. Kept as the attribute ``generator``.

    Attributes:
        noisy: whether the noise is on; set it to ``False`` for the noise-free layer of the same precision.
        std: of the noise, 0 without.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: ``module`` has no parameters, or ``precision``, ``leakage`` or ``clamp`` is out of range.

    Example:
        >>> layer = AnalogLayer(nn.Linear(3, 2), precision=16, leakage=0.5)
        >>> y = layer(torch.ones(1, 3))
        >>> bool((y * 16 == (y * 16).round()).all() and y.abs().max() <= 1)
        True

    References:
        Shah, Youngblood (2024), Leveraging continuously differentiable activation functions for learning in quantized
        noisy environments, section 2.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        precision: float | None,
        leakage: float | None = None,
        clamp: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
        if not any(True for _ in module.parameters()):
            raise ValueError(f"module must have parameters, got {type(module).__name__} without any")
        if precision is not None:
            check_positive("precision", precision)
        if leakage is not None and precision is None:
            raise ValueError("leakage must be None without a precision, whose levels it misreads")
        check_positive("clamp", clamp)
        self.module, self.precision, self.clamp, self.generator = module, precision, clamp, generator
        self.std = 0.0 if leakage is None or precision is None else leakage_to_std(leakage, precision)
        self.noisy = True

    def forward(self, x: Float[Tensor, "*inputs"]) -> Float[Tensor, "*outputs"]:
        """Return the module's value at ``x``, as the hardware computes it.

        Raises:
            TypeError: ``x`` is not a floating tensor.
        """
        check_floating("x", x)
        stored = {name: self._noise(self._levels(p)) for name, p in self.module.named_parameters()}
        y = torch.func.functional_call(self.module, stored, (self._noise(self._levels(x)),))
        return self._levels(self._noise(y))

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the layer."""
        return f"precision={self.precision}, std={self.std:.4g}, clamp={self.clamp}"

    def _levels(self, x: Tensor) -> Tensor:
        x = x.clamp(-self.clamp, self.clamp)
        return x if self.precision is None else replace_gradient(_rounded(x.detach(), self.precision), x)

    def _noise(self, x: Tensor) -> Tensor:
        if not self.std or not self.noisy:
            return x
        device = drawing_device(self.generator, x)
        return x + self.std * torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=device).to(x.device)


def _rounded(x: Tensor, precision: float, divide: float = 0.5) -> Tensor:
    size = x.abs() * precision
    # the ceiling is below the floor nowhere but at whole numbers, for a fraction of 1
    return torch.copysign((size.floor() if divide == 1 else (size - divide).ceil()) / precision, x)


def _probability(name: str, value: float | Tensor) -> Tensor:
    check_positive(name, value)
    tensor = check_floating(name, value) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    if bool((tensor >= 1).any()):
        raise ValueError(f"{name} must be below 1, got {float(tensor.max())}")
    return tensor


def _like(given: Number, result: Tensor) -> Number:
    return result.to(given.dtype) if isinstance(given, Tensor) else float(result)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
