"""Graphs of point clouds, and how steep a function on their points is along the manifold that they sample."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Float, Int, Tensor
from pullback.implicit.arguments import check_number

__all__ = [
    "PointCloudGraph",
    "gradient_energy",
    "graph_lipschitz",
    "point_cloud_laplacian",
    "weighted_laplacian_penalty",
]

_NEGLIGIBLE = 1e-12  # pairs of all points whose weight is below are left out
_BLOCK = 2**22  # distances that are held at once


class PointCloudGraph(NamedTuple):
    """Pairs of near points with heat-kernel weights; every pair stands in it both ways.

    Attributes:
        edges: ``[2, m]`` int64, the points ``i`` and ``j`` of each pair, sorted by ``i``.
        weights: ``[m]``, ``exp(-|z_i - z_j|^2 / (4 scale))`` in (0, 1].
        degree: ``[n]``, the sum of the weights at each point, that of the point with itself, 1, included.
        scale: the time of the heat kernel, in squared units of the points.
    """

    edges: Int[Tensor, "2 m"]
    weights: Float[Tensor, "m"]
    degree: Float[Tensor, "n"]
    scale: float


@torch.no_grad()
def point_cloud_laplacian(z: Float[Tensor, "n d"], *, scale: float, neighbours: int | None = None) -> PointCloudGraph:
    r"""Return the weighted graph of a point cloud, whose Laplacian tends to that of the manifold it samples.

    ``w_ij = exp(-|z_i - z_j|^2 / (4 scale))`` for pairs of which one point is among the nearest ``neighbours`` of the
    other and ``w_ii = 1``, and the Laplacian is ``L = diag(degree) - w``. Distances are held in blocks of rows: memory
    grows with the edges.

    Args:
        z: ``[n, d]``, finite points, ``n >= 2``.
        scale: > 0, time of the heat kernel: about a quarter of the squared distance at which points still are near.
        neighbours: >= 1, of each point; ``None`` takes all pairs whose weight is at least 1e-12.

    Returns:
        The graph; it is connected.

    Raises:
        TypeError: ``z`` is not floating.
        ValueError: an argument is out of range, or the graph falls into several components: take more neighbours or a
            larger scale.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [3.0]])
        >>> graph = point_cloud_laplacian(line, scale=1.0, neighbours=1)
        >>> graph.edges.tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
        >>> [round(w, 3) for w in graph.degree.tolist()]
        [1.779, 2.147, 1.368]

    References:
        Belkin, Niyogi (2008), Towards a theoretical foundation for Laplacian-based manifold methods, equation 2.
    """
    check_floating("z", z)
    check_number("scale", scale)
    if z.ndim != 2 or len(z) < 2 or not bool(z.isfinite().all()):
        raise ValueError(f"z must be [n, d] finite points with n >= 2, got shape {tuple(z.shape)}")
    n = len(z)
    if neighbours is not None:
        check_integer("neighbours", neighbours, 1)
        neighbours = min(neighbours, n - 1)
    kept, found = z.dtype, []
    z = z.detach().float() if z.dtype in (torch.float16, torch.bfloat16) else z.detach()
    for first, rows in zip(range(0, n, max(1, _BLOCK // n)), z.split(max(1, _BLOCK // n)), strict=True):
        distance = torch.cdist(rows, z, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(rows), device=z.device)
        distance[own, first + own] = torch.inf
        if neighbours is None:
            near = (torch.exp(-(distance**2) / (4 * scale)) >= _NEGLIGIBLE).nonzero()
            i, j = near.unbind(1)
        else:
            j = distance.topk(neighbours, largest=False).indices.flatten()
            i = own.repeat_interleave(neighbours)
        found.append((i + first) * n + j)
    code = torch.cat(found)
    i, j = code // n, code % n
    code = torch.cat([code, j * n + i]).unique()  # both ways, sorted
    edges = torch.stack([code // n, code % n])
    weights = torch.exp(-((z[edges[0]] - z[edges[1]]) ** 2).sum(1) / (4 * scale))
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)  # far neighbours stay neighbours
    parts = _components(edges, n)
    if parts > 1:
        raise ValueError(
            f"z must give a connected graph, got {parts} components with scale {scale:g} and "
            f"{'all pairs' if neighbours is None else f'{neighbours} neighbours'}; take more of them or a larger scale"
        )
    degree = z.new_ones(n).index_add(0, edges[0], weights)
    return PointCloudGraph(edges, weights.to(kept), degree.to(kept), float(scale))


def gradient_energy(values: Float[Tensor, "n *channels"], graph: PointCloudGraph) -> Float[Tensor, "n"]:
    r"""Return the squared gradient along the manifold at each point: ``sum_j w_ij |f_i - f_j|^2 / (2 t degree_i)``.

    With ``w`` the heat kernel of time ``t`` it tends to ``|grad f(z_i)|^2`` (summed over channels) as ``t`` becomes
    small and points many, wherever these lie evenly around ``z_i``.

    Args:
        values: ``[n]`` or ``[n, c]``, the function at the points.
        graph: of :func:`point_cloud_laplacian`.

    Returns:
        ``[n]``, >= 0, in squared units of values over squared units of points, differentiable in ``values``.

    Raises:
        TypeError: ``values`` is not floating, or ``graph`` is none.
        ValueError: ``values`` does not have one row a point.

    Example:
        >>> z = torch.linspace(0, 1, 201)[:, None]
        >>> graph = point_cloud_laplacian(z, scale=1e-4)
        >>> round(gradient_energy(3 * z[:, 0], graph)[100].item(), 2)  # |f'|^2 = 9, in the middle
        9.0

    References:
        Cervino, Chamon, Haeffele, Vidal, Ribeiro (2023), Learning globally smooth functions on manifolds, section 4.
    """
    _check(values, graph)
    i, j = graph.edges
    squares = ((values[i] - values[j]) ** 2).reshape(len(i), -1).sum(1)
    shares = graph.weights.to(squares) / (2 * graph.scale * graph.degree.to(squares)[i])
    return squares.new_zeros(len(values)).index_add(0, i, shares * squares)


def weighted_laplacian_penalty(
    values: Float[Tensor, "n *channels"], graph: PointCloudGraph, multipliers: Float[Tensor, "n"]
) -> Float[Tensor, ""]:
    r"""Return ``sum_i lambda_i e_i`` with the gradient energies ``e``: ``f^T L_lambda f`` of a weighted Laplacian.

    ``L_lambda`` is the Laplacian of the weights ``w_ij (lambda_i / degree_i + lambda_j / degree_j) / (2 t)``. Equal
    multipliers ``1 / n`` are plain manifold regularisation.

    Args:
        values: ``[n]`` or ``[n, c]``, the function at the points.
        graph: of :func:`point_cloud_laplacian`.
        multipliers: ``[n]``, one for each point.

    Returns:
        The penalty, no dimensions, differentiable in ``values`` and ``multipliers``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is not one row, or not one multiplier, for each point.

    Example:
        >>> graph = point_cloud_laplacian(torch.tensor([[0.0], [1.0]]), scale=0.5)
        >>> energy = gradient_energy(torch.tensor([0.0, 2.0]), graph)
        >>> penalty = weighted_laplacian_penalty(torch.tensor([0.0, 2.0]), graph, torch.tensor([1.0, 3.0]))
        >>> bool(penalty == energy[0] + 3 * energy[1])
        True

    References:
        Cervino, Chamon, Haeffele, Vidal, Ribeiro (2023), Learning globally smooth functions on manifolds, equation 12;
        Belkin, Niyogi, Sindhwani (2006), Manifold regularization.
    """
    check_floating("multipliers", multipliers)
    energy = gradient_energy(values, graph)
    if multipliers.shape != energy.shape:
        raise ValueError(f"multipliers must be [{len(energy)}], one for each point, got {tuple(multipliers.shape)}")
    return (multipliers.to(energy) * energy).sum()


def graph_lipschitz(
    values: Float[Tensor, "n *channels"], z: Float[Tensor, "n d"], graph: PointCloudGraph
) -> Float[Tensor, ""]:
    r"""Return the Lipschitz constant on the graph: ``max |f_i - f_j| / geodesic(i, j)`` over all pairs of points.

    The geodesic distance is the length of the shortest path over edges. A path is no steeper than its steepest edge, so
    that the maximum over edges is that over all pairs. Points in the same place must have the same value.

    Args:
        values: ``[n]`` or ``[n, c]``, the function at the points.
        z: ``[n, d]``, the points.
        graph: of :func:`point_cloud_laplacian`.

    Returns:
        The constant, no dimensions, infinite where points in one place differ; differentiable in ``values``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is not one row of ``values`` and of ``z`` for each point.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [3.0]])
        >>> graph = point_cloud_laplacian(z, scale=1.0, neighbours=1)
        >>> graph_lipschitz(torch.tensor([0.0, 1.0, 4.0]), z, graph).item()
        1.5
    """
    _check(values, graph)
    check_floating("z", z)
    if z.ndim != 2 or len(z) != len(values):
        raise ValueError(f"z must be [{len(values)}, d], one row for each value, got {tuple(z.shape)}")
    i, j = graph.edges
    rise = torch.linalg.vector_norm((values[i] - values[j]).reshape(len(i), -1), dim=1)
    run = torch.linalg.vector_norm(z[i] - z[j], dim=1).to(rise)
    flat = rise == 0
    return torch.where(flat, 0, rise / torch.where(flat, 1, run)).max()


def _check(values: Tensor, graph: PointCloudGraph) -> None:
    check_floating("values", values)
    if not isinstance(graph, PointCloudGraph):
        raise TypeError(f"graph must be a PointCloudGraph, got {type(graph).__name__}")
    if not values.ndim or len(values) != len(graph.degree):
        raise ValueError(f"values must have {len(graph.degree)} rows, one for each point, got {tuple(values.shape)}")


def _components(edges: Tensor, n: int) -> int:
    """Return the number of connected components, each point taking the least number that reaches it."""
    label = torch.arange(n, device=edges.device)
    while True:
        least = label.scatter_reduce(0, edges[0], label[edges[1]], "amin")
        least = least[least]
        if torch.equal(least, label):
            return len(label.unique())
        label = least
