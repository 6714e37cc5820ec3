"""Filters of Gaussian state-space models in square-root form: linear, extended, unscented; their smoother.

Covariances are carried as factors S with :math:`P=SS^T` and renewed by orthogonal transformations alone, so that they
stay positive semi-definite in any precision. Both halves of a step are one operation: of a Gaussian x and
:math:`z=h(x)+\\mathrm{noise}` keep the factors of z, of their dependence, and of x given z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.gaussian_models import (
    LinearGaussian,
    NonlinearGaussian,
    check_observations,
    covariance_factor,
    triangular,
)

__all__ = [
    "Filtered",
    "Smoothed",
    "extended_kalman_filter",
    "kalman_filter",
    "rts_smoother",
    "unscented_kalman_filter",
]


class Filtered(NamedTuple):
    """What a Gaussian filter knows at each time.

    Attributes:
        means: ``[*batch, T, d]`` of the state given the observations up to its time.
        factors: ``[*batch, T, d, d]`` lower triangular S with covariance ``S @ S.mT``.
        predicted_means: ``[*batch, T, d]`` given those before its time; the first is the prior.
        predicted_factors: ``[*batch, T, d, d]``; the first one need not be triangular.
        cross: ``[*batch, T - 1, d, d]`` covariance of a state and the next one, divided by the factor of the next.
        rest: ``[*batch, T - 1, d, d]`` factors of a state's covariance once the next state is known.
        increments: ``[*batch, T]`` log density of each observation given those before it.
        log_evidence: ``[*batch]`` their sum.
    """

    means: Float[Tensor, "*batch T d"]
    factors: Float[Tensor, "*batch T d d"]
    predicted_means: Float[Tensor, "*batch T d"]
    predicted_factors: Float[Tensor, "*batch T d d"]
    cross: Float[Tensor, "*batch T-1 d d"]
    rest: Float[Tensor, "*batch T-1 d d"]
    increments: Float[Tensor, "*batch T"]
    log_evidence: Float[Tensor, "*batch"]


class Smoothed(NamedTuple):
    """What all observations say of each state.

    Attributes:
        means: ``[*batch, T, d]``.
        factors: ``[*batch, T, d, d]`` lower triangular S with covariance ``S @ S.mT``.
    """

    means: Float[Tensor, "*batch T d"]
    factors: Float[Tensor, "*batch T d d"]


_Spread = tuple[Tensor, Tensor, Tensor]
"""The mean of h(x), and factors of deviations of h(x) and of x (the same columns)."""


def kalman_filter(model: LinearGaussian, y: Float[Tensor, "*#batch T k"]) -> Filtered:
    r"""Return the exact laws of the states of a linear Gaussian model, and the evidence :math:`\log p(y)`.

    All is differentiable where covariances are positive definite. For the gradient of the evidence alone,
    :func:`kalman_evidence` is several times faster, and needs no more than positive semi-definite ones.

    Args:
        model: :class:`LinearGaussian`; its batch broadcasts against that of y.
        y: ``[*batch, T, k]`` finite, T >= 1.

    Returns:
        :class:`Filtered`. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: ``model`` is no LinearGaussian; y is no floating tensor or of another dtype.
        ValueError: shapes do not fit, y is not finite, a covariance is not symmetric positive semi-definite (R:
            definite).

    Example:
        >>> one = torch.eye(1)
        >>> seen = kalman_filter(LinearGaussian(one, one, one, one, torch.zeros(1), one), torch.tensor([[1.0], [1.0]]))
        >>> seen.means.flatten(), (seen.factors**2).flatten()
        (tensor([0.5000, 0.8000]), tensor([0.5000, 0.6000]))

    References:
        Kalman (1960), A new approach to linear filtering and prediction problems. Kailath, Sayed, Hassibi (2000),
        Linear estimation, section 12.3 (array form).
    """
    if not isinstance(model, LinearGaussian):
        raise TypeError(f"model must be a LinearGaussian, got {type(model).__name__}")

    def through(matrix: Tensor) -> Callable[[Tensor, Tensor], _Spread]:
        return lambda mean, factor: ((matrix @ mean.unsqueeze(-1)).squeeze(-1), matrix @ factor, factor)

    wide = torch.promote_types(model.mean.dtype, torch.float32)
    return _filter(model, y, through(model.dynamics.to(wide)), through(model.emission.to(wide)))


def extended_kalman_filter(model: NonlinearGaussian, y: Float[Tensor, "*#batch T k"]) -> Filtered:
    r"""Filter with functions that are replaced by their tangents at the current mean.

    Args:
        model: :class:`NonlinearGaussian` with differentiable functions.
        y: ``[*batch, T, k]`` finite, T >= 1.

    Returns:
        :class:`Filtered`; ``log_evidence`` is that of the linearised model.

    Raises:
        TypeError: ``model`` is no NonlinearGaussian; y is no floating tensor or of another dtype.
        ValueError: shapes do not fit, y is not finite, a covariance is not positive semi-definite (R: definite).

    Example:
        >>> one = torch.eye(1)
        >>> model = NonlinearGaussian(lambda x: x, lambda x: x + x**3, one, one, torch.ones(1), 0.01 * one)
        >>> extended_kalman_filter(model, torch.tensor([[2.16]])).means  # the slope at 1 is 4
        tensor([[1.0055]])

    References:
        Särkkä (2013), Bayesian filtering and smoothing, section 5.2.
    """

    def through(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], _Spread]:
        def spread(mean: Tensor, factor: Tensor) -> _Spread:
            value, pull = torch.func.vjp(function, mean)  # type: ignore[misc]  # three only with has_aux
            each = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
            slopes = torch.stack([pull(row.expand(value.shape).contiguous())[0] for row in each], -2)
            return value, slopes @ factor, factor

        return spread

    return _filter(model, y, *(through(function) for function in _functions(model)))


def unscented_kalman_filter(
    model: NonlinearGaussian, y: Float[Tensor, "*#batch T k"], *, kappa: float = 0.0
) -> Filtered:
    r"""Filter with functions that are seen at 2 d + 1 points about the current mean.

    The points are the mean and :math:`\sqrt{d+\kappa}` times the columns of the factor to both sides; they weigh
    :math:`\kappa/(d+\kappa)` and :math:`1/2(d+\kappa)`. No weight is negative, so that no covariance can be.
    It equals :func:`kalman_filter` where the functions are linear; means are right to third order.

    Args:
        model: :class:`NonlinearGaussian`.
        y: ``[*batch, T, k]`` finite, T >= 1.
        kappa: >= 0; 0 leaves the middle out (the cubature filter), 3 - d, where positive, fits fourth moments.

    Returns:
        :class:`Filtered`; ``log_evidence`` is that of the Gaussian approximation.

    Raises:
        TypeError: ``model`` is no NonlinearGaussian; y is no floating tensor or of another dtype.
        ValueError: shapes do not fit, y is not finite, a covariance is not positive semi-definite (R: definite),
            kappa < 0.

    Example:
        >>> one = torch.eye(1)
        >>> model = NonlinearGaussian(lambda x: x, lambda x: x**2, one, one, torch.zeros(1), one)
        >>> unscented_kalman_filter(model, torch.tensor([[1.0]]), kappa=2.0).increments  # E x^2 = 1, its variance 2
        tensor([-1.4682])

    References:
        Julier, Uhlmann (1997), A new extension of the Kalman filter to nonlinear systems. van der Merwe, Wan (2001),
        The square-root unscented Kalman filter for state and parameter estimation. Arasaratnam, Haykin (2009),
        Cubature Kalman filters.
    """
    check_positive("kappa", kappa, zero=True)

    def through(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], _Spread]:
        def spread(mean: Tensor, factor: Tensor) -> _Spread:
            size = factor.shape[-1] + kappa
            steps = math.sqrt(size) * factor.mT
            seen = function(mean.unsqueeze(-2) + torch.cat([steps, -steps, torch.zeros_like(steps[..., :1, :])], -2))
            sides, middle = seen[..., :-1, :], seen[..., -1:, :]
            center = sides.sum(-2, keepdim=True) / (2 * size) + kappa / size * middle
            apart = torch.cat([sides - center, math.sqrt(2 * kappa) * (middle - center)], -2) / math.sqrt(2 * size)
            own = torch.cat([factor, -factor, torch.zeros_like(factor[..., :1])], -1) / math.sqrt(2)
            return center.squeeze(-2), apart.mT, own

        return spread

    return _filter(model, y, *(through(function) for function in _functions(model)))


def rts_smoother(filtered: Filtered) -> Smoothed:
    r"""Let later observations speak for earlier states: from the end backwards, :math:`p(x_t|y_1\dots y_T)`.

    .. math:: \hat m_t=m_t+G_t(\hat m_{t+1}-m^-_{t+1}),\quad \hat P_t=\mathrm{Cov}(x_t|x_{t+1})+G_t\hat P_{t+1}G_t^T

    Args:
        filtered: the result of any of the Gaussian filters; predicted covariances of rank d.

    Returns:
        :class:`Smoothed`, exact for a linear model.

    Raises:
        TypeError: ``filtered`` is no :class:`Filtered`.
        ValueError: a predicted covariance is singular.

    Example:
        >>> one = torch.eye(1)
        >>> seen = kalman_filter(LinearGaussian(one, one, one, one, torch.zeros(1), one), torch.tensor([[1.0], [1.0]]))
        >>> rts_smoother(seen).means.flatten()
        tensor([0.6000, 0.8000])

    References:
        Rauch, Tung, Striebel (1965), Maximum likelihood estimates of linear dynamic systems.
    """
    if not isinstance(filtered, Filtered):
        raise TypeError(f"filtered must be the result of a filter, got {type(filtered).__name__}")
    wide = torch.promote_types(filtered.means.dtype, torch.float32)
    f = Filtered(*(x.to(wide) for x in filtered))
    size = f.predicted_factors.detach().diagonal(dim1=-2, dim2=-1)[..., 1:, :]
    if can_look(size) and bool((size.amin(-1) <= 8 * torch.finfo(wide).eps * size.amax(-1)).any()):
        raise ValueError("predicted covariances must be regular to smooth: give the states some process noise")
    mean, factor = f.means[..., -1, :], f.factors[..., -1, :, :]
    means, factors = [mean], [factor]
    for t in reversed(range(f.means.shape[-2] - 1)):
        ahead = f.predicted_factors[..., t + 1, :, :]
        gap = (mean - f.predicted_means[..., t + 1, :]).unsqueeze(-1)
        both = torch.linalg.solve_triangular(ahead, torch.cat([gap, factor], -1), upper=False)
        moved = f.cross[..., t, :, :] @ both
        mean = f.means[..., t, :] + moved[..., 0]
        factor = triangular(torch.cat([f.rest[..., t, :, :], moved[..., 1:]], -1))
        means.append(mean)
        factors.append(factor)
    dtype = filtered.means.dtype
    return Smoothed(torch.stack(means[::-1], -2).to(dtype), torch.stack(factors[::-1], -3).to(dtype))


def _filter(
    model: LinearGaussian | NonlinearGaussian,
    y: Tensor,
    dynamics: Callable[[Tensor, Tensor], _Spread],
    emission: Callable[[Tensor, Tensor], _Spread],
) -> Filtered:
    wide = torch.promote_types(model.mean.dtype, torch.float32)
    q = covariance_factor("process_noise", model.process_noise)
    r = covariance_factor("observation_noise", model.observation_noise, definite=True)
    factor = covariance_factor("covariance", model.covariance)
    matrices = [t.shape[:-2] for t in (q, r, factor, *_matrices(model))]
    batch = check_broadcast(**{f"field {i}": tuple(s) for i, s in enumerate([*matrices, model.mean.shape[:-1]])})
    batch = check_observations(y, model.mean, r.shape[-1], batch)
    mean = model.mean.to(wide).expand(*batch, model.mean.shape[-1])
    outputs: list[tuple[Tensor, ...]] = []
    steps: list[tuple[Tensor, Tensor]] = []
    for t, seen in enumerate(y.to(wide).expand(*batch, *y.shape[-2:]).unbind(-2)):
        if t:
            mean, apart, own = dynamics(mean, factor)
            factor, cross, rest = _condition(apart, own, q)
            steps.append((cross, rest))
        prior = (mean, factor)
        expected, apart, own = emission(mean, factor)
        if expected.shape[-1:] != seen.shape[-1:]:
            raise ValueError(f"emission must return {seen.shape[-1]} numbers, got {expected.shape[-1]}")
        scale, gain, factor = _condition(apart, own, r)
        white = torch.linalg.solve_triangular(scale, (seen - expected).unsqueeze(-1), upper=False)
        mean = mean + (gain @ white).squeeze(-1)
        spread = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1) + seen.shape[-1] * math.log(2 * math.pi) / 2
        outputs.append((mean, factor, *prior, -white.square().sum((-2, -1)) / 2 - spread))
    # Factors of a linear model do not depend on y: they are computed once for a batch of it.
    wholes = [
        tuple(x.expand((*batch, *x.shape[x.ndim - n :])) for x, n in zip(o, _RANKS, strict=True)) for o in outputs
    ]
    means, factors, prior_means, prior_factors, increments = zip(*wholes, strict=True)
    empty = factor.new_zeros(*batch, 0, *factor.shape[-2:])
    whole = [tuple(x.expand(*batch, *x.shape[-2:]) for x in step) for step in steps]
    crosses, rests = (torch.stack(part, -3) for part in zip(*whole, strict=True)) if whole else (empty, empty)
    found = (
        torch.stack(means, -2),
        torch.stack(factors, -3),
        torch.stack(prior_means, -2),
        torch.stack(prior_factors, -3),
        crosses,
        rests,
        torch.stack(increments, -1),
        torch.stack(increments, -1).sum(-1),
    )
    return Filtered(*(x.to(y.dtype) for x in found))


_RANKS = (1, 2, 1, 2, 0)
"""How many dimensions each output of a step has besides the batch."""


def _condition(apart: Tensor, own: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factor of z = h(x) + noise, Cov(x, z) divided by its transpose, and the factor of x given z."""
    (k, d), columns = (noise.shape[-1], own.shape[-2]), own.shape[-1]
    batch = torch.broadcast_shapes(apart.shape[:-2], own.shape[:-2], noise.shape[:-2])
    above = torch.cat([apart.expand(*batch, k, columns), noise.expand(*batch, k, k)], -1)
    below = torch.cat([own.expand(*batch, d, columns), own.new_zeros(*batch, d, k)], -1)
    array = torch.cat([above, below], -2)
    lower = triangular(array)
    return lower[..., :k, :k], lower[..., k:, :k], lower[..., k:, k:]


def _matrices(model: LinearGaussian | NonlinearGaussian) -> list[Tensor]:
    return [model.dynamics, model.emission] if isinstance(model, LinearGaussian) else []


def _functions(model: NonlinearGaussian) -> list[Callable[[Tensor], Tensor]]:
    """Return both functions, called in the dtype of the model."""
    if not isinstance(model, NonlinearGaussian):
        raise TypeError(f"model must be a NonlinearGaussian, got {type(model).__name__}")
    dtype = model.mean.dtype
    wide = torch.promote_types(dtype, torch.float32)
    if dtype == wide:
        return [model.dynamics, model.emission]
    return [lambda x, own=own: own(x.to(dtype)).to(wide) for own in (model.dynamics, model.emission)]  # type: ignore[misc]
