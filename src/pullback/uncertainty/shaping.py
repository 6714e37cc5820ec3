"""Shaping of features: what each value of a feature tells of a class, and the multiplier that makes most of it."""

from __future__ import annotations

import math

import torch
from torch import nn

from pullback.core.checks import check_finite, check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = ["Shaping", "feature_contributions", "optimal_shaping"]


def feature_contributions(
    features: Float[Tensor, "*batch n d"],
    weights: Float[Tensor, "classes d"],
    predictions: Int[Tensor, "*#batch n"],
    edges: Float[Tensor, "m1"],
) -> Float[Tensor, "*batch n m"]:
    r"""Return what the features with values in each bin add to the logit of the predicted class.

    .. math:: I_m(z) = \sum_{i:\, e_m \le z_i < e_{m+1}} w_{c,i}\, z_i

    The logit without bias of features that are multiplied by a function constant on bins,
    :math:`\theta(z_i)=\theta_m`, is :math:`\sum_m\theta_m I_m`: linear in theta. Differentiable in features and
    weights; the bins are held.

    Args:
        features: ``[*batch, n, d]``.
        weights: ``[classes, d]`` of the linear layer above them.
        predictions: ``[*batch, n]`` classes c, in 0..classes - 1.
        edges: ``[m + 1]`` of the bins, increasing; values outside of all bins count nowhere.

    Returns:
        ``[*batch, n, m]``; float16 and bfloat16 are added up in float32. O(n d) in time and memory.

    Raises:
        TypeError: features or weights are no floating tensors, their dtypes differ, predictions are no integers.
        ValueError: shapes do not fit, an edge is not above the one before, a prediction is no class.

    Example:
        >>> z, w = torch.tensor([[0.5, 1.5, 3.0]]), torch.tensor([[1.0, 1.0, 1.0], [2.0, 4.0, 6.0]])
        >>> feature_contributions(z, w, torch.tensor([1]), torch.tensor([0.0, 1.0, 2.0]))  # 3.0 lies outside
        tensor([[1., 6.]])

    References:
        Zhao, Xu, Gupta, Asthana, Zheng, Gould (2024), Towards optimal feature-shaping methods for out-of-distribution
        detection, section 4.
    """
    check_head(features, weights)
    check_edges(features, edges)
    _check_predictions(features, weights, predictions)
    share = (weights[predictions] * features).to(_wide(features.dtype))
    slots = torch.bucketize(features.detach().contiguous(), edges, right=True)  # 0 and m + 1: outside
    shape = torch.broadcast_shapes(share.shape, slots.shape)
    empty = share.new_zeros(*shape[:-1], len(edges) + 1)
    return empty.scatter_add(-1, slots.expand(shape), share)[..., 1:-1].to(features.dtype)


class Shaping(nn.Module):
    r"""Multiply each feature by a function of its own value, constant on bins: :math:`z'_i=\theta(z_i)\,z_i`.

    Outside of the bins theta is 0. The gradient in ``theta`` exists in both forms; that in z is theta itself where
    theta is constant, and complete with ``soft=True``, where theta is interpolated linearly between the middles of the
    bins, and to 0 at the outermost edges.

    Args:
        edges: ``[m + 1]`` of the bins, increasing, m >= 2.
        theta: ``[m]`` multipliers, the parameter.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: there are fewer than two bins, an edge is not above the one before, or a number is not finite.

    Example:
        >>> shaping = Shaping(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, -0.5]))
        >>> shaping(torch.tensor([-1.0, 0.5, 1.5, 2.0])).detach() + 0.0
        tensor([ 0.0000,  0.5000, -0.7500,  0.0000])

    References:
        Zhao et al. (2024), section 4.
    """

    edges: Tensor

    def __init__(self, edges: Float[Tensor, "m1"], theta: Float[Tensor, "m"]) -> None:
        super().__init__()
        check_floating("theta", theta)
        check_edges(theta, edges)
        if theta.shape != (len(edges) - 1,):
            raise ValueError(f"theta must have shape ({len(edges) - 1},), one a bin, got {tuple(theta.shape)}")
        if len(theta) < 2:
            raise ValueError("theta must have at least 2 bins, got 1")
        check_finite("theta", theta)
        self.register_buffer("edges", edges.detach().clone())
        self.theta = nn.Parameter(theta.detach().clone())

    def forward(self, z: Float[Tensor, "*batch d"], *, soft: bool = False) -> Float[Tensor, "*batch d"]:
        """Return the shaped features.

        Args:
            z: ``[*batch, d]`` of the module's dtype.
            soft: interpolate theta.

        Raises:
            TypeError: ``z`` is no floating tensor or of another dtype.
        """
        check_same_dtype(z=check_floating("z", z), theta=self.theta)
        none = self.theta.new_zeros(1)
        values = torch.cat([none, self.theta, none])
        if not soft:
            return values[torch.bucketize(z.detach().contiguous(), self.edges, right=True)] * z
        middles = self.edges[:-1] + self.edges.diff() / 2
        knots = torch.cat([self.edges[:1], middles, self.edges[-1:]])
        upper = torch.bucketize(z.detach().contiguous(), knots, right=True)
        inside = (upper > 0) & (upper < len(knots))
        upper = upper.clamp(1, len(knots) - 1)
        low, high = knots[upper - 1], knots[upper]
        part = torch.where(inside, (torch.where(inside, z, low) - low) / (high - low), 0)
        factor = torch.lerp(values[upper - 1], values[upper], part)
        return torch.where(inside, factor, 0) * z


def optimal_shaping(
    features: Float[Tensor, "n d"],
    weights: Float[Tensor, "classes d"],
    predictions: Int[Tensor, "n"],
    *,
    bins: int = 100,
    quantiles: tuple[float, float] = (1e-3, 1 - 1e-3),
    outlier: tuple[Float[Tensor, "k d"], Int[Tensor, "k"]] | None = None,
) -> Shaping:
    r"""Return the multiplier that raises the logits of a training set most, constant on equal bins.

    .. math:: \max_\theta\ E\Big[\sum_m\theta_m I_m\Big]\ \text{with}\ |\theta|^2=M
        \quad\Rightarrow\quad \theta=\sqrt M\,\bar I/|\bar I|,\qquad \bar I_m=E[I_m]

    in closed form: one pass over the features, without gradients and without data from outside. With ``outlier`` the
    expectation over those is subtracted from :math:`\bar I`.

    Args:
        features: ``[n, d]`` of the training set, n >= 1.
        weights: ``[classes, d]`` of the linear layer above them.
        predictions: ``[n]`` classes that the model predicts.
        bins: M >= 2.
        quantiles: of all features, from where to where the bins reach, in [0, 1].
        outlier: features ``[k, d]`` and predictions ``[k]`` of data from outside.

    Returns:
        :class:`Shaping`.

    Raises:
        TypeError: features or weights are no floating tensors, or their dtypes differ.
        ValueError: shapes do not fit, there are no samples, ``bins`` < 2, a feature is not finite, all features between
            the quantiles are equal, or no bin tells anything (the means are all 0).

    Example:
        >>> z, w = torch.tensor([[0.0, 1.0], [2.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> shaping = optimal_shaping(z, w, torch.tensor([1, 1]), bins=2, quantiles=(0, 1))
        >>> shaping.edges, shaping.theta.detach()  # 4 is at the upper end, outside; 1 is in the first bin
        (tensor([0., 2., 4.]), tensor([1.4142, 0.0000]))

    References:
        Zhao et al. (2024), section 4: with data from outside, and the closed form without.
    """
    _check_samples("features", features, weights, predictions)
    check_integer("bins", bins, 2)
    low, high = (_quantile(features, q) for q in _ordered(quantiles))
    edges = torch.linspace(float(low), float(high), bins + 1, dtype=torch.float64, device=features.device)
    edges = edges.to(features.dtype)
    if not bool((edges.diff() > 0).all()):
        raise ValueError(f"features must differ to be binned, got all between {float(low)} and {float(high)}")
    mean = _mean_contributions(features, weights, predictions, edges)
    if outlier is not None:
        _check_samples("outlier", *outlier[:1], weights, *outlier[1:])
        mean = mean - _mean_contributions(outlier[0], weights, outlier[1], edges)
    largest = mean.abs().max()
    if not bool(largest > 0):
        raise ValueError("features must contribute to the logits of their predictions, got nothing but 0")
    direction = mean / largest
    return Shaping(edges, (math.sqrt(bins) * direction / direction.norm()).to(features.dtype))


def check_head(features: Tensor, weights: Tensor, *, name: str = "features", of: str = "weights") -> None:
    """Refuse features and weights that do not belong to each other."""
    check_floating(name, features)
    check_floating(of, weights)
    check_same_dtype(**{name: features, of: weights})
    if weights.ndim != 2 or not weights.numel():
        raise ValueError(f"{of} must have shape (classes, d), got {tuple(weights.shape)}")
    if features.ndim < 1 or features.shape[-1] != weights.shape[1]:
        raise ValueError(
            f"{name} must have shape (..., {weights.shape[1]}), as wide as {of}, got {tuple(features.shape)}"
        )


def check_edges(values: Tensor, edges: Tensor) -> None:
    """Refuse edges that do not increase."""
    check_floating("edges", edges)
    check_same_dtype(edges=edges, values=values)
    if edges.ndim != 1 or len(edges) < 2:
        raise ValueError(f"edges must have shape (m + 1,) with at least one bin, got {tuple(edges.shape)}")
    if can_look(edges) and not bool((edges.isfinite().all()) & (edges.diff() > 0).all()):
        raise ValueError(f"edges must be finite, each above the one before, got {edges.tolist()}")


def _check_predictions(features: Tensor, weights: Tensor, predictions: Tensor) -> None:
    check_tensor("predictions", predictions)
    if predictions.is_floating_point() or predictions.is_complex() or predictions.dtype == torch.bool:
        raise TypeError(f"predictions must be integers, got {predictions.dtype}")
    rows = features.shape[:-1]
    try:
        fits = torch.broadcast_shapes(predictions.shape, rows) == rows
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"predictions must have shape {tuple(rows)}, got {tuple(predictions.shape)}")
    if can_look(predictions) and bool(((predictions < 0) | (predictions >= len(weights))).any()):
        raise ValueError(
            f"predictions must be in 0..{len(weights) - 1}, got {int(predictions.min())} to {int(predictions.max())}"
        )


def _check_samples(name: str, features: Tensor, weights: Tensor, predictions: Tensor) -> None:
    check_head(features, weights, name=name)
    if features.ndim != 2 or not len(features):
        raise ValueError(f"{name} must have shape (n, {weights.shape[1]}) with n >= 1, got {tuple(features.shape)}")
    check_finite(name, features)
    check_finite("weights", weights)
    _check_predictions(features, weights, predictions)


def _mean_contributions(features: Tensor, weights: Tensor, predictions: Tensor, edges: Tensor) -> Tensor:
    """Without the rows: one histogram of all features, in float64."""
    share = (weights.detach()[predictions].double() * features.detach()).flatten()
    slots = torch.bucketize(features.detach().contiguous(), edges, right=True).flatten()
    return share.new_zeros(len(edges) + 1).index_add(0, slots, share / len(features))[1:-1]


def _ordered(quantiles: tuple[float, float]) -> tuple[float, float]:
    low, high = quantiles
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles must be two numbers in [0, 1], the first one smaller, got {quantiles}")
    return low, high


def _quantile(values: Tensor, q: float) -> Tensor:
    """``torch.quantile``, which refuses more than 16 million numbers."""
    flat = values.detach().flatten().double()
    place = q * (len(flat) - 1)
    below = int(place)
    low = flat.kthvalue(below + 1).values
    high = flat.kthvalue(min(below + 2, len(flat))).values
    return torch.lerp(low, high, place - below)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
