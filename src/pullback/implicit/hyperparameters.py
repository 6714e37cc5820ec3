"""Hyperparameters as tensors without constraint, with a distribution around them; dropout that differs by example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import softplus

from pullback.core.checks import check_floating, check_integer, check_positive, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["Hyperparameter", "Hyperparameters", "dropout_by_example"]


@dataclass(frozen=True)
class Hyperparameter:
    r"""A hyperparameter's start and range, and so the map from an unconstrained ``u`` to its value.

    ====================  =========================================================================================
    range                 value
    ====================  =========================================================================================
    ``low .. high``       :math:`low + (high - low)\, \sigma(u)`; with ``log``, :math:`low\,(high / low)^{\sigma(u)}`
    ``low`` .. infinity   :math:`low + \log(1 + e^u)`; with ``log``, :math:`low + e^u`
    none                  :math:`u`
    ====================  =========================================================================================

    Attributes:
        start: first value, inside the range and off its ends (with ``integer`` it may be an end).
        low: least value, or ``-math.inf``, with ``high`` infinite.
        high: largest value, or ``math.inf``.
        integer: rounded to the nearest integer of the range, whose ends are integers or infinite; from the unrounded
            value comes no gradient.
        log: for values of many magnitudes.
        scale: > 0, standard deviation of the perturbations of ``u`` at the start.

    Raises:
        ValueError: the start is outside of the range, the range is empty or cannot be, ``scale`` is not > 0.
    """

    start: float
    low: float = 0.0
    high: float = 1.0
    integer: bool = False
    log: bool = False
    scale: float = 0.5

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.low == -math.inf and self.high < math.inf):
            raise ValueError(f"low and high must be a range, low < high, open below only with both, got {self}")
        if self.log and (self.low == -math.inf or (self.high < math.inf and self.low <= 0)):
            raise ValueError(f"log needs low > 0, or a finite low without high, got {self}")
        if self.integer and (self.log or any(math.isfinite(end) and end % 1 for end in (self.low, self.high))):
            raise ValueError(f"integer needs integers as low and high, and no log, got {self}")
        inside = self.low <= self.start <= self.high if self.integer else self.low < self.start < self.high
        if not inside:
            raise ValueError(f"start must be between low = {self.low:g} and high = {self.high:g}, got {self.start:g}")
        check_positive("scale", self.scale)

    @property
    def unconstrained(self) -> float:
        """``u`` at the start."""
        low, high = self._ends
        if math.isinf(low):
            return self.start
        if math.isinf(high):
            return math.log(self.start - low) if self.log else _inverse_softplus(self.start - low)
        if self.log:
            share = math.log(self.start / low) / math.log(high / low)
        else:
            share = (self.start - low) / (high - low)
        return math.log(share) - math.log1p(-share)

    def value(self, u: Tensor) -> Tensor:
        """Return the value at ``u``, elementwise, differentiable; of an integer, before it is rounded.

        With ``log`` and without ``high``, what exceeds the dtype is infinite.
        """
        low, high = self._ends
        if math.isinf(low):
            return u
        if math.isinf(high):
            return low + (torch.exp(u) if self.log else softplus(u))
        if self.log:
            return low * torch.exp(math.log(high / low) * torch.sigmoid(u))
        return low + (high - low) * torch.sigmoid(u)

    def rounded(self, value: Tensor) -> Tensor:
        """Return the value, of an integer the nearest one in its range."""
        return value.round().clamp(self.low, self.high) + 0.0 if self.integer else value  # no negative zero

    @property
    def _ends(self) -> tuple[float, float]:
        """The range; each integer has an interval of length 1."""
        return (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)


class Hyperparameters(nn.Module):
    r"""Named hyperparameters as one vector ``u`` without constraint, with a normal distribution around it.

    .. math:: h = u + \mathrm{softplus}(s) \odot \varepsilon, \quad \varepsilon \sim N(0, I)

    Layers that answer hyperparameters take ``h``; a training loss takes :meth:`values` of the same ``h``, the dropout
    rates, noise levels and counts themselves. ``u`` and ``s`` are this module's parameters, for an optimizer.

    Args:
        spec: a :class:`Hyperparameter` for each name, in the order of the vector.
        tune_scale: whether ``s`` requires a gradient; else it stays as it starts.

    Attributes:
        center: ``u [hyperparameters]``.
        raw_scale: ``s [hyperparameters]``.

    Raises:
        TypeError: something else than a ``Hyperparameter``.
        ValueError: ``spec`` is empty.

    Example:
        >>> h = Hyperparameters({"dropout": Hyperparameter(0.2), "shift": Hyperparameter(1, 0, 2, integer=True)})
        >>> {name: round(value.item(), 3) for name, value in h.values().items()}
        {'dropout': 0.2, 'shift': 1.0}
        >>> around = h.perturb(64, generator=torch.Generator().manual_seed(0))
        >>> around.shape, sorted(set(h.values(around)["shift"].tolist()))
        (torch.Size([64, 2]), [0.0, 1.0, 2.0])

    References:
        MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks, section 3.3 and appendix on
        hyperparameters.
    """

    def __init__(self, spec: Mapping[str, Hyperparameter], *, tune_scale: bool = True) -> None:
        super().__init__()
        if not spec:
            raise ValueError("spec must name at least one hyperparameter, got none")
        for name, item in spec.items():
            if not isinstance(item, Hyperparameter):
                raise TypeError(f"spec[{name!r}] must be a Hyperparameter, got {type(item).__name__}")
        self.spec = dict(spec)
        self.center = nn.Parameter(torch.tensor([item.unconstrained for item in spec.values()]))
        scales = torch.tensor([_inverse_softplus(item.scale) for item in spec.values()])
        self.raw_scale = nn.Parameter(scales, requires_grad=tune_scale)

    def __len__(self) -> int:
        return len(self.spec)

    @property
    def scale(self) -> Float[Tensor, "h"]:
        """``[hyperparameters]`` standard deviations of the perturbations, differentiable."""
        return softplus(self.raw_scale)

    def perturb(self, batch: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "batch h"]:
        """Return ``h [batch, hyperparameters]``, a draw for each example, differentiable in center and scale.

        Args:
            batch: >= 1, examples.
            generator: of the draws; torch's own by default.

        Raises:
            TypeError: ``batch`` is no integer.
            ValueError: it is < 1.
        """
        size = check_integer("batch", batch, 1), len(self)
        noise = torch.randn(size, device=drawing_device(generator, self.center), generator=generator)
        return self.center + self.scale * noise.to(self.center)

    def values(
        self, h: Float[Tensor, "*batch h"] | None = None, *, differentiable: bool = False
    ) -> dict[str, Float[Tensor, "*batch"]]:
        """Return the value ``[*batch]`` of each hyperparameter at ``h``.

        Args:
            h: ``[*batch, hyperparameters]``, unconstrained; by default the center.
            differentiable: with gradient in ``h``, which integers do not have.

        Raises:
            TypeError: ``h`` is no floating tensor.
            ValueError: ``h`` has another number of hyperparameters, or a gradient was asked for of an integer one.
        """
        h = self.center if h is None else check_floating("h", h)
        check_shape("h", h, (len(self),))
        integers = [name for name, item in self.spec.items() if item.integer]
        if differentiable and integers:
            raise ValueError(f"differentiable must be False where hyperparameters are integers, got {integers}")
        if not differentiable:
            h = h.detach()
        return {n: item.rounded(item.value(u)) for (n, item), u in zip(self.spec.items(), h.unbind(-1), strict=True)}

    def entropy(self) -> Float[Tensor, ""]:
        r"""Return the entropy of the perturbations, :math:`\sum_i \log(\sigma_i \sqrt{2 \pi e})`, in nats."""
        return (torch.log(self.scale) + 0.5 * math.log(2 * math.pi * math.e)).sum()


def dropout_by_example(
    x: Float[Tensor, "n *rest"], probability: Float[Tensor, "n"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "n *rest"]:
    r"""Drop entries of each example at the example's own rate, and scale what stays to keep the mean.

    .. math:: y_{ij} = \frac{m_{ij}}{1 - p_i} x_{ij}, \quad m_{ij} \sim \mathrm{Bernoulli}(1 - p_i)

    Args:
        x: ``[n, ...]``.
        probability: ``[n]`` in [0, 1]; at 1 the example is 0. No gradient passes to it.
        generator: of the draws; torch's own by default.

    Returns:
        ``[n, ...]``.

    Raises:
        TypeError: one is no floating tensor.
        ValueError: other than one probability an example, or outside of [0, 1].

    Example:
        >>> dropout_by_example(torch.ones(2, 3), torch.tensor([0.0, 1.0]))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov (2014), Dropout.
    """
    check_floating("x", x)
    if x.ndim < 1:
        raise ValueError("x must have examples along its first dimension, got no dimension")
    check_shape("probability", check_floating("probability", probability), (len(x),))
    if probability.ndim != 1:
        raise ValueError(f"probability must have shape ({len(x)},), got {tuple(probability.shape)}")
    if can_look(probability) and not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError("probability must be in [0, 1] everywhere")
    rate = probability.detach().to(torch.promote_types(x.dtype, torch.float32)).view(-1, *[1] * (x.ndim - 1))
    draws = torch.rand(x.shape, device=drawing_device(generator, x), generator=generator).to(x.device)
    factor = torch.where(draws >= rate, 1 / (1 - rate).clamp(min=torch.finfo(rate.dtype).tiny), 0)
    return x * factor.to(x.dtype)


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
