"""How well an embedding keeps densities, neighbours and their ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import (
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Float
from pullback.core.transforms import can_look
from pullback.topology.distances import pairwise_distances

__all__ = ["RankResiduals", "continuity", "density_divergence", "rank_residuals", "trustworthiness"]


class RankResiduals(NamedTuple):
    """Mean relative errors of ranks, 0 where all neighbours keep theirs.

    Attributes:
        data: ``[*batch]`` over the neighbours in the data.
        latent: ``[*batch]`` over the neighbours in the embedding.
    """

    data: Float[Tensor, "*batch"]
    latent: Float[Tensor, "*batch"]


def density_divergence(
    x: Float[Tensor, "*batch n d"], z: Float[Tensor, "*batch n k"], *, sigma: float = 0.1
) -> Float[Tensor, "*batch"]:
    r"""Return the Kullback-Leibler divergence between densities at the points, in the data and in an embedding.

    .. math:: f(x_i) \propto \sum_j e^{-(d_{ij} / \max d)^2 / \sigma},\quad KL = \sum_i f(x_i) \log\frac{f(x_i)}{f(z_i)}

    with both densities normalised over the points. It does not change with the scale of either space.

    Args:
        x: ``[*batch, n, d]`` data.
        z: ``[*batch, n, k]`` the same points embedded.
        sigma: > 0; the smaller, the more local. The paper reports 0.01, 0.1 and 1.

    Returns:
        ``[*batch]`` in nats, >= 0, differentiable in both.

    Raises:
        TypeError: an argument is not floating, or the dtypes differ.
        ValueError: the numbers of points differ, are below 2, ``sigma`` is not positive, or a point is not finite.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> density_divergence(x, 3 * x).item(), round(density_divergence(x, x**2, sigma=0.01).item(), 3)
        (0.0, 0.037)

    References:
        Moor, Horn, Rieck, Borgwardt (2020), Topological autoencoders, section 5.1.
        Chazal, Cohen-Steiner, Merigot (2011), Geometric inference for probability measures.
    """
    check_positive("sigma", sigma)
    _check(x, z)
    densities = []
    for points in (x, z):
        squared = _squares(points.to(torch.promote_types(points.dtype, torch.float32)))
        density = (squared / -sigma).logsumexp(-1)
        densities.append(density.log_softmax(-1))
    of_x, of_z = densities
    return (of_x.exp() * (of_x - of_z)).sum(-1).to(x.dtype)


def _squares(points: Tensor) -> Tensor:
    """Squared distances over the largest; all 0 where all points are equal."""
    scale = (points.detach() - points.detach()[..., :1, :]).abs().amax((-2, -1), keepdim=True)
    points = (points - points[..., :1, :]) / torch.where(scale > 0, scale, 1.0)
    distances = pairwise_distances(points)
    largest = distances.amax((-2, -1), keepdim=True)
    return (distances / torch.where(largest > 0, largest, 1.0)).square()


def trustworthiness(
    x: Float[Tensor, "*batch n d"], z: Float[Tensor, "*batch n k"], *, k: int = 5
) -> Float[Tensor, "*batch"]:
    r"""Return how far the neighbours of points in an embedding are neighbours in the data.

    .. math:: 1 - \frac{2}{n k (2n - 3k - 1)} \sum_i \sum_{j \in N_k^z(i)} \max(0, r^x(i, j) - k)

    with :math:`r^x(i, j)` the rank of ``j`` among the neighbours of ``i`` in the data, the nearest at 1.

    Args:
        x: ``[*batch, n, d]`` data.
        z: ``[*batch, n, m]`` the same points embedded.
        k: neighbours, 1 <= k < n / 2.

    Returns:
        ``[*batch]`` in [0, 1]. No gradient: ranks have none.

    Raises:
        TypeError: an argument is not floating, or the dtypes differ.
        ValueError: the numbers of points differ, a point is not finite, or ``k`` is out of range.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> trustworthiness(x, x[[0, 3, 2, 1]], k=1).item()
        0.125

    References:
        Venna, Kaski (2001), Neighborhood preservation in nonlinear projection methods.
    """
    rank_x, rank_z, n = _ranks(x, z, k)
    excess = torch.where(rank_z <= k, (rank_x - k).clamp(min=0), 0).sum((-2, -1))
    return (1 - excess.double() * (2 / (n * k * (2 * n - 3 * k - 1)))).to(x.dtype)


def continuity(
    x: Float[Tensor, "*batch n d"], z: Float[Tensor, "*batch n k"], *, k: int = 5
) -> Float[Tensor, "*batch"]:
    r"""Return how far the neighbours of points in the data are neighbours in an embedding.

    :func:`trustworthiness` with data and embedding exchanged: it falls where neighbours are torn apart.

    Args:
        x: ``[*batch, n, d]`` data.
        z: ``[*batch, n, m]`` the same points embedded.
        k: neighbours, 1 <= k < n / 2.

    Returns:
        ``[*batch]`` in [0, 1]. No gradient.

    Raises:
        TypeError, ValueError: as :func:`trustworthiness`.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> continuity(x, x.square(), k=1).item()
        1.0

    References:
        Venna, Kaski (2001), Neighborhood preservation in nonlinear projection methods.
    """
    rank_x, rank_z, n = _ranks(x, z, k)
    excess = torch.where(rank_x <= k, (rank_z - k).clamp(min=0), 0).sum((-2, -1))
    return (1 - excess.double() * (2 / (n * k * (2 * n - 3 * k - 1)))).to(x.dtype)


def rank_residuals(x: Float[Tensor, "*batch n d"], z: Float[Tensor, "*batch n k"], *, k: int = 5) -> RankResiduals:
    r"""Return the mean relative rank errors of an embedding.

    .. math:: \frac1C \sum_i \sum_{j \in N_k(i)} \frac{|r^x(i, j) - r^z(i, j)|}{r(i, j)},\quad
              C = n \sum_{l=1}^{k} \frac{|n - 2l + 1|}{l}

    over the ``k`` neighbours in the data, with the ranks there in the denominator, and over those in the embedding.

    Args:
        x: ``[*batch, n, d]`` data.
        z: ``[*batch, n, m]`` the same points embedded.
        k: neighbours, 1 <= k < n / 2.

    Returns:
        :class:`RankResiduals`, 0 for ranks that are kept. No gradient.

    Raises:
        TypeError, ValueError: as :func:`trustworthiness`.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
        >>> rank_residuals(x, 2 * x, k=1)
        RankResiduals(data=tensor(0.), latent=tensor(0.))

    References:
        Lee, Verleysen (2007), Nonlinear dimensionality reduction, section 5.3.
    """
    rank_x, rank_z, n = _ranks(x, z, k)
    norm = n * sum(abs(n - 2 * i + 1) / i for i in range(1, k + 1))
    errors = (rank_x - rank_z).abs().double()
    parts = [torch.where((own > 0) & (own <= k), errors / own.clamp(min=1), 0.0) for own in (rank_x, rank_z)]
    return RankResiduals(*((part.sum((-2, -1)) / norm).to(x.dtype) for part in parts))


def _ranks(x: Tensor, z: Tensor, k: int) -> tuple[Tensor, Tensor, int]:
    """``[*batch, n, n]`` ranks of the other points, the nearest 1, each point itself 0."""
    _check(x, z)
    n = x.shape[-2]
    check_integer("k", k, 1, (n - 1) // 2)
    ranks = []
    for points in (x, z):
        distances = pairwise_distances(points.detach().to(torch.promote_types(points.dtype, torch.float32)))
        distances.diagonal(dim1=-2, dim2=-1).fill_(-1)
        order = distances.argsort(dim=-1, stable=True)
        ranks.append(torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=x.device).expand_as(order)))
    return ranks[0], ranks[1], n


def _check(x: Tensor, z: Tensor) -> None:
    for name, points in (("x", x), ("z", z)):
        check_shape(name, check_floating(name, points), (None, None))
        if can_look(points):
            check_finite(name, points)
    check_same_dtype(x=x, z=z)
    if x.shape[:-1] != z.shape[:-1]:
        raise ValueError(f"x and z must have the same points, got shapes {tuple(x.shape)} and {tuple(z.shape)}")
    if x.shape[-2] < 2 or not x.shape[-1] or not z.shape[-1]:
        shapes = f"{tuple(x.shape)} and {tuple(z.shape)}"
        raise ValueError(f"x and z must have at least 2 points of at least 1 feature, got shapes {shapes}")
