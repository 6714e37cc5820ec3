r"""Quantiles of outcomes of several coordinates, one for each direction.

The quantile of level tau in the direction of the unit vector u bounds a half-space that holds a share 1 - tau of what
comes: :math:`P(u \cdot Y \ge q_\tau(x, u) \mid x) = 1 - \tau`. The half-spaces of all directions meet in a region.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.directions import check_directions
from pullback.uncertainty.levels import check_level
from pullback.uncertainty.scoring import pinball_loss

__all__ = ["DirectionalQuantiles", "directional_quantile_loss"]


def directional_quantile_loss(
    quantiles: Float[Tensor, "*batch k"],
    y: Float[Tensor, "*batch d"],
    directions: Float[Tensor, "k d"],
    *,
    level: float,
) -> Float[Tensor, ""]:
    r"""Return the mean pinball loss of quantiles of many directions.

    .. math:: \frac{1}{n k} \sum_{i, j} \rho_\tau(u_j \cdot y_i - q_{ij})

    Args:
        quantiles: ``[*batch, k]`` predicted for each direction.
        y: ``[*batch, d]`` what came.
        directions: ``[k, d]`` unit vectors.
        level: tau in (0, 1); small ones bound a region. For a Gaussian ``y`` of ``d`` coordinates the half-spaces of
            all directions hold ``chi2_d.cdf(ndtri(tau) ** 2)``: tau = .016 for .9 in the plane, .006 in space.

    Returns:
        The mean, in the unit of ``y``.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, directions are not of length 1, the level is outside (0, 1).

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> directional_quantile_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, -1.0]]), u, level=0.1)
        tensor(0.5500)

    References:
        Kong, Mizera (2012), Quantile tomography: using quantiles with multivariate data; Boecek, Siman (2017),
        Directional quantile regression in R, equation 1.
    """
    check_directions(directions)
    check_same_dtype(quantiles=check_floating("quantiles", quantiles), y=check_floating("y", y), directions=directions)
    check_level("level", level, ndim=0)
    if not y.ndim or y.shape[-1] != directions.shape[-1]:
        raise ValueError(f"y must have shape [..., {directions.shape[-1]}], got {tuple(y.shape)}")
    if tuple(quantiles.shape) != (*y.shape[:-1], len(directions)):
        raise ValueError(f"quantiles must have shape {(*y.shape[:-1], len(directions))}, got {tuple(quantiles.shape)}")
    return pinball_loss(quantiles, y @ directions.T, level)


class DirectionalQuantiles(nn.Module):
    r"""A network for the quantiles of every direction: ``q(x, u)``.

    .. math:: q(x, u) = m(x) \cdot u + g(x, u)

    a linear part, of which a location needs no more, and a perceptron of both. The first layers of ``x`` and of ``u``
    are computed apart, so that ``k`` directions cost little more than one there.

    Args:
        features: of ``x``.
        dim: of the outcome.
        hidden: units of each of two layers.
        generator: of the initial weights, uniform within one over the square root of a layer's input.

    Raises:
        TypeError: a number is no integer.
        ValueError: one is below 1.

    Example:
        >>> model = DirectionalQuantiles(4, 2)
        >>> model(torch.zeros(5, 4), torch.eye(2)).shape
        torch.Size([5, 2])

    References:
        Feldman, Bates, Romano (2023), Calibrated multiple-output quantile regression with representation learning,
        section 2.2.
    """

    def __init__(self, features: int, dim: int, *, hidden: int = 64, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name, size in {"features": features, "dim": dim, "hidden": hidden}.items():
            check_integer(name, size, 1)
        self.features, self.dim = features, dim
        self.from_x = linear(features, hidden, generator)
        self.from_u = linear(dim, hidden, generator)
        self.inner = linear(hidden, hidden, generator)
        self.out = linear(hidden, 1, generator)
        self.location = nn.Sequential(linear(features, hidden, generator), nn.ReLU(), linear(hidden, dim, generator))

    def forward(
        self, x: Float[Tensor, "*batch features"], directions: Float[Tensor, "k dim"]
    ) -> Float[Tensor, "*batch k"]:
        """Return the quantiles ``[*batch, k]`` of directions ``[k, dim]``.

        Raises:
            TypeError: no floating tensors, or of different dtypes.
            ValueError: shapes do not fit.
        """
        check_same_dtype(x=check_floating("x", x), directions=check_floating("directions", directions))
        if not x.ndim or x.shape[-1] != self.features:
            raise ValueError(f"x must have shape [..., {self.features}], got {tuple(x.shape)}")
        if directions.ndim != 2 or directions.shape[1] != self.dim:
            raise ValueError(f"directions must have shape [k, {self.dim}], got {tuple(directions.shape)}")
        hidden = torch.relu(self.from_x(x)[..., None, :] + self.from_u(directions))
        free = self.out(torch.relu(self.inner(hidden))).squeeze(-1)
        located: Tensor = self.location(x) @ directions.T + free
        return located


def linear(fan: int, out: int, generator: torch.Generator | None) -> nn.Linear:
    """Return a layer with torch's initial law, drawn by a generator."""
    layer = nn.utils.skip_init(nn.Linear, fan, out)
    device = drawing_device(generator, torch.device("cpu"))
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            drawn = torch.rand(parameter.shape, generator=generator, device=device)
            parameter.copy_((2 * drawn - 1) / math.sqrt(fan))
    return layer
