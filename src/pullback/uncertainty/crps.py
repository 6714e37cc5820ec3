r"""The continuous ranked probability score: how far a predicted law is from what came, in its unit.

.. math:: \text{CRPS}(F, y) = \int (F(t) - 1[t \ge y])^2\, dt = E|X - y| - \tfrac{1}{2} E|X - X'|
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.levels import check_increasing_levels
from pullback.uncertainty.mixtures import MixtureOfGaussians

__all__ = ["crps", "crps_from_quantiles", "crps_from_samples"]


def crps(distribution: Any, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return the score of a law in closed form.

    .. math:: \sum_i w_i A(y - \mu_i, \sigma_i^2) - \tfrac{1}{2} \sum_{ij} w_i w_j A(\mu_i - \mu_j, \sigma_i^2 +
              \sigma_j^2), \qquad A(m, s^2) = m (2 \Phi(m / s) - 1) + 2 s\, \varphi(m / s)

    for mixtures of Gaussians. Least, on average, for the law that the data has.

    Args:
        distribution: :class:`MixtureOfGaussians`, ``torch.distributions.Normal``, ``Laplace``, or ``MixtureSameFamily``
            of ``Normal``. :func:`crps_from_quantiles` and :func:`crps_from_samples` take any law.
        y: what came; shapes are broadcast against the batch of laws.

    Returns:
        The score >= 0 in the unit of ``y``.

    Raises:
        TypeError: the law is of another kind, or of another dtype than ``y``.

    Example:
        >>> crps(torch.distributions.Normal(0.0, 1.0), torch.tensor([0.0, 2.0]))
        tensor([0.2337, 1.4528])

    References:
        Grimit, Gneiting, Berrocal, Johnson (2006), The continuous ranked probability score for circular variables and
        its application to mesoscale forecast ensemble verification, equation 4; Gneiting, Raftery (2007), section 4.2.
    """
    check_floating("y", y)
    if isinstance(distribution, torch.distributions.Laplace):
        centre, scale = distribution.loc, distribution.scale
        z = (y - centre).abs() / scale
        return scale * (z + torch.exp(-z) - 0.75)
    mixture = _as_mixture(distribution)
    check_same_dtype(y=y, mean=mixture.component_mean)
    check_broadcast(y=tuple(y.shape), batch=tuple(mixture.batch_shape))
    wide = torch.promote_types(y.dtype, torch.float32)  # in half precision distances overflow
    weights, mean, scale = (v.to(wide) for v in (mixture.logits, mixture.component_mean, mixture.component_scale))
    weights = weights.softmax(-1)
    to_y = (weights * _mean_distance(y[..., None].to(wide) - mean, scale)).sum(-1)
    apart = _mean_distance(
        mean[..., :, None] - mean[..., None, :], torch.hypot(scale[..., :, None], scale[..., None, :])
    )
    return (to_y - torch.einsum("...i,...j,...ij->...", weights, weights, apart) / 2).to(y.dtype)


def crps_from_quantiles(
    quantiles: Float[Tensor, "*batch k"], y: Float[Tensor, "*batch"], levels: Float[Tensor, "k"]
) -> Float[Tensor, "*batch"]:
    r"""Return the score of a law that is known by its quantiles: twice the integral of the pinball loss over the level.

    .. math:: 2 \sum_j (b_j - b_{j-1})\, \rho_{\tau_j}(y - q_j), \qquad b_0 = 0,\ b_j = (\tau_j + \tau_{j+1}) / 2,\
              b_k = 1

    Args:
        quantiles: ``[*batch, k]`` of the levels.
        y: ``[*batch]`` what came.
        levels: ``[k]`` increasing within (0, 1). For ``(j - 1/2) / k`` all weights are ``1 / k``.

    Returns:
        ``[*batch]`` >= 0 in the unit of ``y``.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, levels do not increase within (0, 1).

    Example:
        >>> levels = (torch.arange(1000.0) + 0.5) / 1000
        >>> round(float(crps_from_quantiles(torch.special.ndtri(levels), torch.tensor(2.0), levels)), 2)
        1.45

    References:
        Laio, Tamea (2007), Verification tools for probabilistic forecasts of continuous hydrological variables.
    """
    levels = check_increasing_levels("levels", levels)
    check_same_dtype(quantiles=check_floating("quantiles", quantiles), y=check_floating("y", y))
    if not len(levels) or tuple(quantiles.shape) != (*y.shape, len(levels)):
        raise ValueError(f"quantiles must have shape {(*y.shape, len(levels))}, got {tuple(quantiles.shape)}")
    levels = levels.to(quantiles)
    between = (levels[1:] + levels[:-1]) / 2
    ends = torch.cat([torch.zeros_like(levels[:1]), between, torch.ones_like(levels[:1])])
    half = y[..., None] / 2 - quantiles / 2
    return 4 * (ends.diff() * torch.maximum(levels * half, (levels - 1) * half)).sum(-1)


def crps_from_samples(
    samples: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch"], *, fair: bool = True
) -> Float[Tensor, "*batch"]:
    r"""Return the score of a law that is known by draws, in ``O(n log n)``.

    .. math:: \frac{1}{n} \sum_i |x_i - y| - \frac{1}{2 n (n - 1)} \sum_{ij} |x_i - x_j|

    Args:
        samples: ``[*batch, n]`` draws.
        y: ``[*batch]`` what came.
        fair: unbiased for the score of the law. ``False`` divides by ``n^2`` instead: the score of the draws as a law.

    Returns:
        ``[*batch]`` in the unit of ``y``; the fair one may be negative.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, there are too few draws.

    Example:
        >>> crps_from_samples(torch.tensor([1.0, 3.0]), torch.tensor(2.0), fair=False)
        tensor(0.5000)

    References:
        Ferro (2014), Fair scores for ensemble forecasts.
    """
    check_same_dtype(samples=check_floating("samples", samples), y=check_floating("y", y))
    n = samples.shape[-1] if samples.ndim else 0
    if tuple(samples.shape[:-1]) != tuple(y.shape) or n < 1 + fair:
        raise ValueError(f"samples must have shape {(*y.shape, 'n')} with n >= {1 + fair}, got {tuple(samples.shape)}")
    ordered = samples.sort(-1).values
    # The sum over pairs of their distance: every gap between neighbours counts for all pairs around it.
    place = torch.arange(1, n, dtype=samples.dtype, device=samples.device)
    around = place / n * ((n - place) / (n - fair))
    apart = ((ordered[..., 1:] - ordered[..., :-1]) * around).sum(-1)
    return (samples - y[..., None]).abs().mean(-1) - apart


def _as_mixture(distribution: Any) -> MixtureOfGaussians:
    normal, mixture = torch.distributions.Normal, torch.distributions.MixtureSameFamily
    if isinstance(distribution, MixtureOfGaussians):
        return distribution
    if isinstance(distribution, normal):
        mean, scale = distribution.loc[..., None], distribution.scale[..., None]
        return MixtureOfGaussians(torch.zeros_like(mean), mean, scale)
    if isinstance(distribution, mixture) and isinstance(law := distribution.component_distribution, normal):
        return MixtureOfGaussians(distribution.mixture_distribution.logits, law.loc, law.scale)
    raise TypeError(
        "distribution must be a MixtureOfGaussians, Normal, Laplace or MixtureSameFamily of Normal, got "
        f"{type(distribution).__name__}"
    )


def _mean_distance(mean: Tensor, scale: Tensor) -> Tensor:
    """Return E|X| of a normal X."""
    z = mean / scale
    return mean * torch.erf(z / math.sqrt(2)) + scale * math.sqrt(2 / math.pi) * torch.exp(-z.square() / 2)
