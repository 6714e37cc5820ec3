"""How far an estimator of a gradient is from the gradient: bias, variance, direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.core.checks import check_finite, check_floating, check_same_dtype
from pullback.core.shapes import Float

__all__ = ["EstimatorError", "estimator_error"]


@dataclass(frozen=True)
class EstimatorError:
    """Bias and variance of an estimator of a gradient, measured on independent estimates.

    Attributes:
        bias: mean of the estimates minus the exact gradient, shaped like it (by name where it is given by name).
        standard_error: of the bias, shaped like it.
        z: the bias in standard errors, shaped like it: near a standard normal number in every coordinate of an
            unbiased estimator. 0 where the bias is rounding; infinite where it is more, and all estimates are equal.
        largest_z: largest ``|z|``. Of n coordinates of an unbiased estimator it exceeds ``sqrt(2 log 2n)`` seldom.
        mean_squared_z: mean of ``z^2`` over the coordinates that vary or are off: near 1 without bias. 0 if none is.
        variance: ``E ||g - E g||^2``, summed over coordinates (unbiased estimate).
        relative_variance: the variance over ``||exact||^2``; infinite where only that is 0, 0 where both are.
        relative_bias: ``||bias||^2`` less what the variance explains of it, over ``||exact||^2``: near 0, also below,
            without bias; at a zero gradient as the relative variance.
        cosine: mean over the estimates of the cosine between an estimate and the exact gradient; 0 where one is 0.
        mean_cosine: cosine between the mean of the estimates and the exact gradient.
        draws: number of estimates.
    """

    bias: Tensor | dict[str, Tensor]
    standard_error: Tensor | dict[str, Tensor]
    z: Tensor | dict[str, Tensor]
    largest_z: float
    mean_squared_z: float
    variance: float
    relative_variance: float
    relative_bias: float
    cosine: float
    mean_cosine: float
    draws: int


def estimator_error(
    estimates: Float[Tensor, "draws *shape"] | Mapping[str, Tensor],
    exact: Float[Tensor, "*shape"] | Mapping[str, Tensor],
    *,
    weights: Float[Tensor, " draws"] | None = None,
) -> EstimatorError:
    r"""Compare independent estimates of a gradient with the exact gradient.

    With estimates ``g_1 .. g_K`` and the gradient ``d``, in each coordinate
    ``bias = mean(g) - d``, ``standard error = sqrt(var(g) / K)``, ``z = bias / standard error``.
    An unbiased estimator has ``|z|`` below 3 in most coordinates, but not in all: of 650 the largest is 2.7 to 3.9.
    Judge all of them together by ``largest_z`` and ``mean_squared_z``. With ``weights`` the estimates are instead all
    that the estimator can give, with their probabilities: bias and variance are exact, the standard error is 0.

    Args:
        estimates: ``[draws, *shape]`` at least two independent estimates; or tensors ``[draws, *shape]`` by name.
        exact: ``[*shape]`` the gradient, or an average of a far larger number of estimates; by the same names.
        weights: ``[draws]`` probabilities >= 0 with sum 1, or ``None`` for independent estimates.

    Returns:
        An :class:`EstimatorError`. Sums are taken in double precision; units are those of the gradient.

    Raises:
        TypeError: a tensor is not floating, dtypes differ, or only one of the two is given by name.
        ValueError: names or shapes do not match, there are fewer than two estimates or no coordinates, a number is not
            finite, or ``weights`` are no probabilities.

    Example:
        >>> gradient = torch.tensor([3.0, 4.0])
        >>> v = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
        >>> error = estimator_error((v @ gradient)[:, None] * v, gradient)  # forward gradients
        >>> error.largest_z < 4, round(error.relative_variance, 1)  # unbiased, variance (n + 1) ||gradient||^2
        (True, 3.0)
        >>> round(estimator_error(v + gradient / 2, gradient).relative_bias, 2)  # half of it is missing
        0.25

    References:
        Mohamed, Rosca, Figurnov, Mnih (2020), Monte Carlo gradient estimation in machine learning, JMLR 21.
    """
    names = _names(estimates, exact)
    g, d, shapes = _flat(estimates, exact)
    scale = float(torch.maximum(g.abs().max(), d.abs().max())) or 1.0  # squares of the largest numbers are finite then
    eps = torch.finfo(g.dtype).eps
    g, d = g.double() / scale, d.double() / scale
    draws = len(g)
    w = _probabilities(weights, draws).to(g.device)
    mean = w @ g
    variance = w @ (g - mean).square() * (1.0 if weights is not None else draws / (draws - 1))
    error = torch.zeros_like(d) if weights is not None else (variance / draws).sqrt()
    bias = mean - d
    off = bias.abs() > 4 * eps * torch.maximum(g.abs().amax(0), d.abs())
    z = torch.where(off, bias / error, 0.0)
    counted = off | (variance > 0)
    total, size = float(variance.sum()), float(d.square().sum())
    excess = float(bias.square().sum() - error.square().sum())
    alone = torch.linalg.vecdot(_unit(g), _unit(d))

    def shaped(flat: Tensor) -> Tensor | dict[str, Tensor]:
        parts = flat.split([math.prod(shape) for shape in shapes])
        tensors = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return tensors[0] if names is None else dict(zip(names, tensors, strict=True))

    return EstimatorError(
        bias=shaped(scale * bias),
        standard_error=shaped(scale * error),
        z=shaped(z),
        largest_z=float(z.abs().max()),
        mean_squared_z=float(z[counted].square().mean()) if bool(counted.any()) else 0.0,
        variance=scale * (scale * total),
        relative_variance=_ratio(total, size),
        relative_bias=_ratio(excess, size),
        cosine=float(w.to(alone) @ alone),
        mean_cosine=float(_unit(mean) @ _unit(d)),
        draws=draws,
    )


def _probabilities(weights: Tensor | None, draws: int) -> Tensor:
    if weights is None:
        return torch.full((draws,), 1 / draws, dtype=torch.float64)
    if check_floating("weights", weights).shape != (draws,):
        raise ValueError(f"weights must have shape ({draws},), got {tuple(weights.shape)}")
    check_finite("weights", weights)
    w = weights.detach().double()
    if bool((w < 0).any()) or abs(float(w.sum()) - 1) > 1e-3:
        raise ValueError(f"weights must be >= 0 with sum 1, got minimum {float(w.min())} and sum {float(w.sum())}")
    return w / w.sum()


def _names(estimates: Tensor | Mapping[str, Tensor], exact: Tensor | Mapping[str, Tensor]) -> list[str] | None:
    if isinstance(estimates, Tensor) and isinstance(exact, Tensor):
        return None
    if not isinstance(estimates, Mapping) or not isinstance(exact, Mapping):
        came = f"{type(estimates).__name__} and {type(exact).__name__}"
        raise TypeError(f"estimates and exact must be two tensors or two mappings of names to tensors, got {came}")
    if set(estimates) != set(exact):
        raise ValueError(f"estimates and exact must have the same names, got {sorted(estimates)} and {sorted(exact)}")
    return list(exact)


def _flat(
    estimates: Tensor | Mapping[str, Tensor], exact: Tensor | Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, list[torch.Size]]:
    """Return the estimates ``[draws, n]``, the gradient ``[n]`` and the shapes of its parts, checked."""
    if isinstance(estimates, Tensor) and isinstance(exact, Tensor):
        pairs = [("estimates", "exact", estimates, exact)]
    else:
        assert isinstance(estimates, Mapping)
        assert isinstance(exact, Mapping)
        pairs = [(f"estimates[{n!r}]", f"exact[{n!r}]", estimates[n], exact[n]) for n in exact]
    draws = None
    for first, second, many, one in pairs:
        check_floating(first, many)
        check_floating(second, one)
        check_same_dtype(**{first: many, second: one})
        if many.ndim != one.ndim + 1 or many.shape[1:] != one.shape:
            wanted = f"shape (draws, *{tuple(one.shape)}), one more dimension than {second}"
            raise ValueError(f"{first} must have {wanted}, got {tuple(many.shape)}")
        if len(many) < 2 or (draws is not None and len(many) != draws):
            wanted = "at least 2" if draws is None else f"as many as the others, {draws},"
            raise ValueError(f"{first} must hold {wanted} estimates, got {len(many)}")
        draws = len(many)
        check_finite(first, many)
        check_finite(second, one)
    g = torch.cat([many.detach().reshape(len(many), -1) for _, _, many, _ in pairs], 1)
    d = torch.cat([one.detach().reshape(-1) for _, _, _, one in pairs])
    if not d.numel():
        raise ValueError(f"exact must have at least one element, got shapes {[tuple(p[3].shape) for p in pairs]}")
    return g, d, [one.shape for _, _, _, one in pairs]


def _unit(x: Tensor) -> Tensor:
    largest = x.abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)


def _ratio(a: float, b: float) -> float:
    if b > 0 or not a:
        return a / (b or 1.0)
    return math.copysign(math.inf, a)
