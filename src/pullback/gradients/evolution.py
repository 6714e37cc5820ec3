"""The gradient of a smoothed loss from function values alone: the reference where derivatives mislead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive

__all__ = ["EvolutionGradient", "evolution_gradient"]


@dataclass(frozen=True)
class EvolutionGradient:
    """An estimate of the gradient of a Gaussian-smoothed loss.

    Attributes:
        gradient: name to estimate, shaped like the parameter.
        standard_error: name to standard error of each element.
        value: estimate of the smoothed loss.
        evaluations: number of calls of the loss.
    """

    gradient: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    value: float
    evaluations: int


def evolution_gradient(
    loss: Callable[[dict[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    *,
    smoothing: float,
    pairs: int,
    generator: torch.Generator,
) -> EvolutionGradient:
    r"""Estimate the gradient of ``E_e L(p + s e)``, ``e ~ N(0, I)``, by antithetic pairs.

    ``g = 1 / (2 s K) sum_k (L(p + s e_k) - L(p - s e_k)) e_k``. It needs no derivative of ``L``, is unbiased for the
    smoothed loss, and its variance is bounded by ``(range of L)^2 / s^2`` per pair, however chaotic ``L`` is.

    Args:
        loss: maps parameters by name to a scalar.
        parameters: floating tensors by name; left unchanged.
        smoothing: ``s > 0``, in units of the parameters.
        pairs: ``K >= 2``.
        generator: of the directions.

    Returns:
        An :class:`EvolutionGradient`.

    Raises:
        TypeError: ``loss`` is not callable, or a parameter is not floating.
        ValueError: ``smoothing`` or ``pairs`` is out of range, or the loss is not a scalar.

    Example:
        >>> p = {"x": torch.tensor([3.0], dtype=torch.float64)}
        >>> estimate = evolution_gradient(lambda q: q["x"].square().sum(), p, smoothing=0.1, pairs=2000,
        ...                               generator=torch.Generator().manual_seed(0))
        >>> bool((estimate.gradient["x"] - 6).abs() < 4 * estimate.standard_error["x"])
        True

    References:
        Nesterov, Spokoiny (2017), Random gradient-free minimization of convex functions.
        Metz, Freeman, Schoenholz, Kachman (2021), Gradients are not all you need, section 4.
    """
    check_callable("loss", loss)
    check_positive("smoothing", smoothing)
    check_integer("pairs", pairs, 2)
    for name, tensor in parameters.items():
        check_floating(f"parameters[{name!r}]", tensor)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    mean = 0.0
    with torch.no_grad():
        for _ in range(pairs):
            noise = {
                name: torch.randn(p.shape, generator=generator, dtype=p.dtype, device=generator.device).to(p.device)
                for name, p in parameters.items()
            }
            plus = _scalar(loss({name: p + smoothing * noise[name] for name, p in parameters.items()}))
            minus = _scalar(loss({name: p - smoothing * noise[name] for name, p in parameters.items()}))
            mean += (plus + minus) / (2 * pairs)
            slope = (plus - minus) / (2 * smoothing)
            for name, direction in noise.items():
                total[name] += slope * direction / pairs
                squares[name] += (slope * direction).square() / pairs
    error = {name: ((squares[name] - total[name].square()).clamp_min(0) / (pairs - 1)).sqrt() for name in parameters}
    return EvolutionGradient(total, error, mean, 2 * pairs)


def _scalar(value: Tensor) -> float:
    if value.numel() != 1:
        raise ValueError(f"loss must return a scalar, got shape {tuple(value.shape)}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"loss must be finite at perturbed parameters, got {number}")
    return number
